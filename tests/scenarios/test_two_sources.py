"""Identity is (source, event id): equal ids of different apps are different events."""

from __future__ import annotations

import jetbridge
from testproject.billing.models import Invoice
from tests.worlds import World, body, in_coroutine, inbox


def test_two_sources_using_id_1_both_have_their_effect(transactional_db, nats_server, handlers):
    """Two apps number their events from 1: nothing of either is taken for a copy of the other's."""
    world = World(nats_server.url, sources=["depot"]).provision()

    @jetbridge.handler("order.placed", name="t.invoice")
    def invoice(event: jetbridge.Delivery) -> None:
        Invoice.objects.create(order_id=1, event_id=f"{event.source}/{event.event_id}", total=1)

    world.send(body("1"))
    world.send(body("1"), source=world.others["depot"])
    report = world.consume()

    assert set(Invoice.objects.values_list("event_id", flat=True)) == {
        f"{world.shop}/1",
        f"{world.others['depot']}/1",
    }
    assert (report.totals.handled, report.totals.duplicates) == (2, 0)
    assert {(row.source, row.event_id, row.state) for row in inbox()} == {
        (world.shop, "1", "processed"),
        (world.others["depot"], "1", "processed"),
    }


def test_a_handler_may_name_its_source(transactional_db, nats_server, handlers):
    """``source=`` tells two apps with the same event types apart."""
    world = World(nats_server.url, sources=["depot"]).provision()
    seen: list[tuple[str, str]] = []

    @jetbridge.handler("order.placed", name="t.shop", source=world.shop)
    def of_shop(event: jetbridge.Delivery) -> None:
        seen.append(("shop", event.source))

    @jetbridge.handler("order.placed", name="t.depot", source=world.others["depot"])
    def of_depot(event: jetbridge.Delivery) -> None:
        seen.append(("depot", event.source))

    world.send(body("1"))
    world.send(body("1"), source=world.others["depot"])
    world.consume()

    assert sorted(seen) == [("depot", world.others["depot"]), ("shop", world.shop)]


def test_equal_keys_of_two_sources_do_not_wait_for_each_other(transactional_db, nats_server, handlers):
    """A dead letter of one app's key touches nothing of the other's."""
    world = World(nats_server.url, sources=["depot"]).provision()
    seen: list[str] = []

    @jetbridge.handler("order.placed", name="t.all")
    def handle(event: jetbridge.Delivery) -> None:
        if event.source == world.shop:
            raise jetbridge.Reject("never")
        seen.append(event.source)

    world.send(body("1"))
    world.send(body("1"), source=world.others["depot"])
    world.consume()

    assert seen == [world.others["depot"]]


def test_two_sources_in_one_shared_stream_are_told_apart(transactional_db, nats_server, handlers):
    """``SOURCES["x"]["stream"]``: the subject proves the source, whichever stream holds it."""
    one = World(nats_server.url, sources=["depot"])
    depot, stream = one.others["depot"], f"SHARED-{one.shop}"
    one.publisher["STREAM"] = stream
    one.consumer["SOURCES"] = {one.shop: {"stream": stream}, depot: {"stream": stream}}
    one._provision({**one.publisher})
    one._provision({**one.publisher, "APP_NAME": depot})
    one._provision(one.consumer)
    seen: list[str] = []

    @jetbridge.handler("order.placed", name="t.all")
    def handle(event: jetbridge.Delivery) -> None:
        seen.append(event.source)

    one.send(body("1"))
    one.send(body("1"), source=depot)
    one.consume()

    assert sorted(seen) == sorted([one.shop, depot])


def test_one_event_id_to_two_destinations_in_two_calls_arrives_at_both(
    transactional_db, nats_server, handlers
):
    """A bare id would be dropped by the stream the second time: the message id names the destination too."""
    world = World(nats_server.url)
    audit = f"audit-{world.shop}"
    world.publisher["DESTINATIONS"] = [world.billing, audit]
    world.provision()
    world._provision({**world.consumer, "APP_NAME": audit, "SOURCES": [world.shop]})
    with world.as_shop():
        jetbridge.publish("order.placed", {"id": 7}, to=world.billing, event_id="same")
        jetbridge.publish("order.placed", {"id": 7}, to=audit, event_id="same")
    report = world.relay()

    assert (report.totals.published, report.totals.duplicates) == (2, 0)
    assert [(message.subject, message.headers["Nats-Msg-Id"]) for message in world.stored()] == [
        (f"{world.shop}.sync.{world.billing}", f"same:{world.billing}"),
        (f"{world.shop}.sync.{audit}", f"same:{audit}"),
    ]
    seen: list[tuple[str, str]] = []

    @jetbridge.handler("order.placed", name="t.billing")
    def watch(event: jetbridge.Delivery) -> None:
        seen.append((event.subject, str(event.event_id)))

    world.consume()
    inbox()[0].delete()  # the two apps of this test share a database, which real ones do not
    world.consume(APP_NAME=audit, SOURCES=[world.shop])

    assert seen == [
        (f"{world.shop}.sync.{world.billing}", "same"),
        (f"{world.shop}.sync.{audit}", "same"),
    ]


def test_the_same_event_twice_to_one_destination_is_two_rows_and_one_effect(world):
    """The same event id twice is legal."""
    seen: list[str] = []

    @jetbridge.handler("order.placed", name="t.watch")
    def watch(event: jetbridge.Delivery) -> None:
        seen.append(str(event.event_id))

    with world.as_shop():
        jetbridge.publish("order.placed", {"id": 7}, event_id="twice")
        jetbridge.publish("order.placed", {"id": 7}, event_id="twice")
    report = world.relay()
    world.consume()

    assert (report.totals.published, report.totals.duplicates) == (2, 1)
    assert seen == ["twice"]


def test_a_publish_from_a_coroutine_arrives_like_any_other(world):
    """``apublish`` outside a handler is committed by itself."""
    seen: list[str] = []

    @jetbridge.handler("order.placed", name="t.watch")
    def watch(event: jetbridge.Delivery) -> None:
        seen.append(str(event.event_id))

    with world.as_shop():
        event_id = in_coroutine(jetbridge.apublish("order.placed", {"id": 7}))
    world.relay()
    world.consume()

    assert seen == [event_id]

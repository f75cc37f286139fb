"""What a relay promises: everything arrives, in the order of its key, and what cannot go is visible with the reason."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction

import jetbridge
from jetbridge.models import Archive, Outbox, OutboxState, Scheduled
from jetbridge.outbox.store import move
from jetbridge.partition import fnv1a32
from tests.running import api, numbers, relaying
from tests.servers import NatsServer
from tests.waiting import eventually
from tests.worlds import World, outbox

BIG = "x" * 5_000
SMALL_PAYLOAD = "max_payload: 4096"


def publish(*ns: int, key: str | None = "k", to: str | None = None, **payload: Any) -> None:
    """One event each, in one transaction."""
    with transaction.atomic():
        for n in ns:
            jetbridge.publish("order.placed", {"n": n, **payload}, key=key, to=to)


def states() -> dict[int, str]:
    return {json.loads(bytes(row.body))["payload"]["n"]: row.state for row in outbox()}


@pytest.fixture
def make_world(
    transactional_db: None,
    handlers: None,
    nats_server: NatsServer,
    make_nats_server: Callable[..., NatsServer],
) -> Callable[..., World]:
    """``make_world(conf, mail=True, **keys)``: a provisioned world, on a server of its own when ``conf`` says so."""

    def make(conf: str = "", *, mail: bool = False, **keys: Any) -> World:
        world = World((make_nats_server(conf) if conf else nats_server).url, **keys)
        if mail:
            world.publisher["DESTINATIONS"] = [world.billing, "mail"]
        return world.provision()

    return make


# --- order ---------------------------------------------------------------------------------------


def test_events_of_a_key_keep_their_order_across_pages(make_world):
    """Pages cut keys anywhere; the stream has each key in the order of publishing. Red if pages ignore the id."""
    world = make_world(publisher={"PAGE_SIZE": 7})
    with world.as_shop():
        for n in range(120):
            publish(n, key=f"k{n % 5}")

    report = world.relay()

    by_key = defaultdict(list)
    for n in numbers(world):
        by_key[n % 5].append(n)
    assert {key: ns == sorted(ns) and len(ns) for key, ns in by_key.items()} == dict.fromkeys(range(5), 24)
    assert (report.totals.published, report.left, Outbox.objects.count()) == (120, 0, 0)
    assert Archive.objects.filter(duplicate=False, stream=f"jetbridge-{world.shop}").count() == 120
    assert sorted(Archive.objects.values_list("sequence", flat=True)) == list(range(1, 121))


def test_rows_published_while_it_runs_are_found(world):
    """A running relay needs nobody to wake it."""
    with relaying(world):
        for n in range(3):
            publish(n)
            expected = list(range(n + 1))
            eventually(lambda expected=expected: numbers(world) == expected)  # type: ignore[misc]


def test_an_event_without_a_key_never_waits(make_world):
    """Without a key there is nothing to wait for: also with an empty key no row shares a lane with another."""
    world = make_world(SMALL_PAYLOAD)
    with world.as_shop():
        jetbridge.publish("note", {"n": 1, "fill": BIG})
        jetbridge.publish("note", {"n": 2})

    report = world.relay()

    assert numbers(world) == [2]
    assert (states(), report.totals.refused) == ({1: OutboxState.REFUSED}, 1)


# --- a message that cannot be stored -------------------------------------------------------------


def test_a_refused_message_holds_its_key_and_no_other(make_world):
    """Too large for the server: refused with the reason, its followers held; other keys flow."""
    world = make_world(SMALL_PAYLOAD)
    with world.as_shop():
        publish(1, key="a")
        publish(2, key="a", fill=BIG)
        publish(3, 4, key="a")
        publish(5, 6, key="b")

    report = world.relay()

    assert sorted(numbers(world)) == [1, 5, 6]
    assert states() == {2: OutboxState.REFUSED, 3: OutboxState.HELD, 4: OutboxState.HELD}
    refused = outbox(state=OutboxState.REFUSED)[0]
    assert refused.error_code == "10054"
    assert "exceeds the server's max_payload of 4096" in refused.error
    assert (report.totals.refused, report.left) == (1, 3)


def test_nothing_of_a_key_is_on_its_way_behind_an_open_question(world):
    """
    The server's refusal takes a round trip. Until then no other row of the key may be in flight, or the
    stream would hold 2 and 3 without 1. Red if the publisher pipelines within a lane.
    """
    with world.as_shop():
        publish(1, 2, 3, key="a")
        publish(4, 5, key="b")
    first = outbox()[0]
    first.headers["Nats-Expected-Last-Sequence"] = "999"
    first.save()

    world.relay()

    assert numbers(world) == [4, 5]
    assert states() == {1: OutboxState.REFUSED, 2: OutboxState.HELD, 3: OutboxState.HELD}
    assert outbox()[0].error_code == "10071"


def test_a_new_relay_knows_the_held_keys_before_it_sends(make_world):
    """A later event of a held key, met by a relay that did not see the refusal, is held too. Red without _take_over."""
    world = make_world(SMALL_PAYLOAD)
    with world.as_shop():
        publish(1, key="a", fill=BIG)
    world.relay()
    with world.as_shop():
        publish(2, key="a")
        publish(3, key="b")

    world.relay()

    assert numbers(world) == [3]
    assert states() == {1: OutboxState.REFUSED, 2: OutboxState.HELD}


def test_followers_go_on_when_the_refused_row_is_gone(make_world):
    """An operator deletes the refused row; the running relay lets its followers go, in order, also newer ones."""
    world = make_world(SMALL_PAYLOAD)
    with relaying(world):
        publish(1, key="a", fill=BIG)
        publish(2, 3, key="a")
        eventually(lambda: list(states().values()) == ["refused", "held", "held"])
        publish(4, key="a")
        eventually(lambda: states()[4] == OutboxState.HELD)

        Outbox.objects.filter(state=OutboxState.REFUSED).delete()

        eventually(lambda: Outbox.objects.count() == 0)
    assert numbers(world) == [2, 3, 4]


def test_on_refused_pass_lets_followers_go_on(make_world):
    """``ON_REFUSED="pass"`` trades the order for the flow."""
    world = make_world(SMALL_PAYLOAD, publisher={"ON_REFUSED": "pass"})
    with world.as_shop():
        publish(1, key="a", fill=BIG)
        publish(2, 3, key="a")

    world.relay()

    assert numbers(world) == [2, 3]
    assert states() == {1: OutboxState.REFUSED}


def test_switching_to_pass_frees_what_was_held(make_world):
    """The way out for an operator who keeps the refused row. Red if held rows wait for it whatever the setting says."""
    world = make_world(SMALL_PAYLOAD)
    with world.as_shop():
        publish(1, key="a", fill=BIG)
        publish(2, 3, key="a")
    world.relay()
    assert states()[3] == OutboxState.HELD

    with relaying(world, ON_REFUSED="pass"):
        eventually(lambda: states() == {1: OutboxState.REFUSED})

    assert numbers(world) == [2, 3]


# --- a subject that takes nothing ----------------------------------------------------------------


def purge(world: World, subject: str) -> None:
    api(world, f"STREAM.PURGE.jetbridge-{world.shop}", {"filter": subject})


def test_a_full_subject_parks_itself_alone_and_resumes_in_order(make_world):
    """A destination that reads nothing waits by itself; room made by its reader is found without a restart."""
    world = make_world(mail=True, publisher={"MAX_MESSAGES_PER_SUBJECT": 4, "PARK_RETRY_S": 0.1})
    billing = f"{world.shop}.sync.{world.billing}"
    with relaying(world) as relay:
        for n in range(10):
            publish(n, key="ab"[n % 2], to=world.billing)
        eventually(lambda: len(states()) == 6 and set(states().values()) == {OutboxState.PARKED})
        parked = outbox()[0]
        assert (parked.error_code, "per subject" in parked.error) == ("10077", True)
        publish(100, 101, to="mail")
        publish(10, 11, key="a", to=world.billing)
        eventually(lambda: numbers(world, f"{world.shop}.sync.mail") == [100, 101])

        seen: list[int] = []
        while len(seen) < 12:
            found = eventually(lambda: world.stored(subject=billing))
            seen += [json.loads(message.body)["payload"]["n"] for message in found]
            read = {"filter": billing, "seq": found[-1].sequence + 1}
            api(world, f"STREAM.PURGE.jetbridge-{world.shop}", read)
        eventually(lambda: Outbox.objects.count() == 0)
        report = relay.stop()

    assert sorted(seen) == list(range(12))
    archived = Archive.objects.order_by("sequence").values_list("key", "body")
    order = [(key, json.loads(bytes(body))["payload"]["n"]) for key, body in archived if key in ("a", "b")]
    assert [n for key, n in order if key == "a"] == [0, 2, 4, 6, 8, 10, 11]
    assert [n for key, n in order if key == "b"] == [1, 3, 5, 7, 9]
    assert report.totals.parked >= 8


def test_a_new_relay_knows_the_parked_subjects(make_world):
    """Rows parked by an earlier relay go first. Red without _take_over: the new row would be sent before them."""
    world = make_world(publisher={"MAX_MESSAGES_PER_SUBJECT": 2, "PARK_RETRY_S": 0.1})
    with world.as_shop():
        publish(*range(4))
    report = world.relay()
    assert (report.totals.parked, report.left) == (2, 2)
    with world.as_shop():
        publish(4)
    purge(world, f"{world.shop}.sync.{world.billing}")

    with relaying(world, MAX_MESSAGES_PER_SUBJECT=2):
        eventually(lambda: numbers(world) == [2, 3])
        purge(world, f"{world.shop}.sync.{world.billing}")
        eventually(lambda: numbers(world) == [4])


def test_a_held_key_stays_behind_its_refused_row_when_the_subject_is_parked_too(make_world):
    """
    Both troubles at once. A parked row is the first to be tried when its subject works again, so a row of
    a held key must never be parked. Red if sort() looks at parked subjects first.
    """
    world = make_world(SMALL_PAYLOAD, publisher={"MAX_MESSAGES_PER_SUBJECT": 2, "PARK_RETRY_S": 0.1})
    subject = f"{world.shop}.sync.{world.billing}"
    with relaying(world):
        publish(1, 2, key="b")
        eventually(lambda: numbers(world) == [1, 2])
        publish(3, key="a", fill=BIG)
        publish(4, key="b")
        eventually(lambda: states() == {3: OutboxState.REFUSED, 4: OutboxState.PARKED})
        publish(5, key="a")
        eventually(lambda: states()[5] == OutboxState.HELD)
        purge(world, subject)
        eventually(lambda: numbers(world) == [4])
        publish(6, key="b")
        eventually(lambda: numbers(world) == [4, 6])
        # 6 is stored before it is settled.
        eventually(lambda: states() == {3: OutboxState.REFUSED, 5: OutboxState.HELD})


def test_a_row_that_another_stream_took_is_parked_with_its_name(transactional_db, handlers, nats_server):
    """A positive ack of the wrong stream is no success: nobody reads there. Red if ack.stream is not compared."""
    world = World(nats_server.url)
    name = f"thief-{world.shop}"
    api(
        world,
        f"STREAM.CREATE.{name}",
        {"name": name, "subjects": [f"{world.shop}.sync.>"], "storage": "memory"},
    )
    with world.as_shop():
        publish(1, 2)

    report = world.relay()

    assert (Archive.objects.count(), report.totals.published, report.left) == (0, 0, 2)
    assert {(row.state, row.error_code) for row in outbox()} == {(OutboxState.PARKED, "wrong_stream")}
    assert f"stored by the stream '{name}' instead of 'jetbridge-{world.shop}'" in outbox()[0].error
    api(world, f"STREAM.DELETE.{name}")
    world.provision()
    with relaying(world):
        eventually(lambda: Outbox.objects.count() == 0)
    assert numbers(world) == [1, 2]


# --- where and when ------------------------------------------------------------------------------


def test_a_partitioned_destination_gets_the_number_of_the_key(transactional_db, handlers, nats_server):
    """``.<n>`` is FNV-1a 32 of the key modulo n, for a row without a key of its event id: what readers compute."""
    world = World(nats_server.url)
    world.publisher["DESTINATIONS"] = {world.billing: {"partitions": 4}}
    world.consumer["SOURCES"] = {world.shop: {"partitions": 4}}
    world.provision()
    with world.as_shop():
        for n in range(12):
            publish(n, key=f"key {n}")
        loose = jetbridge.publish("note", {"n": 12})

    world.relay()

    keys = {n: f"key {n}" for n in range(12)} | {12: loose}
    base = f"{world.shop}.sync.{world.billing}"
    found = {json.loads(message.body)["payload"]["n"]: message.subject for message in world.stored()}
    assert found == {n: f"{base}.{fnv1a32(key.encode()) % 4}" for n, key in keys.items()}


def test_scheduled_events_go_when_due_and_in_the_order_they_are_due(world):
    """A due row gets its place in the order of its key when it becomes due, not when it was written."""
    with relaying(world):
        jetbridge.publish("order.placed", {"n": 2}, key="k", delay=0.5)
        jetbridge.publish("order.placed", {"n": 1}, key="k", delay=0.3)
        jetbridge.publish("order.placed", {"n": 3}, key="k", delay=0.5)
        publish(0)
        assert Scheduled.objects.count() == 3
        eventually(lambda: numbers(world) == [0, 1, 2, 3])
    assert Scheduled.objects.count() == 0


def test_future_rows_do_not_keep_a_one_shot_run_waiting(world):
    """ "Empty" means nothing ready or due."""
    with world.as_shop():
        jetbridge.publish("order.placed", {"n": 1}, delay=3600)
        publish(0)

    report = world.relay()

    assert (report.finished, report.left, Scheduled.objects.count()) == (True, 0, 1)
    assert numbers(world) == [0]


def test_rows_of_every_bucket_count_as_work(world):
    """A one-shot run is not done while another relay's buckets have rows. Red if has_work looks at own buckets."""
    from jetbridge.leases.store import acquire, ensure
    from jetbridge.relay.relay import LEASE_NAMES

    ensure(LEASE_NAMES, using="default")
    acquire(LEASE_NAMES, owner="other", ttl_s=1.5, limit=64, using="default")
    with world.as_shop():
        publish(1)

    report = world.relay()

    assert (report.finished, report.totals.published) == (True, 1)


def test_an_operators_retry_of_a_refused_row_goes_before_its_followers(make_world):
    """refused → ready by hand, the way the admin does it: the row, then what waited behind it, in order."""
    world = make_world(SMALL_PAYLOAD)
    with world.as_shop():
        publish(1, key="a")
        publish(2, 3, key="a")
    move([outbox()[0].pk], OutboxState.REFUSED, code="test", error="test", using="default")
    world.relay()
    assert states() == {1: OutboxState.REFUSED, 2: OutboxState.HELD, 3: OutboxState.HELD}

    Outbox.objects.filter(state=OutboxState.REFUSED).update(state=OutboxState.READY)
    with relaying(world):
        eventually(lambda: Outbox.objects.count() == 0)

    assert numbers(world) == [1, 2, 3]

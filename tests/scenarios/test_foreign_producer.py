"""A producer in another language, which knows the wire contract and nothing else, is handled."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from urllib.parse import quote

import jetbridge
from testproject.billing.models import Invoice
from tests.worlds import World, body, dead_letters, inbox


def seen_by_handler(
    world: World, *messages: bytes | tuple[bytes, dict[str, str]]
) -> list[jetbridge.Delivery]:
    """Send messages with plain nats-py; what the handler of everything was given, in stream order."""
    seen: list[jetbridge.Delivery] = []

    @jetbridge.handler(">", name="t.watch")
    def watch(event: jetbridge.Delivery) -> None:
        seen.append(event)

    world.send(*messages)
    world.consume()
    return sorted(seen, key=lambda event: event.sequence)


def test_a_full_message_of_the_contract_reaches_the_handler_with_every_member(world):
    """Body and headers of the contract, written by hand, become a Delivery member by member."""
    message = body(
        "e-1",
        payload={"id": 7, "total": "9.90", "lines": [1, 2.5, None, True, {"a": "é"}]},
        occurred_at="2026-11-22T02:51:40.25Z",
    )
    headers = {
        "Nats-Msg-Id": f"e-1:{world.billing}",
        "nats-msg-id": "e-1",
        "Jetbridge-Key": quote("customer 5/ü%", safe=""),
        "Jetbridge-Causation-Id": "cause",
        "Jetbridge-Correlation-Id": "root",
        "traceparent": "00-aaaa-bbbb-01",
        "Content-Type": "application/json",
        "X-Own": "value",
    }

    (event,) = seen_by_handler(world, (message, headers))

    assert (event.event_id, event.type, event.schema_version) == ("e-1", "order.placed", 1)
    assert event.payload == {"id": 7, "total": "9.90", "lines": [1, 2.5, None, True, {"a": "é"}]}
    assert (event.resource_type, event.resource_id, event.key) == ("order", "7", "customer 5/ü%")
    assert (event.producer, event.source) == ("shop", world.shop)
    assert event.occurred_at == datetime(2026, 11, 22, 2, 51, 40, 250_000, tzinfo=UTC)
    assert event.trace_id == "6ec405f8bf03239f"
    assert (event.causation_id, event.correlation_id) == ("cause", "root")
    assert event.headers["traceparent"] == "00-aaaa-bbbb-01"
    assert event.headers["X-Own"] == "value"
    assert not [name for name in event.headers if name.lower().startswith("nats-")]
    assert (event.attempt, event.subject) == (1, f"{world.shop}.sync.{world.billing}")
    assert (event.stream, event.sequence) == (f"jetbridge-{world.shop}", 1)
    assert event.cancelled is False


def test_the_handler_gets_a_delivery_which_is_an_event(world):
    """Handlers get ``Delivery(Event)``."""
    (event,) = seen_by_handler(world, body())

    assert isinstance(event, jetbridge.Delivery)
    assert isinstance(event, jetbridge.Event)


def test_the_shortest_message_of_the_contract_is_handled(world):
    """Optional members may be missing: type and payload suffice."""
    (event,) = seen_by_handler(world, b'{"event_type":"order.placed","payload":{}}')

    assert event.type == "order.placed"
    assert (event.resource_type, event.resource_id, event.key) == ("order", "", "")
    assert event.occurred_at is None
    assert event.schema_version == 1


def test_an_effect_is_committed_once_for_two_copies(world):
    """The same event twice, under two message ids, has one effect; the second copy is counted."""

    @jetbridge.handler("order.placed", name="t.invoice")
    def invoice(event: jetbridge.Delivery) -> None:
        Invoice.objects.create(order_id=7, event_id=str(event.event_id), total=1)

    world.send((body("x"), {"Nats-Msg-Id": "a"}), (body("x"), {"Nats-Msg-Id": "b"}), body("x"))
    report = world.consume()

    assert Invoice.objects.count() == 1
    (row,) = inbox()
    assert (row.state, row.duplicates, row.attempts) == ("processed", 2, 1)
    assert (report.totals.handled, report.totals.duplicates) == (1, 2)
    assert world.stored() == []  # a work queue: acknowledged is gone


def test_ids_are_compared_byte_for_byte(world):
    """Case, spaces and Unicode forms make different ids, on every database."""
    ids = ["abc", "ABC", "abc ", " abc", "é", "e\u0301", "ss", "ß", "1", "01"]

    seen = seen_by_handler(world, *[body(one) for one in ids])

    assert [event.event_id for event in seen] == ids
    assert len(inbox()) == len(ids)


def test_the_body_names_the_event_before_any_header(world):
    """Event id: body first."""
    (event,) = seen_by_handler(world, (body("of-body"), {"Nats-Msg-Id": "m", "nats-msg-id": "of-header"}))

    assert event.event_id == "of-body"


def test_without_an_id_in_the_body_the_lower_case_header_names_the_event(world):
    """Event id: then ``nats-msg-id``."""
    headers = {"Nats-Msg-Id": f"m:{world.billing}", "nats-msg-id": "of-header"}

    (event,) = seen_by_handler(world, (body(None), headers))

    assert event.event_id == "of-header"


def test_without_both_the_message_id_less_its_destination_names_the_event(world):
    """Event id: then ``Nats-Msg-Id`` less ``:<dest>``; a colon of the id's own stays."""
    (event,) = seen_by_handler(world, (body(None), {"Nats-Msg-Id": f"a:b:{world.billing}"}))

    assert event.event_id == "a:b"


def test_a_message_without_any_id_is_named_after_its_place_and_has_one_effect(world):
    """Event id: last ``<stream>:<sequence>:<stored ns>``; two such messages are two events."""
    first, second = seen_by_handler(world, body(None), body(None))

    stream, sequence, stored_ns = str(first.event_id).split(":")
    assert (stream, sequence) == (f"jetbridge-{world.shop}", "1")
    assert int(stored_ns) > 1_700_000_000 * 10**9
    assert first.event_id != second.event_id


def test_header_names_are_read_without_case(world):
    """``JETBRIDGE-KEY`` is ``Jetbridge-Key``."""
    headers = {"JETBRIDGE-KEY": "a%20b", "jetbridge-correlation-id": "root", "NATS-MSG-ID": "id-1"}

    (event,) = seen_by_handler(world, (body(None), headers))

    assert (event.key, event.correlation_id, event.event_id) == ("a b", "root", "id-1")


def test_the_source_is_the_subject_and_not_the_bodys_claim(world):
    """``producer`` in the body proves nothing; identity is by the subject's first token."""
    (event,) = seen_by_handler(world, body("1", producer="somebody-else"))

    assert (event.source, event.producer) == (world.shop, "somebody-else")
    assert inbox()[0].source == world.shop


def test_events_of_one_key_are_handled_in_stream_order(world):
    """P4: thirty events of three keys, each key in the order of the stream."""
    messages = [body(str(n), resource_id=str(n % 3), payload={"id": n % 3, "n": n}) for n in range(30)]

    seen: list[jetbridge.Delivery] = []

    @jetbridge.handler(">", name="t.watch")
    def watch(event: jetbridge.Delivery) -> None:
        seen.append(event)

    world.send(*messages)
    world.consume()

    for key in range(3):
        assert [event.payload["n"] for event in seen if event.resource_id == str(key)] == [
            n for n in range(30) if n % 3 == key
        ]


def test_several_handlers_of_one_event_are_independent(world):
    """One fails and dead-letters, the other's effect stands and is not repeated; the message is acked once."""

    @jetbridge.handler("order.placed", name="t.good")
    def good(event: jetbridge.Delivery) -> None:
        Invoice.objects.create(order_id=7, event_id=str(event.event_id), total=1)

    @jetbridge.handler("order.*", name="t.bad")
    def bad(event: jetbridge.Delivery) -> None:
        raise ValueError("never")

    world.send(body("1"))
    world.consume()

    assert Invoice.objects.count() == 1
    assert {row.handler: row.state for row in inbox()} == {"t.good": "processed", "t.bad": "dead"}
    assert [(letter.handler, letter.attempts) for letter in dead_letters()] == [("t.bad", 3)]
    assert world.stored() == []


def test_a_handlers_own_publish_carries_the_handled_event_as_its_cause(world):
    """Causation is the handled event; the correlation is the first event of the chain."""

    @jetbridge.handler("order.placed", name="t.answer")
    def answer(event: jetbridge.Delivery) -> None:
        jetbridge.publish("invoice.created", {"id": 1})

    world.send(
        (body("root-less"), {}), (body("child"), {"Jetbridge-Correlation-Id": "the root", "x-other": "1"})
    )
    world.consume()
    world.relay_of_billing()

    first, second = sorted(
        world.stored(world.billing),
        key=lambda message: message.headers["Jetbridge-Causation-Id"],
        reverse=True,
    )
    assert first.headers["Jetbridge-Causation-Id"] == "root-less"
    assert first.headers["Jetbridge-Correlation-Id"] == "root-less"
    assert second.headers["Jetbridge-Causation-Id"] == "child"
    assert second.headers["Jetbridge-Correlation-Id"] == "the%20root"
    assert "x-other" not in second.headers
    assert json.loads(first.body)["trace_id"] == "6ec405f8bf03239f"


def test_an_unknown_event_is_a_dead_letter_by_default(world):
    """``UNKNOWN_EVENTS="dead_letter"``: what nobody wants is not silently dropped."""
    world.send(body("1", "order.unheard"))
    report = world.consume()

    (letter,) = dead_letters()
    assert (letter.reason, letter.handler, letter.event_type) == ("unknown_event", "", "order.unheard")
    assert "order.unheard" in letter.error
    assert world.shop in letter.error
    assert report.totals.dead == 1


def test_an_unknown_event_is_dropped_where_the_settings_say_so(world):
    """``UNKNOWN_EVENTS="ignore"``."""
    world.send(body("1", "order.unheard"))
    world.consume(UNKNOWN_EVENTS="ignore")

    assert (dead_letters(), inbox(), world.stored()) == ([], [], [])


def test_ignored_patterns_are_dropped_and_others_are_not(world):
    """``IGNORED_EVENTS=["audit.>"]`` takes the unknown audit events only."""
    world.send(body("1", "audit.login.failed"), body("2", "audits.x"))
    world.consume(IGNORED_EVENTS=["audit.>"])

    assert [letter.event_type for letter in dead_letters()] == ["audits.x"]
    assert world.stored() == []


def test_a_handler_wins_over_an_ignored_pattern(world):
    """An event that somebody wants is handled, whatever ``IGNORED_EVENTS`` says."""
    seen: list[str] = []

    @jetbridge.handler("audit.login", name="t.audit")
    def audit(event: jetbridge.Delivery) -> None:
        seen.append(event.type)

    world.send(body("1", "audit.login"))
    world.consume(IGNORED_EVENTS=["audit.>"])

    assert seen == ["audit.login"]


def test_a_handler_of_another_source_does_not_get_the_event(world):
    """``source=`` restricts a handler to one app."""

    @jetbridge.handler("order.placed", name="t.other", source="somebody-else")
    def other(event: jetbridge.Delivery) -> None:
        raise AssertionError("not mine")

    world.send(body("1"))
    world.consume()

    assert [letter.reason for letter in dead_letters()] == ["unknown_event"]

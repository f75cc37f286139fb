"""
The messages the Ruby gem jetstream_bridge 7.1 really sends are handled as they stand.

The samples were recorded from the gem; the bytes are pasted, not built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jetbridge
from tests.worlds import World, dead_letters, inbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One recorded message and what the handler must be given."""

    name: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, Any]


ID = "eda8005f-cd8f-42bf-89f4-68e6ad52cd77"

SAMPLES = [
    Sample(
        name="keywords style: event_type created, resource_type user",
        headers={"nats-msg-id": ID},
        body=(
            b'{"event_id":"eda8005f-cd8f-42bf-89f4-68e6ad52cd77","schema_version":1,"event_type":"created",'
            b'"producer":"api","resource_id":"42","occurred_at":"2026-11-22T02:51:40Z",'
            b'"trace_id":"6ec405f8bf03239f","resource_type":"user",'
            b'"payload":{"id":42,"name":"Ada","nested":{"a":[1,2.5,null,true]}}}'
        ),
        expected={
            "event_id": ID,
            "type": "user.created",
            "resource_type": "user",
            "resource_id": "42",
            "key": "user:42",
            "producer": "api",
            "trace_id": "6ec405f8bf03239f",
            "occurred_at": datetime(2026, 11, 22, 2, 51, 40, tzinfo=UTC),
            "payload": {"id": 42, "name": "Ada", "nested": {"a": [1, 2.5, None, True]}},
        },
    ),
    Sample(
        name="whole type style: user.created",
        headers={"nats-msg-id": "e-2"},
        body=(
            b'{"event_id":"e-2","schema_version":1,"event_type":"user.created","producer":"api",'
            b'"resource_id":"42","occurred_at":"2026-11-22T02:51:40Z","trace_id":"6ec405f8bf03239f",'
            b'"resource_type":"user","payload":{"id":42}}'
        ),
        expected={"event_id": "e-2", "type": "user.created", "resource_type": "user", "key": "user:42"},
    ),
    Sample(
        name="a type without a dot has the resource type event",
        headers={"nats-msg-id": "e-3"},
        body=(
            b'{"event_id":"e-3","schema_version":1,"event_type":"ping","producer":"api","resource_id":"",'
            b'"occurred_at":"2026-11-22T02:51:40Z","trace_id":"6ec405f8bf03239f","resource_type":"event",'
            b'"payload":{}}'
        ),
        expected={"event_id": "e-3", "type": "ping", "resource_type": "event", "resource_id": "", "key": ""},
    ),
    Sample(
        name="hash style: a number as resource_id, schema_version 2, another producer",
        headers={"nats-msg-id": "e-4"},
        body=(
            b'{"event_id":"e-4","schema_version":2,"event_type":"user.created","producer":"other",'
            b'"resource_id":99,"occurred_at":"2026-11-22T02:51:40Z","trace_id":"6ec405f8bf03239f",'
            b'"resource_type":"user","payload":{"id":99}}'
        ),
        expected={"resource_id": "99", "key": "user:99", "schema_version": 2, "producer": "other"},
    ),
    Sample(
        name="a time with an offset",
        headers={"nats-msg-id": "e-5"},
        body=(
            b'{"event_id":"e-5","schema_version":1,"event_type":"user.created","producer":"api",'
            b'"resource_id":"1","occurred_at":"2026-05-06T07:08:09+02:00","trace_id":"6ec405f8bf03239f",'
            b'"resource_type":"user","payload":{"id":1}}'
        ),
        expected={"occurred_at": datetime(2026, 5, 6, 5, 8, 9, tzinfo=UTC)},
    ),
    Sample(
        name="hash style: an unreadable time passes unchecked",
        headers={"nats-msg-id": "e-6"},
        body=(
            b'{"event_id":"e-6","schema_version":1,"event_type":"user.created","producer":"api",'
            b'"resource_id":"1","occurred_at":"yesterday, about noon","trace_id":"6ec405f8bf03239f",'
            b'"resource_type":"user","payload":{"id":1}}'
        ),
        expected={"event_id": "e-6", "occurred_at": None},
    ),
    Sample(
        name="values as ActiveSupport writes them, raw UTF-8, unescaped <, & and U+2028",
        headers={"nats-msg-id": "e-7"},
        body=(
            '{"event_id":"e-7","schema_version":1,"event_type":"user.created","producer":"api",'
            '"resource_id":"1","occurred_at":"2026-11-22T02:51:40Z","trace_id":"6ec405f8bf03239f",'
            '"resource_type":"user","payload":{"id":1,"at":"2026-01-02T03:04:05.678Z","price":"1.1",'
            '"big":12345678901234567890123,"float":1.0e+20,"text":"<&\u2028☃"}}'
        ).encode(),
        expected={
            "payload": {
                "id": 1,
                "at": "2026-01-02T03:04:05.678Z",
                "price": "1.1",
                "big": 12345678901234567890123,
                "float": 1e20,
                "text": "<&\u2028☃",
            }
        },
    ),
    Sample(
        name="produced_at, unknown members, no optional ones",
        body=(
            b'{"event_id":"e-8","event_type":"user.created","produced_at":"2026-11-22T02:51:40Z",'
            b'"shard":3,"meta":{"a":[]},"payload":{"id":1}}'
        ),
        expected={
            "event_id": "e-8",
            "schema_version": 1,
            "resource_type": "user",
            "trace_id": "",
            "producer": "",
            "occurred_at": datetime(2026, 11, 22, 2, 51, 40, tzinfo=UTC),
        },
    ),
    Sample(
        name="a string as schema_version, null members",
        body=(
            b'{"event_id":"e-9","schema_version":"2","event_type":"user.created","resource_id":null,'
            b'"resource_type":null,"trace_id":null,"occurred_at":null,"payload":{"id":1}}'
        ),
        expected={"event_id": "e-9", "schema_version": 2, "resource_id": "", "key": "", "occurred_at": None},
    ),
    Sample(
        name="duplicate members: the last wins",
        body=b'{"event_id":"no","event_id":"e-10","event_type":"user.created","payload":{"a":1,"a":2}}',
        expected={"event_id": "e-10", "payload": {"a": 2}},
    ),
]


def test_the_messages_of_the_gem_are_handled_as_they_stand(world: World):
    """Body and headers untouched: one effect each, no dead letter, and every member read as the table says."""
    seen: dict[int, jetbridge.Delivery] = {}

    @jetbridge.handler(">", name="t.watch")
    def watch(event: jetbridge.Delivery) -> None:
        seen[event.sequence] = event

    world.send(*[(sample.body, sample.headers) for sample in SAMPLES])
    report = world.consume()

    assert [(letter.sequence, letter.error) for letter in dead_letters()] == []
    assert report.totals.handled == len(SAMPLES)
    for sequence, sample in enumerate(SAMPLES, 1):
        read = {name: getattr(seen[sequence], name) for name in sample.expected}
        assert read == dict(sample.expected), sample.name


def test_an_empty_event_id_does_not_merge_two_events(world):
    """The gem can send ``""`` as id, with an empty header: each such message is an event of its own."""
    seen: list[jetbridge.Delivery] = []

    @jetbridge.handler("user.created", name="t.watch")
    def watch(event: jetbridge.Delivery) -> None:
        seen.append(event)

    empty = (
        b'{"event_id":"","schema_version":1,"event_type":"created","producer":"api","resource_id":"42",'
        b'"occurred_at":"2026-11-22T02:51:40Z","trace_id":"6ec405f8bf03239f","resource_type":"user",'
        b'"payload":{"id":42}}'
    )
    block = b"NATS/1.0\r\nnats-msg-id: \r\n\r\n"
    world.send_raw((block, empty), (block, empty))
    world.consume()

    assert len({event.event_id for event in seen}) == 2
    assert all(str(event.event_id).startswith(f"jetbridge-{world.shop}:") for event in seen)


def test_the_same_event_from_the_gem_twice_has_one_effect(world):
    """The server does not deduplicate the gem's lower-case header; the inbox does."""
    seen: list[str] = []

    @jetbridge.handler("user.created", name="t.watch")
    def watch(event: jetbridge.Delivery) -> None:
        seen.append(str(event.event_id))

    sample = SAMPLES[0]
    block = b"NATS/1.0\r\nnats-msg-id: eda8005f-cd8f-42bf-89f4-68e6ad52cd77\r\n\r\n"
    world.send_raw((block, sample.body), (block, sample.body))
    assert len(world.stored()) == 2
    world.consume()

    assert seen == [ID]
    assert [row.duplicates for row in inbox()] == [1]


def test_the_same_event_under_each_form_of_the_id_is_one_event(world):
    """Body id, header of the gem, header of jetbridge, and both: never two identities."""
    seen: list[str] = []

    @jetbridge.handler("user.created", name="t.watch")
    def watch(event: jetbridge.Delivery) -> None:
        seen.append(str(event.event_id))

    with_id = b'{"event_id":"X","event_type":"user.created","payload":{}}'
    without = b'{"event_type":"user.created","payload":{}}'
    full = f"X:{world.billing}"
    world.send_raw(
        (b"NATS/1.0\r\nnats-msg-id: X\r\n\r\n", without),
        (f"NATS/1.0\r\nNats-Msg-Id: {full}\r\nnats-msg-id: X\r\n\r\n".encode(), without),
    )
    world.send(with_id)
    world.consume()
    # The same message id would be dropped by the stream within its window, so this form goes alone.
    world.send((without, {"nats-msg-id": "X", "Other": "1"}))
    world.consume()

    assert seen == ["X"]
    assert [row.duplicates for row in inbox()] == [3]


def test_the_id_of_the_lower_case_header_wins_whatever_the_order_of_both(world):
    """``Nats-Msg-Id`` and ``nats-msg-id`` are two headers; their order on the wire means nothing to us."""
    seen: list[str] = []

    @jetbridge.handler("user.created", name="t.watch")
    def watch(event: jetbridge.Delivery) -> None:
        seen.append(str(event.event_id))

    without = b'{"event_type":"user.created","payload":{}}'
    world.send_raw(
        (b"NATS/1.0\r\nnats-msg-id: A\r\nNats-Msg-Id: x1\r\n\r\n", without),
        (b"NATS/1.0\r\nNats-Msg-Id: x2\r\nnats-msg-id: B\r\n\r\n", without),
    )
    world.consume()

    assert sorted(seen) == ["A", "B"]


def test_a_payload_that_is_a_list_is_a_dead_letter_that_says_so(world):
    """``payload`` must be an object: the contract of both sides."""
    world.send(b'{"event_id":"1","event_type":"user.created","payload":[1]}')
    world.consume()

    (letter,) = dead_letters()
    assert (letter.reason, letter.event_id) == ("malformed_json", "1")
    assert "payload must be a JSON object" in letter.error

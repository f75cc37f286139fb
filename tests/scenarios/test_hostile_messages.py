"""
Whatever lies in the stream, the consumer handles it or dead-letters it with a reason, and goes on.

Everything here is sent past jetbridge, as a broken or hostile producer would.
"""

from __future__ import annotations

import json
import logging

import pytest

import jetbridge
from tests.worlds import World, body, dead_letters, inbox, outbox

OBJECT = {"event_type": "order.placed", "payload": {}}


def with_members(**members: object) -> bytes:
    """A valid body with some members replaced, without an id."""
    return json.dumps({**OBJECT, **members}).encode()


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b"  \r\n",
    "null": b"null",
    "true": b"true",
    "a number": b"17",
    "a string": b'"order.placed"',
    "a list": b"[]",
    "a list of an event": b'[{"event_type":"order.placed","payload":{}}]',
    "cut off": body()[:-1],
    "two objects": body() + body(),
    "trailing text": body() + b" x",
    "single quotes": b"{'event_type':'order.placed','payload':{}}",
    "NaN": b'{"event_type":"order.placed","payload":{"a":NaN}}',
    "Infinity": b'{"event_type":"order.placed","payload":{"a":-Infinity}}',
    "a byte order mark": b"\xef\xbb\xbf" + body(),
    "UTF-16": body().decode().encode("utf-16"),
    "Latin-1": '{"event_type":"order.placed","payload":{"a":"\xe4"}}'.encode("latin-1"),
    "NUL bytes": b"\x00\x00\x00\x00",
    "a raw control character in a string": b'{"event_type":"order.\x00placed","payload":{}}',
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    "deep nesting": b"[" * 100_000,
    "deep nesting of objects": b'{"event_type":"order.placed","payload":' + b'{"a":' * 50_000,
    "an integer of 10,000 digits": b'{"event_type":"order.placed","payload":{"a":' + b"9" * 10_000 + b"}}",
    "no type": b'{"payload":{}}',
    "an empty type": with_members(event_type=""),
    "a number as type": with_members(event_type=5),
    "null as type": with_members(event_type=None),
    "a type of 10,000 characters": with_members(event_type="a" * 10_000),
    "NUL in the type": with_members(event_type="order\x00placed"),
    "a lone surrogate in the type": with_members(event_type="order.\ud800"),
    "a long type out of two": with_members(event_type="b" * 200, resource_type="a" * 200),
    "no payload": b'{"event_type":"order.placed"}',
    "null as payload": with_members(payload=None),
    "a list as payload": with_members(payload=[1]),
    "a string as payload": with_members(payload="{}"),
    "a list as id": with_members(event_id=["1"]),
    "true as id": with_members(event_id=True),
    "an id of 10,000 characters": with_members(event_id="i" * 10_000),
    "a number of 400 digits as id": with_members(event_id=10**400),
    "NUL in the id": with_members(event_id="a\x00b"),
    "a lone surrogate in the id": with_members(event_id="a\udfff"),
    "an object as resource_id": with_members(resource_id={}),
    "a list as resource_type": with_members(resource_type=[]),
    "an object as trace_id": with_members(trace_id={}),
    "true as producer": with_members(producer=True),
}

ODD_BUT_GOOD: dict[str, bytes] = {
    "an id of 255 characters": with_members(event_id="i" * 255),
    "an id of 255 snowmen": with_members(event_id="☃" * 255),
    "a number as id": with_members(event_id=12),
    "NUL in the payload": with_members(payload={"a": "\x00"}),
    "lone surrogates in the payload": with_members(payload={"\ud800": "\udfff"}),
    "NUL in the resource id": with_members(resource_id="a\x00b"),
    "a lone surrogate in the resource type": with_members(resource_type="\ud800"),
    "a resource id of 10,000 characters": with_members(resource_id="r" * 10_000),
    "a trace id of 10,000 characters": with_members(trace_id="t" * 10_000),
    "NUL in the trace id": with_members(trace_id="\x00"),
    "a lone surrogate in the trace id": with_members(trace_id="\ud800"),
    "a producer of 10,000 characters": with_members(producer="p" * 10_000),
    "a schema version that is no number": with_members(schema_version="three"),
    "a schema version that is a list": with_members(schema_version=[]),
    "an endless schema version": b'{"event_type":"order.placed","payload":{},"schema_version":1e999}',
    "a time before the first": with_members(occurred_at="0001-01-01T00:00:00+14:00"),
    "the first time": with_members(occurred_at="0001-01-01T00:00:00Z"),
    "the last time": with_members(occurred_at="9999-12-31T23:59:59.999999Z"),
    "a time after the last": with_members(occurred_at="9999-12-31T23:59:59-14:00"),
    "the 30th of February": with_members(occurred_at="2026-02-30T00:00:00Z"),
    "a number as time": with_members(occurred_at=1_700_000_000),
    "a list as time": with_members(occurred_at=[2026]),
    "a type with odd characters": with_members(event_type="order..> *\n.placed"),
}


@pytest.fixture
def watched(handlers: None) -> list[jetbridge.Delivery]:
    """What the handler of everything is given."""
    seen: list[jetbridge.Delivery] = []

    @jetbridge.handler(">", name="t.watch")
    def watch(event: jetbridge.Delivery) -> None:
        seen.append(event)

    return seen


@pytest.fixture
def world(transactional_db: None, nats_server, handlers: None) -> World:
    """A world in which the outcome of a message never waits."""
    return World(nats_server.url, MAX_ATTEMPTS=1).provision()


def test_every_malformed_body_is_a_dead_letter_with_its_reason_and_the_consumer_goes_on(world, watched):
    """Each keeps its bytes and says what was found; the good message behind them all is handled."""
    world.send(*MALFORMED.values(), body("good"))
    report = world.consume()

    letters = dead_letters()
    assert [bytes(letter.body) for letter in letters] == list(MALFORMED.values())
    for name, letter in zip(MALFORMED, letters, strict=True):
        assert letter.reason == "malformed_json", name
        assert len(letter.error) > 15, name
        assert letter.error_class == "MalformedMessage", name
        assert (letter.handler, letter.state, letter.event_type) == ("", "open", ""), name
    assert [event.event_id for event in watched] == ["good"]
    assert report.totals.dead == len(MALFORMED)
    assert world.stored() == []


@pytest.mark.parametrize("name", ["a list as payload", "a number as type", "an id of 10,000 characters"])
def test_the_reason_names_what_was_found_and_what_was_expected(world, watched, name):
    """A dead letter's error is for the producer's programmer."""
    world.send(MALFORMED[name])
    world.consume()

    (letter,) = dead_letters()
    found, expected = {
        "a list as payload": ("[1]", "a JSON object"),
        "a number as type": ("5", "a non-empty string"),
        "an id of 10,000 characters": ("10000 characters", "at most 255"),
    }[name]
    assert found in letter.error
    assert expected in letter.error


def test_a_malformed_message_keeps_the_id_its_sender_knows(world, watched):
    """So that the sender's support can find it; an unusable id is replaced by the place."""
    world.send(
        with_members(event_id="known", payload=[]),
        (b"no json", {"nats-msg-id": "of-header"}),
        MALFORMED["an id of 10,000 characters"],
    )
    world.consume()

    ids = [letter.event_id for letter in dead_letters()]
    assert ids[:2] == ["known", "of-header"]
    assert ids[2].startswith(f"jetbridge-{world.shop}:3:")


def test_odd_messages_that_are_no_fault_are_handled(world, watched):
    """The contract allows them, so they reach the handler."""
    world.send(*ODD_BUT_GOOD.values())
    world.consume()

    assert [(letter.error, bytes(letter.body)[:80]) for letter in dead_letters()] == []
    assert len(watched) == len(ODD_BUT_GOOD)


def test_odd_messages_can_be_dead_lettered(world, handlers):
    """Whatever a message contains, giving it up cannot fail on content."""

    @jetbridge.handler(">", name="t.reject")
    def reject(event: jetbridge.Delivery) -> None:
        raise jetbridge.Reject("NUL \x00, surrogate \udc80, long " + "x" * 100_000)

    world.send(*ODD_BUT_GOOD.values())
    world.consume()
    report = world.relay_of_billing()

    letters = dead_letters()
    assert [bytes(letter.body) for letter in letters] == list(ODD_BUT_GOOD.values())
    assert {letter.reason for letter in letters} == {"rejected"}
    assert all(r"NUL \x00, surrogate \udc80, long xxx" in letter.error for letter in letters)
    assert (report.totals.published, report.totals.refused) == (len(letters), 0)


def test_a_handler_of_an_odd_message_can_publish(world, handlers):
    """What a child event inherits (cause, correlation, trace) never makes the handler's publish fail."""

    @jetbridge.handler(">", name="t.answer")
    def answer(event: jetbridge.Delivery) -> None:
        jetbridge.publish("answer.given", {"id": 1})

    world.send(
        *ODD_BUT_GOOD.values(),
        (body("long"), {"Jetbridge-Correlation-Id": "c" * 10_000}),
        (body("nul"), {"Jetbridge-Correlation-Id": "a%00b", "Jetbridge-Causation-Id": "%00"}),
        (body("bytes"), {"Jetbridge-Correlation-Id": "%ff%ed%a0%80"}),
    )
    world.consume()
    report = world.relay_of_billing()

    assert [(letter.event_id, letter.error) for letter in dead_letters()] == []
    assert report.totals.published == len(ODD_BUT_GOOD) + 3


def test_a_key_of_10000_characters_keeps_its_order_and_its_identity(world, handlers):
    """It is cut with a digest where it is stored; the handler sees all of it."""
    seen: list[tuple[str, int]] = []

    @jetbridge.handler(">", name="t.watch")
    def watch(event: jetbridge.Delivery) -> None:
        seen.append((str(event.key), int(str(event.payload["n"]))))

    keys = ["k" * 10_000 + end for end in ("a", "b")]
    world.send(
        *[
            (body(str(n), payload={"n": n}), {"Jetbridge-Key": keys[n % 2], "Nats-Msg-Id": str(n)})
            for n in range(20)
        ]
    )
    world.consume()

    for number, key in enumerate(keys):
        assert [n for found, n in seen if found == key] == list(range(number, 20, 2))
    stored = {row.key for row in inbox()}
    assert len(stored) == 2
    assert all(len(key) <= 255 for key in stored)


def test_a_key_with_nul_or_broken_percent_signs_is_handled(world, watched):
    """``%00`` is stored escaped, ``%zz`` and ``%ff`` as they can be read."""
    for number, key in enumerate(["%00", "a%zz", "%ff", "%"]):
        world.send((body(str(number)), {"Jetbridge-Key": key}))
    world.consume()

    assert {event.key for event in watched} == {"\x00", "a%zz", "\ufffd", "%"}
    assert [row.key for row in inbox()] == [r"\x00", "a%zz", "\ufffd", "%"]


def test_two_megabytes_are_handled_and_dead_lettered(transactional_db, make_nats_server, watched, caplog):
    """
    Where the server allows them: a good one is handled, a malformed one keeps its body, its notice is too
    large to send and stays visible as refused, and a good message behind both is handled.
    """
    caplog.set_level(logging.CRITICAL, logger="jetbridge.relay")
    world = World(make_nats_server("max_payload: 8MB").url).provision()
    good = body("big", payload={"id": 7, "blob": "x" * 2_000_000})
    bad = b"{" + b" " * 2_000_000
    world.send(good, bad, body("after"))
    world.consume()
    report = world.relay_of_billing()

    watched.sort(key=lambda event: event.sequence)
    assert [event.event_id for event in watched] == ["big", "after"]
    assert len(str(watched[0].payload["blob"])) == 2_000_000
    (letter,) = dead_letters()
    assert bytes(letter.body) == bad
    assert (report.totals.published, report.left) == (0, 1)
    (row,) = outbox()
    assert (row.state, row.kind, row.error_code) == ("refused", "dead_letter", "too_large")
    assert row.error
    assert bytes(row.body) == bad


def test_a_notice_that_is_too_large_by_its_headers_alone_is_born_refused(world, handlers):
    """The original fits, the facts of the failure push it over the limit: the dead letter is committed all the same."""

    @jetbridge.handler(">", name="t.reject")
    def reject(event: jetbridge.Delivery) -> None:
        raise jetbridge.Reject("no")

    frame = body("1", payload={"blob": ""})
    world.send(body("1", payload={"blob": "x" * (1_000_000 - len(frame))}), body("2"))
    world.consume()

    assert [letter.event_id for letter in dead_letters()] == ["1", "2"]
    assert {row.event_id: (row.state, row.error_code) for row in outbox()} == {
        "1": ("refused", "too_large"),
        "2": ("ready", ""),
    }


def test_two_malformed_messages_without_an_id_are_two_dead_letters(world, watched):
    """Equal bytes at two places of the stream are two messages."""
    world.send(b"broken", b"broken")
    world.consume()

    assert len({letter.event_id for letter in dead_letters()}) == 2


def test_a_second_copy_of_a_malformed_message_is_a_duplicate(world, watched):
    """By its id; one dead letter is enough for an operator."""
    bad = with_members(event_id="x", payload=[])
    world.send(bad, bad)
    report = world.consume()

    assert (len(dead_letters()), report.totals.dead, report.totals.duplicates) == (1, 1, 1)
    assert [row.duplicates for row in inbox()] == [1]


def test_the_corrected_message_under_the_same_id_is_handled(world, watched):
    """The producer repairs its code and sends the event again: the malformed copy does not block it."""
    world.send(with_members(event_id="x", payload=[]), with_members(event_id="x"))
    world.consume()

    assert [event.event_id for event in watched] == ["x"]

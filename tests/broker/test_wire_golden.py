"""
The messages that jetbridge puts into a stream are, byte for byte, those of the golden files.

Other languages read them: a change of a golden file is a change of the contract. Headers are compared as
raw bytes, since order and case of their names carry meaning.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import jetbridge
from jetbridge.event import Delivery
from tests.worlds import Raw, World, body, dead_letters, no_handlers

GOLDEN = Path(__file__).parent.parent / "golden"
FIXED: dict[str, Any] = {
    "event_id": "0199c1a2-0000-7000-8000-000000000001",
    "trace_id": "6ec405f8bf03239f",
    "occurred_at": datetime(2026, 11, 22, 2, 51, 40, tzinfo=UTC),
}

CASES: dict[str, dict[str, Any]] = {
    "plain": {
        "type": "order.placed",
        "payload": {"id": 42, "name": "Ada", "nested": {"a": [1, 2.5, None, True]}},
    },
    "no_key": {"type": "ping", "payload": {}},
    "own_key": {"type": "order.placed", "payload": {"id": 42}, "key": "customer 5/ü%☃~._-"},
    "default_key_given": {"type": "order.placed", "payload": {"id": 42}, "key": "order:42"},
    "resource_given": {
        "type": "created",
        "payload": {"id": 1},
        "resource_type": "user",
        "resource_id": "ä 1",
    },
    "causes_and_headers": {
        "type": "order.placed",
        "payload": {"id": 42},
        "key": "k",
        "causation_id": "cause 1%",
        "correlation_id": "Wurzel ü",
        "headers": {
            "a-own": "1",
            "tracestate": "v=1",
            "Content-Type": "application/json",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "Z-Own": "value: with, colon",
        },
    },
    "values": {
        "type": "order.placed",
        "payload": {
            "id": "é",
            "text": '<&\u2028☃\u0000\n"\\/',
            "big": 12345678901234567890123,
            "float": 1e20,
            "at": datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC),
        },
        "occurred_at": datetime(2026, 5, 6, 7, 8, 9, 120_000, tzinfo=timezone(timedelta(hours=2))),
    },
}


def golden(name: str, message: Raw, world: World, **replaced: str) -> None:
    """Compare a message with its file; names of this run stand there as ``{shop}`` and ``{billing}``."""

    def fixed(text: str) -> str:
        for name_, value in {"shop": world.shop, "billing": world.billing, **replaced}.items():
            text = text.replace(value, f"{{{name_}}}")
        return text

    found = {
        "subject": fixed(message.subject),
        "headers": fixed(message.header_bytes.decode("ascii")).split("\r\n"),
        "body": fixed(message.body.decode("utf-8")),
    }
    file = GOLDEN / f"{name}.json"
    assert file.exists(), (
        f"{file} is missing; the message is:\n{json.dumps(found, indent=2, ensure_ascii=False)}"
    )
    assert found == json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture
def world(transactional_db, nats_server):
    with no_handlers():
        yield World(nats_server.url)


def publish_one(world: World, members: dict[str, Any]) -> Raw:
    with world.as_shop():
        jetbridge.publish_many([jetbridge.Event(**{**FIXED, **members})])
    world.relay()
    (message,) = world.stored()
    return message


@pytest.mark.parametrize("name", CASES)
def test_a_published_event_is_the_message_of_its_golden_file(world, name):
    """Subject, header order and case, body members and their order, escapes, percent-encoding."""
    golden(name, publish_one(world.provision(), CASES[name]), world)


def test_a_destination_without_message_id_has_the_lower_case_header_alone(world):
    """``{"message_id": False}``: what a gem peer without inbox needs."""
    world.publisher["DESTINATIONS"] = {world.billing: {"message_id": False}}
    golden("without_message_id", publish_one(world.provision(), CASES["plain"]), world)


def test_a_partitioned_destination_gets_its_number_from_the_key(world):
    """The relay appends ``.<n>``, FNV-1a 32 of the key modulo n; the message id stays the same."""
    world.publisher["DESTINATIONS"] = {world.billing: {"partitions": 4}}
    world.consumer["SOURCES"] = {world.shop: {"partitions": 4}}
    golden("partitioned", publish_one(world.provision(), CASES["plain"]), world)


@pytest.mark.parametrize("number", range(4))
def test_the_answer_of_a_handler_carries_its_causes(world, number):
    """Causation and correlation of root, child and so on, after each combination of incoming headers."""
    world.provision()
    headers = {}
    if number & 1:
        headers["Jetbridge-Correlation-Id"] = "root"
    if number & 2:
        headers["Jetbridge-Causation-Id"] = "grandparent"

    @jetbridge.handler("order.placed", name="t.answer")
    def answer(event: Delivery) -> None:
        jetbridge.publish_many([jetbridge.Event("invoice.created", {"id": 5}, **{**FIXED, "trace_id": None})])

    world.send((body("parent"), headers))
    world.consume()
    world.relay_of_billing()

    (message,) = world.stored(world.billing)
    golden("answer_in_a_chain" if number & 1 else "answer_to_a_root", message, world)


@pytest.mark.parametrize("case", ["reject", "exhausted", "malformed", "unknown"])
def test_a_dead_letter_is_the_notice_of_its_golden_file(world, case):
    """Original body and headers less ``Nats-*``, the facts, the message id of its own, the term to live."""
    world.provision()
    data = b'{"event_id":"e-1",' if case == "malformed" else body("e-1")

    @jetbridge.handler("order.other" if case == "unknown" else "order.placed", name="t.fails")
    def fails(event: Delivery) -> None:
        if case == "reject":
            raise jetbridge.Reject("no such order: <ü ☃>")
        raise KeyError("item")

    world.send(
        (
            data,
            {
                "Nats-Msg-Id": f"e-1:{world.billing}",
                "nats-msg-id": "e-1",
                "X-Own": "1",
                "traceparent": "00-1-2-01",
            },
        )
    )
    world.consume()
    world.relay_of_billing()

    (letter,) = dead_letters()
    (message,) = world.stored(world.billing)
    context = json.loads(message.headers["x-dlq-context"])
    at = datetime.fromisoformat(context["published_at"])
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert context["published_at"] == at.isoformat().replace("+00:00", "Z")
    golden(
        f"dead_letter_{case}",
        message,
        world,
        published_at=context["published_at"],
        message_id=f"dlq:{letter.pk}:0",
        # The words of a parser's complaint change with the version of Python.
        **({"error": context["error_message"]} if case == "malformed" else {}),
    )


KEYS = [
    "ü",
    "a b",
    "100%",
    "%41",
    "%",
    " ",
    " lead and trail ",
    "a/b?c#d&e=f:g",
    "\u2028",
    "𝄞",
    "k" * 255,
    "☃" * 255,
]


def test_an_own_key_keeps_itself_across_the_wire(world):
    """Unicode, blanks, percent signs, 255 characters: the handler sees the key that was published."""
    world.provision()
    seen: dict[str, str | None] = {}

    @jetbridge.handler(">", name="t.watch")
    def watch(event: Delivery) -> None:
        seen[str(event.event_id)] = event.key

    with world.as_shop():
        for number, key in enumerate(KEYS):
            jetbridge.publish("order.placed", {"id": 1}, key=key, event_id=str(number))
        jetbridge.publish("order.placed", {"id": 1}, event_id="default")
        jetbridge.publish("order.placed", {}, event_id="none")
    world.relay()
    for message in world.stored():
        assert message.header_bytes.isascii()
        assert message.header_bytes.decode().isprintable() is False  # line ends, and nothing else unprintable
        assert message.header_bytes.replace(b"\r\n", b"").decode().isprintable()
    world.consume()

    assert seen == {**{str(n): key for n, key in enumerate(KEYS)}, "default": "order:1", "none": ""}


def test_an_event_arrives_as_it_was_published(world):
    """Everything a caller may give comes out of the other end unchanged."""
    world.provision()
    seen: list[Delivery] = []

    @jetbridge.handler("order.placed", name="t.watch")
    def watch(event: Delivery) -> None:
        seen.append(event)

    given = jetbridge.Event(**{**FIXED, **CASES["causes_and_headers"]})
    with world.as_shop():
        jetbridge.publish_many([given])
    world.relay()
    world.consume()

    (event,) = seen
    for name in (
        "event_id",
        "type",
        "payload",
        "key",
        "occurred_at",
        "trace_id",
        "causation_id",
        "correlation_id",
    ):
        assert getattr(event, name) == getattr(given, name), name
    assert {**given.headers}.items() <= {**event.headers}.items()
    assert (event.producer, event.source) == (world.shop, world.shop)

"""The events of a benchmark: so many, of one size, in turn over so many keys, each with its number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice

from jetbridge import envelope
from jetbridge.conf import Settings
from jetbridge.event import Event
from jetbridge.jetstream.results import Outgoing
from jetbridge.management.bench.plan import Plan
from jetbridge.outbox import drafts

TYPE = "bench.measured"


def events(plan: Plan, settings: Settings) -> Iterator[Event]:
    """``plan.events`` events, made one at a time."""
    padding = "x" * max(0, plan.size - len(_encoded(_event(0, 0, ""), settings)))
    for number in range(plan.events):
        yield _event(number, number % plan.keys, padding)


def size_of(plan: Plan, settings: Settings) -> int:
    """Bytes of the body of a typical event: more than asked for where the envelope alone is larger."""
    padding = "x" * max(0, plan.size - len(_encoded(_event(0, 0, ""), settings)))
    middle = plan.events // 2
    return len(_encoded(_event(middle, middle % plan.keys, padding), settings))


def chunks(plan: Plan, settings: Settings, size: int) -> Iterator[list[Event]]:
    """The events in lists of at most ``size``."""
    source = events(plan, settings)
    while chunk := list(islice(source, size)):
        yield chunk


def messages(plan: Plan, settings: Settings, *, ordered: bool) -> list[Outgoing]:
    """
    The same events as the relay would send them.

    Args:
        ordered: Whether two of one key may not be on their way at once.
    """
    targets = drafts.targets(settings, None, None)
    rows = (
        row
        for event in events(plan, settings)
        for row in drafts.drafts(drafts.complete(event, settings, None), targets, settings)
    )
    return [
        Outgoing(
            subject=row.subject,
            headers=envelope.wire_headers(row.message_id, row.headers),
            body=row.body,
            lane=row.key if ordered else None,
        )
        for row in rows
    ]


def identity(body: bytes) -> tuple[str, int]:
    """Key and number of an encoded event."""
    event = json.loads(body)
    return str(event["resource_id"]), int(event["payload"]["number"])


def order_violations(seen: Iterable[tuple[str, int]]) -> int:
    """How many events came after a later one of their key. A repeated one is no violation."""
    highest: dict[str, int] = {}
    violations = 0
    for key, number in seen:
        before = highest.get(key, -1)
        if number < before:
            violations += 1
        highest[key] = max(before, number)
    return violations


def _event(number: int, key: int, padding: str) -> Event:
    return Event(type=TYPE, payload={"id": str(key), "number": number, "text": padding})


def _encoded(event: Event, settings: Settings) -> bytes:
    return envelope.encode(drafts.complete(event, settings, None))

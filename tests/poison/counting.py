"""What the consuming service's database and the stream say when all is over."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import nats

from jetbridge.models import DeadLetter, Inbox
from testproject.billing.models import Invoice

BILLING = "billing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """
    Attributes:
        dead: ``<event id>:<reason>`` of each dead letter.
        starts_of_dead: The starts of each, which are deaths on record.
        unfinished: Events, poison excepted, whose inbox row is not processed.
        attempts_spent: Attempts beyond the first, of all events.
        blamed: Events, poison excepted, with a start that ended with its process; ``most_blamed`` counts those starts.
        duplicates: Copies that came after their event was settled.
    """

    effects: int
    doubled: int
    ghosts: int
    dead: list[str]
    starts_of_dead: list[int]
    unfinished: int
    attempts_spent: int
    blamed: int
    most_blamed: int
    duplicates: int


def settled() -> int:
    """Events that are processed or dead."""
    return Inbox.objects.using(BILLING).filter(state__in=("processed", "dead")).count()


def count(poisons: Collection[int]) -> Count:
    """
    Args:
        poisons: Their numbers.
    """
    invoices = Counter(Invoice.objects.using(BILLING).values_list("order_id", flat=True))
    rows = list(
        Inbox.objects.using(BILLING).values_list("event_id", "state", "attempts", "starts", "duplicates")
    )
    letters = DeadLetter.objects.using(BILLING)
    others = [row for row in rows if int(row[0][1:]) not in poisons]
    blamed = [starts - attempts for _, _, attempts, starts, _ in others if starts > attempts]
    return Count(
        effects=len(invoices),
        doubled=sum(times > 1 for times in invoices.values()),
        ghosts=len(set(invoices) & set(poisons)),
        dead=sorted(f"{event_id}:{reason}" for event_id, reason in letters.values_list("event_id", "reason")),
        starts_of_dead=sorted(letters.values_list("starts", flat=True)),
        unfinished=sum(state != "processed" for _, state, *_ in others),
        attempts_spent=sum(max(0, attempts - 1) for _, _, attempts, _, _ in rows),
        blamed=len(blamed),
        most_blamed=max(blamed, default=0),
        duplicates=sum(row[-1] for row in rows),
    )


def left_in_stream(url: str, stream: str, durable: str) -> int:
    """Messages that were not delivered, or not acknowledged."""

    async def main() -> int:
        client = await nats.connect(url, allow_reconnect=False)
        try:
            answer = await client.request(f"$JS.API.CONSUMER.INFO.{stream}.{durable}", timeout=5)
        finally:
            await client.close()
        info = json.loads(answer.data)
        return int(info["num_pending"]) + int(info["num_ack_pending"])

    return asyncio.run(main())

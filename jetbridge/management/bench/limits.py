"""What the bare tools do with the same events: the most that a measure could reach on this machine, today."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from django.db import transaction

from jetbridge.conf import Settings
from jetbridge.event import Event
from jetbridge.jetstream.publisher import Outgoing
from jetbridge.management.bench import streams
from jetbridge.management.bench.workspace import Workspace
from jetbridge.runtime.threads import Threads

SEQUENTIAL: Final = 2_000


async def sequential(settings: Settings, messages: Sequence[Outgoing]) -> float:
    """One message, its ack, the next: messages per second, from at most 2,000."""
    sample = messages[:SEQUENTIAL]
    async with streams.connected(settings, "relay") as connection:
        started = time.perf_counter()
        for message in sample:
            await streams.publish_all(connection, settings, [message])
        return len(sample) / (time.perf_counter() - started)


async def window(settings: Settings, messages: Sequence[Outgoing]) -> float:
    """The windowed publisher alone, with everything there is to send before it: messages per second."""
    async with streams.connected(settings, "relay") as connection:
        started = time.perf_counter()
        await streams.publish_all(connection, settings, messages)
        return len(messages) / (time.perf_counter() - started)


async def transactions(
    space: Workspace, events: Sequence[Event], work: Callable[[Event], None], threads: int
) -> float:
    """
    Consuming without a consumer: the same transactions, in as many threads, from a list in memory.

    Args:
        work: What the handler does; the transaction also writes an inbox row, as a hand-written inbox would.
    """
    using = space.plan.using

    def one(event: Event, sequence: int) -> None:
        with transaction.atomic(using=using):
            space.traces.add_inbox_row(f"bare-{sequence}", event.type, str(event.payload["id"]), sequence)
            work(event)

    def share(first: int) -> None:
        for sequence in range(first, len(events), threads):
            one(events[sequence], sequence)

    pool = Threads("bench", threads)
    try:
        await asyncio.gather(*(pool.run(_connect, space) for _ in range(threads)))
        started = time.perf_counter()
        await asyncio.gather(*(pool.run(share, first) for first in range(threads)))
        return len(events) / (time.perf_counter() - started)
    finally:
        pool.close()


def _connect(space: Workspace) -> None:
    space.rows.count()
    time.sleep(0.01)  # so that every thread of the pool takes one of these

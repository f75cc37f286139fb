"""``relay``: a backlog in the outbox, one relay process or several, the time until the last page is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import jetbridge
from jetbridge import signals
from jetbridge.management.bench import events, limits, relays, streams
from jetbridge.management.bench.meter import Mark, Meter, Progress
from jetbridge.management.bench.report import Sample, run_of
from jetbridge.management.bench.workspace import Workspace
from jetbridge.relay.process import run_relay

CHUNK: Final = 10_000


def measure(space: Workspace) -> Sample:
    """One repetition: both limits on a fresh stream each, then the relay on another."""
    settings = space.settings
    found: dict[str, float] = {}
    for name, limit in (("sequential", limits.sequential), ("window", limits.window)):
        space.fresh()
        found[name] = asyncio.run(limit(settings, events.messages(space.plan, settings, ordered=False)))
    space.fresh()
    one = space.plan.relays == 1
    spent = _relayed_by_one(space) if one else relays.relayed(space)
    state = asyncio.run(streams.state(settings))
    order = asyncio.run(streams.read_back(settings))
    stored = space.traces.archived()
    return Sample(
        run=run_of(space.plan.events, spent, counted=one),
        limit=found,
        order_violations=events.order_violations(order),
        stored=stored,
        stream=state.stored,
        faults=_faults(space, stored=stored, stream=state.stored, seen=order),
    )


def _relayed_by_one(space: Workspace) -> Mark:
    for chunk in events.chunks(space.plan, space.settings, CHUNK):
        jetbridge.publish_many(chunk, using=space.plan.using)
    space.tidy()
    return asyncio.run(relayed(space))


async def relayed(space: Workspace) -> Mark:
    """
    Run a relay until everything is settled.

    Returns:
        What passed between its first look at the outbox and the end of its last settling statement:
        connecting and taking leases happen once in the life of a relay.
    """
    with Meter(space.plan.using, watch_for="jetbridge_outbox") as meter:
        progress = Progress(meter, expected=space.plan.events, what="settled")

        def on_settled(*, ids: Sequence[int], **_: object) -> None:
            progress.add(len(ids))

        signals.outbox_settled.connect(on_settled)
        stop = asyncio.Event()
        relay = asyncio.create_task(run_relay(space.settings, using=space.plan.using, stop=stop))
        try:
            await progress.finished()
        finally:
            stop.set()
            signals.outbox_settled.disconnect(on_settled)
            await relay
        assert meter.first is not None
        return progress.last - meter.first


def _faults(space: Workspace, *, stored: int, stream: int, seen: Sequence[tuple[str, int]]) -> list[str]:
    wanted = space.plan.events
    counts = {"the archive": stored, "the stream": stream, "reading the stream back": len(set(seen))}
    found = [f"{wanted} events, but {name} has {count}." for name, count in counts.items() if count != wanted]
    if left := space.traces.waiting():
        found.append(f"{left} events are left in the outbox.")
    return found

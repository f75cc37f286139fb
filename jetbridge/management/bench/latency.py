"""``latency``: an idle relay and an idle consumer, one event at a time, from ``publish()`` to the handler."""

from __future__ import annotations

import asyncio
import random
import time

from django.db import transaction

import jetbridge
from jetbridge.consumer.process import run_consumer
from jetbridge.errors import JetbridgeError
from jetbridge.event import Event
from jetbridge.management.bench import events, streams
from jetbridge.management.bench.consume import handler_of
from jetbridge.management.bench.meter import LOOK_S, STALLED_S, Mark, Meter
from jetbridge.management.bench.report import Sample, run_of
from jetbridge.management.bench.workspace import Workspace, only_handler
from jetbridge.relay.process import run_relay
from jetbridge.runtime.threads import Threads


def measure(space: Workspace) -> Sample:
    """One repetition. Relay and consumer share this process, which makes them slower than two, never faster."""
    space.fresh()
    arrived: dict[int, float] = {}
    order: list[tuple[str, int]] = []

    def handle(event: Event) -> None:
        number = int(str(event.payload["number"]))
        arrived.setdefault(number, time.perf_counter())
        order.append((str(event.resource_id), number))

    with only_handler(handler_of(space, handle)), Meter(space.plan.using) as meter:
        spent, times_s = asyncio.run(_timed(space, meter, arrived))
    state = asyncio.run(streams.drained(space.settings))
    stored = space.traces.processed()
    wanted = space.plan.events
    counts = {"the inbox": stored, "the stream": state.stored}
    return Sample(
        run=run_of(wanted, spent, times_s),
        order_violations=events.order_violations(order),
        stored=stored,
        stream=state.stored,
        faults=[
            f"{wanted} events, but {name} has {count}." for name, count in counts.items() if count != wanted
        ],
    )


async def _timed(space: Workspace, meter: Meter, arrived: dict[int, float]) -> tuple[Mark, list[float]]:
    stop = asyncio.Event()
    workers = [
        asyncio.create_task(run_relay(space.settings, using=space.plan.using, stop=stop)),
        asyncio.create_task(run_consumer(space.settings, stop=stop)),
    ]
    publisher = Threads("bench", 1)
    times_s: list[float] = []
    try:
        made = list(events.events(space.plan, space.settings))
        started = meter.read()
        for number, event in enumerate(made):
            published = await publisher.run(_publish, event, space.plan.using)
            times_s.append(await _arrival(arrived, number) - published)
            if number == 0:
                started = meter.read()  # the first one waited for connections and leases
            # Anywhere between two looks of the relay: in step with them it would be luck or bad luck.
            await asyncio.sleep(random.uniform(0.5, 1.5) * space.settings.poll_interval_s)
        return meter.read() - started, times_s[1:] or times_s
    finally:
        stop.set()
        publisher.close(wait=False)
        await asyncio.gather(*workers)


def _publish(event: Event, using: str) -> float:
    """One transaction; returns the time just before it."""
    started = time.perf_counter()
    with transaction.atomic(using=using):
        jetbridge.publish(event.type, event.payload, using=using)
    return started


async def _arrival(arrived: dict[int, float], number: int) -> float:
    deadline = time.monotonic() + STALLED_S
    while number not in arrived:
        if time.monotonic() > deadline:
            raise JetbridgeError(f"Event {number} did not reach its handler within {STALLED_S:g} s.")
        await asyncio.sleep(LOOK_S)
    return arrived[number]

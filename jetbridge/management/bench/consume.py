"""``consume``: a full stream, one consumer process, the time until the last handler has committed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from jetbridge import signals
from jetbridge.consumer.process import run_consumer, threads_for
from jetbridge.event import Event
from jetbridge.management.bench import events, limits, streams
from jetbridge.management.bench.meter import Mark, Meter, Progress
from jetbridge.management.bench.report import Sample, run_of
from jetbridge.management.bench.workspace import Workspace, only_handler
from jetbridge.registry import Handler

SLEEP_S: Final = 0.01


def measure(space: Workspace) -> Sample:
    """One repetition: the bare loop, then the consumer."""
    settings, plan = space.settings, space.plan
    work = work_of(space)
    space.fresh()
    everything = list(events.events(plan, settings))
    bare = asyncio.run(limits.transactions(space, everything, work, threads_for(settings)))
    space.forget()
    asyncio.run(streams.fill(settings, events.messages(plan, settings, ordered=True)))
    order: list[tuple[str, int]] = []

    def handle(event: Event) -> None:
        order.append((str(event.resource_id), _number(event)))
        work(event)

    with only_handler(handler_of(space, handle)):
        spent = asyncio.run(consumed(space))
    state = asyncio.run(streams.drained(settings))
    stored = space.traces.processed()
    return Sample(
        run=run_of(plan.events, spent),
        limit={"bare_loop": bare},
        order_violations=events.order_violations(order),
        stored=stored,
        stream=state.stored,
        faults=_faults(space, stored=stored, state=state),
    )


async def consumed(space: Workspace) -> Mark:
    """
    Run a consumer until every event is handled.

    Returns:
        What passed between its first look at the inbox and its last commit: connecting and taking the lease
        happen once in the life of a consumer.
    """
    with Meter(space.plan.using, watch_for="jetbridge_inbox") as meter:
        progress = Progress(meter, expected=space.plan.events, what="handled")

        def on_committed(**_: object) -> None:
            progress.add(1)

        signals.handler_committed.connect(on_committed)
        stop = asyncio.Event()
        consumer = asyncio.create_task(run_consumer(space.settings, stop=stop))
        try:
            await progress.finished()
        finally:
            stop.set()
            signals.handler_committed.disconnect(on_committed)
            await consumer
        assert meter.first is not None
        return progress.last - meter.first


def work_of(space: Workspace) -> Callable[[Event], None]:
    """What ``--handler`` says an event does."""

    def orm(event: Event) -> None:
        space.rows.add(str(event.payload["id"]), _number(event), b"")

    def sleep(event: Event) -> None:
        time.sleep(SLEEP_S)

    def empty(event: Event) -> None:
        pass

    return {"orm": orm, "sleep": sleep, "empty": empty}[space.plan.handler]


def handler_of(space: Workspace, function: Callable[[Event], None]) -> Handler:
    """The only handler of the benchmark's events, with the defaults of the settings."""
    return Handler(
        name=space.traces.handler,
        function=function,
        patterns=(events.TYPE,),
        source=space.settings.app_name,
        atomic=True,
        ordered=True,
        using=space.plan.using,
        timeout_s=None,
        max_attempts=None,
        backoff=None,
        permanent=(),
        transient=(),
    )


def _number(event: Event) -> int:
    return int(str(event.payload["number"]))


def _faults(space: Workspace, *, stored: int, state: streams.StreamState) -> list[str]:
    wanted = space.plan.events
    counts = {"the inbox": stored, "the stream": state.stored}
    if space.plan.handler == "orm":
        counts["the handler's table"] = space.rows.count()
    found = [f"{wanted} events, but {name} has {count}." for name, count in counts.items() if count != wanted]
    if state.messages:
        found.append(f"{state.messages} messages are left in the stream without an ack.")
    return found

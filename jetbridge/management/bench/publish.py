"""
``publish``: a business transaction that publishes, next to one that inserts one more row instead.
``publish-many``: events by the ten thousand, next to ``bulk_create()`` of plain rows of their size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final

from django.db import transaction

import jetbridge
from jetbridge.event import Event
from jetbridge.management.bench import events
from jetbridge.management.bench.meter import Mark, Meter
from jetbridge.management.bench.report import Sample, run_of
from jetbridge.management.bench.workspace import Workspace

BLOCK: Final = 100
CHUNK: Final = 10_000


def measure(space: Workspace) -> Sample:
    """One repetition. Both kinds of transaction take turns, so that a busy moment of the machine hits both."""
    space.forget()
    body = b"x" * events.size_of(space.plan, space.settings)
    using = space.plan.using

    def publishing(event: Event) -> None:
        with transaction.atomic(using=using):
            space.rows.add(str(event.payload["id"]), 0, body)
            jetbridge.publish(event.type, event.payload, using=using)

    def plain(event: Event) -> None:
        with transaction.atomic(using=using):
            space.rows.add(str(event.payload["id"]), 0, body)
            space.rows.add(str(event.payload["id"]), 1, body)

    with Meter(using) as meter:
        for warm_up in islice(events.events(space.plan, space.settings), 20):
            plain(warm_up)
        spent, bare = Mark(), Mark()
        times_s: list[float] = []
        for block in events.chunks(space.plan, space.settings, BLOCK):
            spent += _timed(meter, publishing, block, times_s)
            bare += _timed(meter, plain, block, [])
    return _sample(space, spent, bare, times_s)


def measure_many(space: Workspace) -> Sample:
    """One repetition, the two kinds in turns as well."""
    space.forget()
    body = b"x" * events.size_of(space.plan, space.settings)
    using = space.plan.using
    with Meter(using) as meter:
        spent, bare = Mark(), Mark()
        for chunk in events.chunks(space.plan, space.settings, CHUNK):
            before = meter.read()
            jetbridge.publish_many(chunk, using=using)
            between = meter.read()
            space.rows.add_many([(str(event.payload["id"]), 0, body) for event in chunk])
            bare += meter.read() - between
            spent += between - before
    return _sample(space, spent, bare, ())


def _timed(meter: Meter, act: Callable[[Event], None], block: Iterable[Event], times_s: list[float]) -> Mark:
    before = meter.read()
    for event in block:
        started = time.perf_counter()
        act(event)
        times_s.append(time.perf_counter() - started)
    return meter.read() - before


def _sample(space: Workspace, spent: Mark, bare: Mark, times_s: Sequence[float]) -> Sample:
    wanted, stored = space.plan.events, space.traces.waiting()
    return Sample(
        # COPY goes past the counter.
        run=run_of(wanted, spent, times_s, counted=spent.statements > 0),
        limit={"bare_loop": wanted / bare.wall_s},
        order_violations=events.order_violations(space.traces.published()),
        stored=stored,
        stream=0,
        faults=[] if stored == wanted else [f"{wanted} events, but the outbox has {stored}."],
    )

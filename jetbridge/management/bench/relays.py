"""``relay --relays N``: relay processes of their own, which share the backlog that appears all at once."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from typing import Final

from django.conf import settings as django_settings
from django.db import connections, transaction

import jetbridge
from jetbridge.errors import JetbridgeError
from jetbridge.leases import store as leases
from jetbridge.management.bench import events, relay_child
from jetbridge.management.bench.meter import LOOK_S, STALLED_S, Mark
from jetbridge.management.bench.workspace import Workspace

START_S: Final = 60.0
END_S: Final = 20.0
SLOWEST_PER_S: Final = 100
CHUNK: Final = 10_000


def relayed(space: Workspace) -> Mark:
    """
    Let several relays work until everything is settled.

    Returns:
        The time between the commit of the whole backlog, when every relay has its part of the buckets already, and
        the end of the last settling. The CPU time is that of the processes' whole lives.
    """
    before = _cpu_of_children_s()
    with _running(space):
        _wait(lambda: _is_shared(space), START_S, "share the buckets")
        with transaction.atomic(using=space.plan.using):
            for chunk in events.chunks(space.plan, space.settings, CHUNK):
                jetbridge.publish_many(chunk, using=space.plan.using)
        begun = time.perf_counter()
        _wait(
            lambda: not space.traces.any_waiting(), STALLED_S + space.plan.events / SLOWEST_PER_S, "send all"
        )
        wall_s = time.perf_counter() - begun
    return Mark(wall_s=wall_s, cpu_s=_cpu_of_children_s() - before)


def _is_shared(space: Workspace) -> bool:
    owners = Counter(
        lease.owner for lease in leases.held(using=space.plan.using) if lease.name.startswith("relay/")
    )
    parts = owners.values()
    return len(owners) == space.plan.relays and max(parts) - min(parts) <= 1


def _wait(fact: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not fact():
        if time.monotonic() > deadline:
            raise JetbridgeError(f"The relays did not {what} within {timeout_s:g} s.")
        time.sleep(LOOK_S)


@contextmanager
def _running(space: Workspace) -> Iterator[None]:
    databases = {alias: dict(connections[alias].settings_dict) for alias in connections}
    given = (dict(django_settings.JETBRIDGE), databases, space.plan.using)
    # Not forked: a child would share our sessions with the database, and close them for us.
    context = multiprocessing.get_context("spawn")
    made: list[SpawnProcess] = [
        context.Process(target=relay_child.run, args=given, daemon=True) for _ in range(space.plan.relays)
    ]
    for process in made:
        process.start()
    try:
        yield
    finally:
        for process in made:
            process.terminate()
        for process in made:
            process.join(END_S)
            if process.is_alive():
                process.kill()
                process.join()


def _cpu_of_children_s() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime

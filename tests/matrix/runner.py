"""Many runs side by side: each in a forked process with a process group of its own, its verdict through a pipe."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from tests.matrix.actors import die_with
from tests.matrix.driver import Cell, Driver, Place
from tests.matrix.ground import Ground

# Longer than all waits of a run together on the slowest machine: who needs more hangs.
RUN_S = 600.0
# Processes that want to run for each core: from there on leases of a second are lost to the queue.
BUSY = 4.0
SLOWEST = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a run."""

    cell: Cell
    problems: Mapping[str, Sequence[str]]
    wall_s: float
    folder: str = ""


@dataclass(slots=True)
class _Running:
    cell: Cell
    pid: int
    pipe: int
    began: float
    said: bytes = b""
    hung: bool = field(default=False)


def run(
    cells: Iterable[Cell], ground: Ground, *, workers: int, keep: bool = False, tell: Callable[[Result], None]
) -> list[Result]:
    """Run every cell, at most ``workers`` at a time; ``tell`` hears of each as it ends."""
    waiting = iter(cells)
    running: dict[int, _Running] = {}
    results: list[Result] = []
    try:
        while True:
            for cell in islice(waiting, workers - len(running)):
                one = _begin(cell, ground, keep=keep)
                running[one.pipe] = one
            if not running:
                return results
            for one in list(_ended(running)):
                del running[one.pipe]
                result = _result(one, ground)
                results.append(result)
                tell(result)
    finally:
        for one in running.values():
            _end(one)


def _begin(cell: Cell, ground: Ground, *, keep: bool) -> _Running:
    reads, writes = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        os.close(reads)
        _live(cell, ground, writes, parent, keep=keep)
    os.close(writes)
    return _Running(cell=cell, pid=pid, pipe=reads, began=time.monotonic())


def _live(cell: Cell, ground: Ground, pipe: int, parent: int, *, keep: bool) -> None:
    """In the child: the run, its verdict, and never a way back."""
    try:
        os.setpgid(0, 0)
        die_with(parent)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            problems = _drive(cell, ground)
        except BaseException:
            problems = {"broken": [traceback.format_exc()]}
        if not problems and not keep:
            shutil.rmtree(ground.folder / cell.name, ignore_errors=True)
        os.write(pipe, json.dumps(problems).encode())
    finally:
        sys.stdout.flush()
        os._exit(0)


def _drive(cell: Cell, ground: Ground) -> Mapping[str, Sequence[str]]:
    name = f"r{os.getpid()}"
    with ground.copy(cell.db, name) as database:
        place = Place(
            nats_url=ground.nats_url,
            folder=ground.folder / cell.name,
            database=database,
            app=f"{ground.prefix}-{name}",
            slowness=_slowness(),
        )
        return Driver(cell, place).run()


def _slowness() -> float:
    """How much longer than on an idle machine things take now, about."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return round(min(SLOWEST, max(1.0, load / BUSY)), 1)


def _ended(running: Mapping[int, _Running]) -> Iterator[_Running]:
    """Those that have said everything, or are over their time."""
    ready, _, _ = select.select(list(running), [], [], 1.0)
    for one in running.values():
        if one.pipe in ready:
            data = os.read(one.pipe, 65_536)
            one.said += data
            if not data:
                yield one
        elif time.monotonic() - one.began > RUN_S:
            one.hung = True
            yield one


def _end(one: _Running) -> None:
    """The whole group: a driver that was killed leaves its processes behind, some of them stopped."""
    for kill, target in ((os.killpg, one.pid), (os.kill, one.pid)):
        try:
            kill(target, signal.SIGKILL)
        except ProcessLookupError:
            continue
    os.waitpid(one.pid, 0)
    os.close(one.pipe)


def _result(one: _Running, ground: Ground) -> Result:
    _end(one)
    if one.hung:
        problems: Mapping[str, Sequence[str]] = {"stuck": [f"The run did not end within {RUN_S:g} s."]}
    else:
        try:
            problems = json.loads(one.said)
        except ValueError:
            problems = {"broken": ["The driver of the run died without a word."]}
    return Result(
        cell=one.cell,
        problems=problems,
        wall_s=time.monotonic() - one.began,
        folder=str(ground.folder / one.cell.name) if problems else "",
    )

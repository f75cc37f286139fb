"""The command line of the matrix."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.matrix.bugs import BUGS
from tests.matrix.bugs import BY_NAME as BUGS_BY_NAME
from tests.matrix.driver import Cell
from tests.matrix.ground import DATABASES, ground
from tests.matrix.runner import Result, run
from tests.matrix.saboteur import Fault
from tests.matrix.steps import BY_NAME, STEPS
from tests.matrix.verdict import FAULTS

WORKERS: Final = 6
EVERY: Final = 100
# Whatever a process of a run would import for itself after the fork.
LOADED: Final = (
    "asyncio",
    "nats.aio.client",
    "psycopg",
    "django.db.backends.postgresql.base",
    "django.db.backends.sqlite3.base",
    "django.db.migrations.executor",
    "jetbridge.checks",
    "jetbridge.consumer.process",
    "jetbridge.jetstream.provision",
    "jetbridge.management.commands.jetbridge_consume",
    "jetbridge.management.commands.jetbridge_dlq",
    "jetbridge.management.commands.jetbridge_provision",
    "jetbridge.management.commands.jetbridge_relay",
    "jetbridge.relay.process",
)


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 all good, 1 not, 2 usage."""
    options = _parse(arguments)
    for module in LOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # or every collection in a child copies the pages of all that was loaded here
    began = time.monotonic()
    folder = Path(options.dir or tempfile.mkdtemp(prefix="jetbridge-matrix-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # PostgreSQL may run as another user
    cells = list(_bugs(options) if options.prove else _cells(options))
    with ground(folder, options.db, nats_url=options.nats, postgres_url=options.postgres) as made:
        progress = _Progress(len(cells))
        results = run(cells, made, workers=options.workers, keep=options.keep, tell=progress.tell)
    wall_s = time.monotonic() - began
    document = _document(results, wall_s)
    if options.json:
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n")
    good = _proven(results) if options.prove else not document["failures"]
    if not options.prove:
        _print_table(document["cells"])
    print(f"{len(results)} runs in {wall_s:.0f} s, {'all good' if good else 'NOT GOOD'}.")
    if good and not options.keep and not options.dir:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"Logs and evidence: {folder}")
    return 0 if good else 1


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    more: dict[str, Any] = {"nargs": "+", "action": "extend"}
    parser.add_argument("--step", choices=sorted(BY_NAME), metavar="STEP", help="Default: all.", **more)
    parser.add_argument("--fault", choices=[*Fault], help="Default: all.", **more)
    parser.add_argument("--db", choices=DATABASES, help="Default: both.", **more)
    parser.add_argument(
        "--times", type=int, default=1, help="Runs of each cell, with seeds that follow --seed."
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--rotate", action="store_true", help="Each step once, with a fault the seed chooses."
    )
    parser.add_argument("--workers", type=int, default=WORKERS, help="Runs side by side.")
    parser.add_argument("--json", metavar="FILE", help="Write the verdict there.")
    parser.add_argument("--dir", metavar="DIR", help="Servers, databases and logs go there, and stay.")
    parser.add_argument("--keep", action="store_true", help="Keep the logs of good runs, too.")
    parser.add_argument(
        "--nats", default="", metavar="URL", help="A running server, instead of one of our own."
    )
    parser.add_argument("--postgres", default="", metavar="URL", help="The same for PostgreSQL.")
    parser.add_argument("--bug", choices=sorted(BUGS_BY_NAME), default="", help="Plant a bug in every run.")
    parser.add_argument("--prove", action="store_true", help="Plant each bug; the verdict must name it.")
    options = parser.parse_args(arguments)
    options.step = options.step or [step.name for step in STEPS]
    options.fault = [Fault(one) for one in options.fault or Fault]
    options.db = options.db or list(DATABASES)
    return options


def _cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Seed by seed, so that an early end has seen every cell about as often."""
    for seed in range(options.seed, options.seed + options.times):
        for db in options.db:
            for name in options.step:
                if BY_NAME[name].only in ("", db):
                    chosen = [random.Random(f"{name} {db} {seed}").choice(options.fault)]
                    for fault in chosen if options.rotate else options.fault:
                        yield Cell(step=name, fault=fault, db=db, seed=seed, bug=options.bug)


def _bugs(options: argparse.Namespace) -> Iterator[Cell]:
    for db in options.db:
        for bug in BUGS:
            yield Cell(step=bug.step, fault=bug.fault, db=db, seed=options.seed, bug=bug.name)


def _proven(results: Sequence[Result]) -> bool:
    """Whether the verdict on each planted bug names it."""
    good = True
    for result in sorted(results, key=lambda one: one.cell.name):
        expected = BUGS_BY_NAME[result.cell.bug].expects
        named = expected in result.problems
        good = good and named
        said = ", ".join(result.problems) or "nothing"
        print(
            f"{result.cell.db:9} {result.cell.bug:20} {'named' if named else 'MISSED'}: {expected}; said {said}"
        )
    return good


class _Progress:
    """What is said on stderr while the runs go on."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._done = 0

    def tell(self, result: Result) -> None:
        """A failed run, at once: what was wrong, and how to see it again. Of the others a line now and then."""
        self._done += 1
        if result.problems and not result.cell.bug:
            print(f"FAILED {result.cell.replay}\n       logs: {result.folder}", file=sys.stderr)
            for fault, sentences in result.problems.items():
                for sentence in sentences:
                    print(f"       {fault}: {sentence}", file=sys.stderr)
        if self._done % EVERY == 0:
            print(f"{self._done} of {self._runs} runs", file=sys.stderr)
        sys.stderr.flush()


def _document(results: Sequence[Result], wall_s: float) -> dict[str, Any]:
    cells: dict[tuple[str, str, str], Counter[str]] = {}
    for result in results:
        cell = result.cell
        counts = cells.setdefault((cell.step, cell.fault, cell.db), Counter())
        counts["runs"] += 1
        counts["good"] += not result.problems
        counts.update({fault: len(sentences) for fault, sentences in result.problems.items()})
    order = {step.name: number for number, step in enumerate(STEPS)}
    return {
        "schema": 1,
        "wall_s": round(wall_s, 1),
        "run_s": round(sum(result.wall_s for result in results) / max(1, len(results)), 2),
        "runs": len(results),
        "cells": [
            {
                "step": step,
                "fault": fault,
                "db": db,
                **{name: counts[name] for name in ("runs", "good", *FAULTS)},
            }
            for (step, fault, db), counts in sorted(
                cells.items(), key=lambda item: (order[item[0][0]], *item[0])
            )
        ],
        "failures": [
            {"replay": result.cell.replay, "folder": result.folder, "problems": dict(result.problems)}
            for result in results
            if result.problems
        ],
    }


def _print_table(cells: Sequence[Mapping[str, Any]]) -> None:
    names = ("runs", "good", *FAULTS)
    print(f"{'step':26} {'fault':6} {'db':9}" + "".join(f"{name:>12}" for name in names))
    for cell in cells:
        print(
            f"{cell['step']:26} {cell['fault']:6} {cell['db']:9}"
            + "".join(f"{cell[name]:12}" for name in names)
        )

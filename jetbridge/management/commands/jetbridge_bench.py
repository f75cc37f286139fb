"""``manage.py jetbridge_bench``: how fast this machine is, next to how fast it could be."""

from __future__ import annotations

import json
import os
import signal
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandParser

from jetbridge.conf import Settings
from jetbridge.consumer.process import threads_for
from jetbridge.management.base import SCHEMA, JetbridgeCommand, Outcome
from jetbridge.management.bench import consume, events, latency, publish, relay, report, store, workspace
from jetbridge.management.bench.plan import DEFAULT_EVENTS, HANDLERS, MEASURES, Plan, thresholds
from jetbridge.management.bench.report import Sample
from jetbridge.management.bench.workspace import Workspace
from jetbridge.management.exit_codes import ExitCode
from jetbridge.management.options import add_database, database

HOW: Final[Mapping[str, Callable[[Workspace], Sample]]] = {
    "relay": relay.measure,
    "publish": publish.measure,
    "publish-many": publish.measure_many,
    "consume": consume.measure,
    "latency": latency.measure,
}


class Command(JetbridgeCommand):
    help = (
        "Measures events per second on this machine, each measure next to its limits in the same run. Uses an app, "
        "a stream and a table of its own and removes them. Exit codes: 0 done, 2 refused, 3 a threshold was missed "
        "or the counts do not add up, 4 the broker or the database cannot be reached."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        add_database(parser)
        defaults = ", ".join(f"{name} {count}" for name, count in DEFAULT_EVENTS.items())
        parser.add_argument("measure", choices=MEASURES, help="What to measure.")
        parser.add_argument("--events", type=positive, metavar="N", help=f"Default: {defaults}.")
        parser.add_argument(
            "--size", type=positive, default=300, metavar="BYTES", help="Of an encoded event (300)."
        )
        parser.add_argument("--keys", type=positive, default=1_000, metavar="N", help="Ordering keys (1000).")
        parser.add_argument("--repeat", type=positive, default=3, metavar="N", help="Repetitions (3).")
        parser.add_argument(
            "--relays",
            type=positive,
            default=1,
            metavar="N",
            help="Relay processes, for the measure relay (1).",
        )
        parser.add_argument(
            "--handler", choices=HANDLERS, default="orm", help="What a consumed event does (orm: one insert)."
        )
        parser.add_argument("--keep", action="store_true", help="Leave stream, rows and table behind.")
        parser.add_argument("--output", type=Path, metavar="FILE", help="Write the JSON document there, too.")
        parser.add_argument(
            "--fail-under",
            metavar="NAME=VALUE,…",
            help="Exit 3 below, e.g. events_per_s=5000,ratio.window=0.5.",
        )
        parser.add_argument(
            "--yes",
            action="store_true",
            help="Measure although the outbox is not empty: its rows are set aside.",
        )

    def run(self, settings: Settings, options: Namespace) -> Outcome:
        plan = _plan(settings, options)
        wanted = _thresholds(options)
        with terminable(), workspace.opened(plan, yes=options.yes, keep=options.keep) as space:
            samples = list(self._samples(space))
            version, shown = store.server(using=plan.using)
            found = report.document(
                plan.measure,
                _conditions(space, shown),
                report.versions(server=space.server, database=version),
                samples,
            )
        if options.output is not None:
            options.output.write_text(json.dumps({"schema": SCHEMA, **found}, indent=2) + "\n")
        faults = [fault for sample in samples for fault in sample.faults]
        if violations := found["order_violations"]:
            faults.append(f"{violations} events came after a later one of their key.")
        faults += report.shortfalls(found, wanted)
        for fault in faults:
            self.progress(fault)
        code = ExitCode.PROBLEMS if faults else ExitCode.DONE
        return Outcome(code=code, document=found, text=report.text(found))

    def _samples(self, space: Workspace) -> Iterator[Sample]:
        for number in range(1, space.plan.repeat + 1):
            sample = HOW[space.plan.measure](space)
            self.progress(
                f"{space.plan.measure} {number}/{space.plan.repeat}: {sample.run.events_per_s:,.0f} events/s"
            )
            yield sample


def _plan(settings: Settings, options: Namespace) -> Plan:
    if options.relays > 1 and options.measure != "relay":
        raise ImproperlyConfigured(
            f"--relays {options.relays} is for the measure 'relay', got {options.measure!r}. Leave it out."
        )
    return Plan(
        measure=options.measure,
        events=options.events or DEFAULT_EVENTS[options.measure],
        size=options.size,
        keys=options.keys,
        repeat=options.repeat,
        handler=options.handler,
        relays=options.relays,
        using=database(settings, options),
    )


def _thresholds(options: Namespace) -> dict[str, float]:
    if options.fail_under is None:
        return {}
    try:
        return thresholds(options.fail_under, options.measure)
    except ValueError as fault:
        raise ImproperlyConfigured(f"--fail-under {fault}") from None


def _conditions(space: Workspace, database_settings: Mapping[str, str]) -> dict[str, object]:
    """What decides the numbers and cannot be seen in them."""
    plan, settings = space.plan, space.settings
    return {
        "events": plan.events,
        "size": plan.size,
        "body_bytes": events.size_of(plan, settings),
        "keys": plan.keys,
        "repeat": plan.repeat,
        "handler": plan.handler if plan.measure == "consume" else None,
        "relays": plan.relays if plan.measure in ("relay", "latency") else None,
        "consumers": 1 if plan.measure in ("consume", "latency") else None,
        "mode": "window",
        "page_size": settings.page_size,
        "window": settings.window,
        "poll_interval_s": settings.poll_interval_s,
        "concurrency": threads_for(settings),
        "cpus": os.cpu_count(),
        "load_1m": round(os.getloadavg()[0], 2),
        **database_settings,
    }


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the command through its cleaning up, like Ctrl-C."""

    def end(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def positive(text: str) -> int:
    """A number on the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)

"""``manage.py jetbridge_status``: one screen of truth."""

from __future__ import annotations

import asyncio
import io
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any, Final

from django.core.management.base import CommandParser, DjangoHelpFormatter
from django.db import InterfaceError, OperationalError

from jetbridge.conf import Settings
from jetbridge.management import status_report, thresholds
from jetbridge.management.base import JetbridgeCommand, Outcome
from jetbridge.management.exit_codes import ExitCode
from jetbridge.management.options import database
from jetbridge.management.status_report import Line
from jetbridge.monitor import broker
from jetbridge.monitor import database as tables
from jetbridge.monitor.views import DatabaseView, StatusView

# The longest wait for the broker, and again for its answers: status is asked when something is wrong.
NATS_S: Final = 2.0
STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red", "": "bold"}


class _HelpFormatter(DjangoHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the table of thresholds a table."""


class Command(JetbridgeCommand):
    help = (
        "Shows what waits, what is stuck and who works: outbox, inbox, dead letters, durables, processes.\n"
        "Reads only. Numbers stop at 10,000 (shown as 10,000+; --exact counts on).\n"
        "Exit codes: 0, 3 a --fail-on threshold is crossed, 4 the database cannot be reached. NATS away is 0."
    )

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        kwargs.setdefault("formatter_class", _HelpFormatter)
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.epilog = f"Thresholds of --fail-on:\n{thresholds.HELP}"
        return parser

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--database", metavar="ALIAS", help="Only this database; default: all of DATABASES."
        )
        parser.add_argument("--exact", action="store_true", help="Count everything, however long it takes.")
        parser.add_argument(
            "--fail-on",
            type=thresholds.parse,
            default=(),
            metavar="NAME=VALUE,…",
            help="Exit 3 if a value is reached, e.g. outbox-age=60s,dead=1,relays=1; the names are listed below.",
        )

    def run(self, settings: Settings, options: Namespace) -> Outcome:
        limits: Sequence[thresholds.Threshold] = options.fail_on
        aliases = [database(settings, options)] if options.database else list(settings.databases)
        cap = None if options.exact else thresholds.counting_to(limits, tables.CAP)
        status = StatusView(
            app=settings.app_name,
            databases=[look(alias, cap, options) for alias in aliases],
            nats=asyncio.run(broker.look(settings, timeout_s=NATS_S)),
        )
        crossed = thresholds.crossed(status, limits)
        if options.format == "json":
            for text in crossed:
                self.progress(text)
        return Outcome(
            code=ExitCode.PROBLEMS if crossed else ExitCode.DONE,
            document=status_report.document(status),
            text=self._screen(status_report.lines(status, crossed), options),
        )

    def _screen(self, lines: list[Line], options: Namespace) -> str:
        if not self.stdout.isatty() or options.no_color:
            return status_report.plain(lines)
        return coloured(lines) or status_report.plain(lines)


def look(alias: str, cap: int | None, options: Namespace) -> DatabaseView:
    """One database; if it is away, ``options`` says which, so that the command can name it."""
    try:
        return tables.look(alias, cap=cap)
    except (OperationalError, InterfaceError):
        options.database = alias
        raise


def coloured(lines: Sequence[Line]) -> str:
    """The screen with colours; ``""`` where rich is not installed."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        return ""
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, highlight=False, soft_wrap=True)
    for line in lines:
        level, title = f"{line.level.upper():<5}", f"{line.title:<13}"
        console.print(Text.assemble((level, STYLES[line.level]), (title, "bold"), line.text))
    return output.getvalue().rstrip("\n")

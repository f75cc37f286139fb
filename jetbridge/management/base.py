"""
What all jetbridge commands share: ``--format``, one JSON document on stdout, logs on stderr, exit codes.

A command implements ``run()`` and returns an ``Outcome``; settings faults, an unreachable broker and an unreachable
database end it here with the code that says so.
"""

from __future__ import annotations

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError, connections

from jetbridge.conf import Settings, get_settings
from jetbridge.errors import BrokerUnreachable, JetbridgeError
from jetbridge.management.exit_codes import ExitCode

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    How a command ended.

    ``last_line`` is JSON that the text form ends with, for scripts that read the last line.
    """

    code: ExitCode = ExitCode.DONE
    document: Mapping[str, object] = field(default_factory=dict)
    text: str = ""
    last_line: Mapping[str, object] | None = None


class JetbridgeCommand(BaseCommand):
    """
    Base of the management commands.

    Django does not run the system checks here: it would end with code 1, where a fault in ``JETBRIDGE`` must end
    with 2 and the list of faults. jetbridge's own are run by ``handle()``.
    """

    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--format",
            choices=["text", "json"],
            default="text",
            help="What stdout carries: text for people (default), or one JSON document. Logs go to stderr.",
        )

    def run(self, settings: Settings, options: Namespace) -> Outcome:
        """Do the work. Expected troubles are raised as ``JetbridgeError`` or ``DatabaseError``."""
        raise NotImplementedError

    def handle(self, *args: Any, **options: Any) -> None:
        chosen = Namespace(**options)
        log_to_stderr(chosen.verbosity)
        try:
            settings = get_settings()
            refuse_faulty_project()
            outcome = self.run(settings, chosen)
        except ImproperlyConfigured as fault:
            self._fail(ExitCode.USAGE, str(fault), chosen)
        except BrokerUnreachable as fault:
            self._fail(ExitCode.UNREACHABLE, str(fault), chosen)
        except JetbridgeError as fault:
            self._fail(ExitCode.FAILED, str(fault), chosen)
        except (DatabaseError, InterfaceError) as fault:
            if is_missing_table(fault):
                self._fail(ExitCode.FAILED, f"{str(fault).strip()}. Run: manage.py migrate", chosen)
            if (away := unreachable_database(chosen)) is None:
                raise
            self._fail(ExitCode.UNREACHABLE, f"{away} ({str(fault).strip()})", chosen)
        except KeyboardInterrupt:
            sys.exit(ExitCode.INTERRUPTED)
        self.emit(outcome, chosen)
        if outcome.code is not ExitCode.DONE:
            sys.exit(outcome.code)

    def emit(self, outcome: Outcome, options: Namespace) -> None:
        """Write the outcome to stdout in the chosen format."""
        if options.format == "json":
            self.stdout.write(json.dumps({"schema": SCHEMA, **outcome.document}, ensure_ascii=False))
            return
        if outcome.text:
            self.stdout.write(outcome.text)
        if outcome.last_line is not None:
            self.stdout.write(json.dumps({"schema": SCHEMA, **outcome.last_line}))

    def progress(self, line: str) -> None:
        """A line for people, on stderr, so that stdout stays one document."""
        self.stderr.write(line, self.style.NOTICE)

    def _fail(self, code: ExitCode, text: str, options: Namespace) -> NoReturn:
        if options.format == "json":
            self.emit(Outcome(document={"error": {"code": int(code), "text": text}}), options)
        raise CommandError(text, returncode=int(code))


def refuse_faulty_project() -> None:
    """
    Raises:
        ImproperlyConfigured: jetbridge's own system checks find errors that the project does not silence: a
            SQLite database without WAL would fail later, now and then, as "database is locked".
    """
    errors = [
        f"{message.msg} {message.hint or ''} ({message.id})"
        for message in checks.run_checks(tags=["jetbridge"])
        if message.level >= checks.ERROR and not message.is_silenced()
    ]
    if errors:
        raise ImproperlyConfigured("\n".join(errors))


def is_missing_table(fault: Exception) -> bool:
    """Whether the migrations have not run: by SQLSTATE on PostgreSQL, by the text elsewhere."""
    state = getattr(fault.__cause__, "sqlstate", None)
    return state == "42P01" or "no such table: jetbridge_" in str(fault)


def unreachable_database(options: Namespace) -> str | None:
    """
    Whether the chosen database (``--database``, else the first of the settings) cannot be reached at all.

    "no such table" is the same exception class as "connection refused" on SQLite; only trying tells them apart.
    """
    alias = getattr(options, "database", None) or get_settings().databases[0]
    if isinstance(alias, (list, tuple)):
        alias = alias[0]
    try:
        connections[alias].close()
        connections[alias].ensure_connection()
    except DatabaseError:
        return f"Database {alias!r} cannot be reached."
    return None


def log_to_stderr(verbosity: int) -> None:
    """Send log lines to stderr where the project has not said where they go. 0 warnings, 1 info, 2 debug."""
    logger = logging.getLogger("jetbridge")
    if logger.hasHandlers():
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel([logging.WARNING, logging.INFO, logging.DEBUG][min(verbosity, 2)])

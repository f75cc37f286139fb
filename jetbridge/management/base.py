"""
What all jetbridge commands share: ``--format``, one JSON document on stdout, logs on stderr, exit codes.

A command implements ``run()`` and returns an ``Outcome``; settings faults, an unreachable broker and an unreachable
database end it here with the code that says so.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError, connections

from jetbridge import autodiscovery
from jetbridge.conf import Settings, get_settings
from jetbridge.errors import BrokerUnreachable, JetbridgeError
from jetbridge.management.exit_codes import ExitCode
from jetbridge.retry import is_missing_table, is_outage

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
    epilog = ""

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.epilog = self.epilog or None
        return parser

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--format",
            choices=["text", "json"],
            default="text",
            help="What stdout carries: text for people (default), or one JSON document. Logs go to stderr.",
        )

    def run_from_argv(self, argv: list[str]) -> None:
        """As Django's, but under ``--format json`` a usage error is a document, too."""
        if wants_json(argv[2:]):
            self._called_from_command_line = False  # so that the parser raises instead of ending the process
            try:
                self.create_parser(argv[0], argv[1]).parse_args(argv[2:])
            except CommandError as fault:
                text = str(fault).removeprefix("Error: ")
                self.stdout.write(json.dumps(failure(ExitCode.USAGE, text), ensure_ascii=False))
                self.stderr.write(text)
                sys.exit(ExitCode.USAGE)
        super().run_from_argv(argv)

    def run(self, settings: Settings, options: Namespace) -> Outcome:
        """Do the work. Expected troubles are raised as ``JetbridgeError`` or ``DatabaseError``."""
        raise NotImplementedError

    def handle(self, *args: Any, **options: Any) -> None:
        chosen = Namespace(**options)
        log_to_stderr(chosen.verbosity)
        try:
            if autodiscovery.held_back is not None:
                raise broken_handlers(autodiscovery.held_back)
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
            away = unreachable_database(chosen)
            if away is None and is_outage(fault):  # it is back already
                away = "The database ended the session or had no room for it. Run the command again."
            if away is None:
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
            self.stdout.write(json.dumps(failure(code, text), ensure_ascii=False))
        raise CommandError(text, returncode=int(code))


class BrokenHandlers(JetbridgeError):
    """A ``handlers.py`` cannot be imported; the text says which, where and why."""


def broken_handlers(fault: Exception) -> BrokenHandlers:
    """One sentence for the document; the traceback goes to stderr now."""
    traceback.print_exception(fault, file=sys.stderr)
    return BrokenHandlers(f"Handlers cannot be imported: {_place(fault)}: {type(fault).__name__}: {fault}")


def _place(fault: Exception) -> str:
    """Module and line of the project, not of the machinery that imported it or refused what it said."""
    if isinstance(fault, SyntaxError) and fault.filename:
        return f"{fault.filename}, line {fault.lineno}"
    place = "no line of the project"
    trace = fault.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in ("importlib", "_frozen_importlib", "jetbridge", "django"):
            place = f"{module}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether ``--format json`` is among arguments that may be wrong otherwise."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)
    return any(one == "--format=json" or (one, two) == ("--format", "json") for one, two in pairs)


def failure(code: ExitCode, text: str) -> dict[str, object]:
    """The document of a command that could not work."""
    return {"schema": SCHEMA, "error": {"code": int(code), "text": text}}


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

"""``manage.py jetbridge_consume``: run the handlers."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict, replace

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandParser

from jetbridge import autodiscovery
from jetbridge.conf import Settings
from jetbridge.consumer.process import ConsumeReport, run_consumer
from jetbridge.management.base import JetbridgeCommand, Outcome, broken_handlers
from jetbridge.management.exit_codes import ExitCode
from jetbridge.management.options import add_database, add_until_empty, database, refuse_lasting_timeout
from jetbridge.runtime import supervisor


class Command(JetbridgeCommand):
    """Parses, builds, supervises; the work is in :mod:`jetbridge.consumer`."""

    help = (
        "Runs the handlers for events of the configured SOURCES. Runs until SIGTERM. For each source one process "
        "at a time pulls; others stand by and take over when its lease ends."
    )
    epilog = (
        "Exit codes of --until-empty: 0 all is handled, 3 something became a dead letter, 4 NATS or the database "
        "cannot be reached, 6 timed out. Without it: 0 stopped by a signal, 1 handlers were still running then."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        add_database(parser)
        add_until_empty(parser, "every durable and the deferred table are empty")

    def run(self, settings: Settings, options: Namespace) -> Outcome:
        refuse_lasting_timeout(options)
        if not settings.sources:
            raise ImproperlyConfigured(
                'JETBRIDGE["SOURCES"] is empty: name the apps whose events this one handles.'
            )
        try:
            autodiscovery.discover()
        except Exception as fault:
            raise broken_handlers(fault) from fault
        first = database(settings, options)
        settings = replace(settings, databases=(first, *(a for a in settings.databases if a != first)))
        report = supervisor.run(
            lambda stop: run_consumer(
                settings, stop=stop, until_empty=options.until_empty, timeout_s=options.timeout
            )
        )
        for reason in report.waiting:
            self.progress(f"Timed out. {reason}")
        return _outcome(report, one_shot=options.until_empty)


def _outcome(report: ConsumeReport, *, one_shot: bool) -> Outcome:
    if not one_shot:
        return Outcome(
            code=ExitCode.FAILED if report.left else ExitCode.DONE,
            text=f"Stopped after {report.totals.handled} handled events.",
        )
    document = {**asdict(report.totals), "refused": 0, "parked": 0, "left": report.left}
    code = ExitCode.DONE
    if not report.finished:
        code = ExitCode.TIMED_OUT
    elif report.totals.dead:
        code = ExitCode.PROBLEMS
    return Outcome(code=code, document=document, last_line=document)

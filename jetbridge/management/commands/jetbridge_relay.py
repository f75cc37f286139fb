"""``manage.py jetbridge_relay``: carry committed events from the outbox to JetStream."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict

from django.core.management.base import CommandParser

from jetbridge.conf import Settings
from jetbridge.management.base import JetbridgeCommand, Outcome
from jetbridge.management.exit_codes import ExitCode
from jetbridge.management.options import add_database, add_until_empty, database, refuse_lasting_timeout
from jetbridge.relay.process import RelayReport, run_relay
from jetbridge.runtime import supervisor


class Command(JetbridgeCommand):
    """Parses, builds, supervises; the work is in :mod:`jetbridge.relay`."""

    help = (
        "Carries committed events from the outbox to NATS JetStream. Runs until SIGTERM; any number of "
        "processes may run, they share the work by leases."
    )
    epilog = (
        "Exit codes of --until-empty: 0 all is carried, 3 something was refused or parked, 4 NATS or the database "
        "cannot be reached, 6 timed out. Without it: 0 stopped by a signal."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        add_database(parser)
        add_until_empty(parser, "nothing is ready or due")

    def run(self, settings: Settings, options: Namespace) -> Outcome:
        refuse_lasting_timeout(options)
        using = database(settings, options)
        report = supervisor.run(
            lambda stop: run_relay(
                settings,
                using=using,
                stop=stop,
                until_empty=options.until_empty,
                timeout_s=options.timeout,
            )
        )
        return _outcome(report, one_shot=options.until_empty)


def _outcome(report: RelayReport, *, one_shot: bool) -> Outcome:
    totals = asdict(report.totals)
    document = {**totals, "dead": 0, "left": report.left}
    if not one_shot:
        return Outcome(text=f"Stopped after {report.totals.published} published events.")
    code = ExitCode.DONE
    if not report.finished:
        code = ExitCode.TIMED_OUT
    elif report.totals.refused or report.totals.parked:
        code = ExitCode.PROBLEMS
    return Outcome(code=code, document=document, last_line=document)

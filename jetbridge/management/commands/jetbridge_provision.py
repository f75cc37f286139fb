"""``manage.py jetbridge_provision``: the stream and the durables this service needs."""

from __future__ import annotations

import asyncio
from argparse import ArgumentTypeError, Namespace
from typing import Final

from django.core.management.base import CommandParser

from jetbridge.conf import Settings
from jetbridge.errors import BrokerUnreachable, JetbridgeError
from jetbridge.jetstream import embedded
from jetbridge.management.base import JetbridgeCommand, Outcome
from jetbridge.management.exit_codes import ExitCode

CONNECT_S: Final = 4.0


class Command(JetbridgeCommand):
    help = (
        "Make this app's stream, then its durables in the streams it reads from. Only adds; safe to repeat. "
        "Exit codes: 0 done, 3 something is missing or differs, 4 the broker cannot be reached."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        mode = parser.add_mutually_exclusive_group()
        mode.add_argument("--plan", action="store_true", help="Say what would be done and change nothing.")
        mode.add_argument("--check", action="store_true", help="Change nothing; exit 3 if anything differs.")
        mode.add_argument(
            "--print-permissions",
            # Not from jetstream.permissions: --help must not need a working environment.
            choices=["relay", "worker", "admin"],
            metavar="ROLE",
            help="Print what the NATS user of a role needs (relay, worker, admin); contacts no server.",
        )
        parser.add_argument(
            "--wait",
            type=seconds,
            default=0.0,
            metavar="S",
            help="Wait up to S seconds for the broker and for the streams of other services.",
        )

    def run(self, settings: Settings, options: Namespace) -> Outcome:
        if options.print_permissions:
            return print_permissions(settings, options.print_permissions)
        return asyncio.run(self._provision(settings, options))

    async def _provision(self, settings: Settings, options: Namespace) -> Outcome:
        from jetbridge.jetstream.connection import Connection, options_for
        from jetbridge.jetstream.provision import provision

        if settings.embedded and not options.wait:
            embedded.read_url(settings.embedded_dir)
        connection = Connection(options_for(settings, "admin"))
        await connection.start()
        try:
            if not await connection.ready(max(CONNECT_S, options.wait)):
                if connection.denied:
                    raise JetbridgeError(connection.denied)
                raise BrokerUnreachable(connection.why_unreachable())
            report = await provision(
                connection,
                settings,
                mode="plan" if options.plan else "check" if options.check else "apply",
                wait_s=options.wait,
                say=self.progress,
            )
        finally:
            await connection.close()
        code = ExitCode.DONE if report.is_complete else ExitCode.PROBLEMS
        return Outcome(code=code, document=report.document(), text=report.text())


def print_permissions(settings: Settings, role: str) -> Outcome:
    """The allow-lists of a role, ready for the server's configuration."""
    from jetbridge.jetstream.permissions import ROLES, permissions, render

    chosen = next(one for one in ROLES if one == role)
    allowed = permissions(settings, chosen)
    document = {"role": role, "permissions": {"publish": allowed.publish, "subscribe": allowed.subscribe}}
    return Outcome(document=document, text=render(settings, chosen))


def seconds(text: str) -> float:
    """A duration on the command line."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 86_400:
        raise ArgumentTypeError(f"expected a number of seconds from 0 to 86400, got {text!r}")
    return value

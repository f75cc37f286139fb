"""``manage.py jetbridge_dev``: everything that a service needs while it is written, in one terminal."""

from __future__ import annotations

import signal
import sys
import threading
import time
from argparse import Namespace
from types import FrameType
from typing import Final

from django.core.management.base import CommandParser
from django.db import DatabaseError
from django.utils.autoreload import get_child_arguments
from django.utils.termcolors import make_style

from jetbridge.conf import Settings
from jetbridge.management.base import JetbridgeCommand, Outcome
from jetbridge.management.dev_processes import SIGNALS, Child, Server, ends_at_once
from jetbridge.management.dev_watch import Watcher

POLL_S: Final = 0.1
WATCH_EVERY_S: Final = 1.0
STOP_MARGIN_S: Final = 5.0
WAIT_FOR_SOURCES_S: Final = 86_000
COLOURS: Final = {
    "nats": "magenta",
    "provision": "yellow",
    "relay": "cyan",
    "consume": "green",
    "dev": "blue",
}


class Command(JetbridgeCommand):
    """Starts, watches, restarts and ends; the work is done by the commands it starts."""

    help = (
        "For development: provisions, relays and consumes in one terminal and starts again when code changes. With "
        'NATS_URLS="embedded" it also runs a nats-server, unless another jetbridge_dev of the same EMBEDDED_DIR '
        "does. Ctrl-C ends all of it."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--no-reload", action="store_true", help="Do not watch the code.")

    def run(self, settings: Settings, options: Namespace) -> Outcome:
        self._stopped_by: int | None = None
        self._lock = threading.Lock()
        self._coloured = bool(options.force_color or (self.stdout.isatty() and not options.no_color))
        self._warn_of_migrations()
        server = Server(settings.embedded_dir, say=self.say) if settings.embedded else None
        children = self._children(settings)
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._take_signals(children, server)
        try:
            self._watch_over(children, server, None if options.no_reload else Watcher())
        finally:
            self._end(children, server, settings.shutdown_timeout_s + STOP_MARGIN_S)
            for number, handler in before.items():
                signal.signal(number, handler)
        return Outcome(text="All stopped.")

    def say(self, name: str, line: str) -> None:
        """One line of one speaker."""
        prefix = f"{name:<9} |"
        if self._coloured:
            prefix = make_style(fg=COLOURS.get(name.partition(" ")[0], "white"))(prefix)
        with self._lock:
            self.stdout.write(f"{prefix} {line}")
            self.stdout.flush()

    # --- what runs -------------------------------------------------------------------------------

    def _children(self, settings: Settings) -> list[Child]:
        manage = _manage()
        relays = [
            Child(
                "relay" if len(settings.databases) == 1 else f"relay {alias}",
                [*manage, "jetbridge_relay", "--database", alias],
                say=self.say,
            )
            for alias in settings.databases
        ]
        # It waits for the streams of other services as long as it takes; relay and consumer wait for what it makes.
        provision = [*manage, "jetbridge_provision", "--wait", str(WAIT_FOR_SOURCES_S)]
        children = [Child("provision", provision, say=self.say, once=True), *relays]
        if settings.sources:
            children.append(Child("consume", [*manage, "jetbridge_consume"], say=self.say))
        return children

    def _watch_over(self, children: list[Child], server: Server | None, watcher: Watcher | None) -> None:
        next_look = time.monotonic() + WATCH_EVERY_S
        while self._stopped_by is None:
            if server is not None:
                server.tick()
            for child in children:
                child.tick()
            if watcher is not None and time.monotonic() >= next_look:
                if changed := watcher.changed():
                    self.say("dev", f"{changed[0].name} changed; starting again")
                    for child in children:
                        child.restart()
                next_look = time.monotonic() + WATCH_EVERY_S
            # Not Event.wait(): a signal handler that sets an event its own thread waits for can block for ever.
            time.sleep(POLL_S)

    def _end(self, children: list[Child], server: Server | None, timeout_s: float) -> None:
        """Workers first, so that what they have begun still reaches the server."""
        self.say("dev", "stopping")
        deadline = time.monotonic() + timeout_s
        for child in children:
            child.terminate()
        for child in children:
            child.wait(deadline - time.monotonic())
        if server is not None:
            server.stop()

    def _take_signals(self, children: list[Child], server: Server | None) -> None:
        def on_signal(number: int, frame: FrameType | None) -> None:
            if self._stopped_by is not None:
                ends_at_once(number, children, server)
            self._stopped_by = number

        # Also where a shell has started us in the background, with SIGINT ignored.
        for number in SIGNALS:
            signal.signal(number, on_signal)

    # --- before ----------------------------------------------------------------------------------

    def _warn_of_migrations(self) -> None:
        try:
            self.check_migrations()
        except DatabaseError as fault:
            self.say(
                "dev", f"the database does not answer ({str(fault).strip()}); relay and consumer wait for it"
            )


def _manage() -> list[str]:
    """How this very program was started, less its arguments: ``python manage.py``, ``python -m django``."""
    arguments = get_child_arguments()
    return arguments[: len(arguments) - len(sys.argv[1:])]

"""
Processes of a run, by fork from a prepared parent: Django is loaded, no session is open, no thread runs.

A management command started this way costs some hundredths of a second instead of more than one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from django.core.management import CommandError, call_command
from django.db import connections

Main = Callable[[], int]
PR_SET_PDEATHSIG: Final = 1


def command(name: str, *arguments: str) -> int:
    """Exit code of a management command in this process."""
    try:
        call_command(name, *arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    except CommandError as fault:
        sys.stderr.write(f"{fault}\n")
        return fault.returncode
    return 0


class Actor:
    """
    A forked process.

    Args:
        name: For people, and of its log.
        main: Runs in the child; returns the exit code.
    """

    def __init__(self, name: str, main: Main, folder: Path) -> None:
        self.name = name
        self.is_victim = False
        self._status: int | None = None
        self._stopped = False
        connections.close_all()  # a session shared with a child would be closed by whoever ends first
        parent = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            _live(main, folder / f"{name}.log", parent)

    def send(self, number: signal.Signals) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; ``None`` while it lives."""
        self._look()
        return None if self._status is None else os.waitstatus_to_exitcode(self._status)

    @property
    def is_stopped(self) -> bool:
        """Whether SIGSTOP has stopped it."""
        self._look()
        return self._stopped

    def go_on(self) -> None:
        """After a SIGSTOP."""
        self._stopped = False
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it whatever it does, and collect it."""
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            _, self._status = os.waitpid(self.pid, 0)

    def _look(self) -> None:
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if not pid:
                return
            if os.WIFSTOPPED(status):
                self._stopped = True
            else:
                self._status = status


def die_with(parent: int) -> None:
    """Where the system can do it (Linux): end when the parent has ended. It forks from its only thread."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def _live(main: Main, log: Path, parent: int) -> None:
    code = 1
    try:
        die_with(parent)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def all_ended(actors: list[Actor]) -> Iterator[None]:
    """Leave no process behind, however the block ends."""
    try:
        yield
    finally:
        for actor in actors:
            actor.kill()

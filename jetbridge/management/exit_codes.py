"""How every jetbridge command ends. Scripts and schedulers depend on these numbers."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of all commands."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    """Usage or settings: nothing was tried."""
    PROBLEMS = 3
    """The command ran and found something that a person should look at."""
    UNREACHABLE = 4
    """The broker or the database did not answer; only one-shot commands end for it."""
    TIMED_OUT = 6
    INTERRUPTED = 130
    TERMINATED = 143

"""
Told to end: SIGINT and SIGTERM become an exception, so that everything that was started is stopped on the way out.

The exception alone is not enough. Raised wherever Python happens to be, it may meet a weak reference's callback
of the import system, which prints and drops it (seen: the demo went on to its verdict), or one of SQLite's
callbacks or an enum's definition, which turn it into another exception. So what was asked for is written down as
well: each wait looks at it, and it decides the exit code.
"""

from __future__ import annotations

import signal
from typing import NoReturn


class Told(BaseException):
    """This process was told to end. Not an Exception: no handler of faults may take it for one."""


class Ending:
    """
    Attributes:
        signal: The one that told us to end, the first if there were several; None as long as nobody has.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def listen(self) -> None:
        """
        From now on. A shell starts background jobs with SIGINT ignored; ``kill -INT`` must work there, too.
        """
        signal.signal(signal.SIGTERM, self._tell)
        signal.signal(signal.SIGINT, self._tell)

    def check(self) -> None:
        """
        Raises:
            Told: We were told to end, also if the exception of that moment got lost.
        """
        if self.signal is not None:
            raise Told

    def _tell(self, number: int, frame: object) -> NoReturn:
        self.signal = self.signal or signal.Signals(number)
        raise Told

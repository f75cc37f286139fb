"""Logging that cannot stop anything: a handler is somebody else's code, called wherever jetbridge says a word."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from typing import Final

NAME: Final = "jetbridge"


class _Guarded:
    """``Logger.callHandlers`` that never raises."""

    def __init__(self, call: Callable[[logging.LogRecord], None]) -> None:
        self._call = call

    def __call__(self, record: logging.LogRecord) -> None:
        try:
            self._call(record)
        except Exception:
            # As logging does with the faults of its own handlers; a line of the log is not worth a lane of events.
            if logging.raiseExceptions and sys.stderr is not None:
                traceback.print_exc()


def guard_loggers() -> None:
    """
    From now on no log handler of the project can raise into jetbridge's loops. May be called again.

    A handler that blocks is not helped: it blocks the event loop, and the watchdog says so.
    """
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        is_ours = name == NAME or name.startswith(f"{NAME}.")
        if is_ours and isinstance(logger, logging.Logger) and not isinstance(logger.callHandlers, _Guarded):
            logger.callHandlers = _Guarded(logger.callHandlers)  # type: ignore[method-assign]

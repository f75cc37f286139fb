"""The fault itself, done by the victim to itself at the chosen point. Never loaded by any other process of a run."""

from __future__ import annotations

import logging
import os
import signal
import threading
from enum import StrEnum

from tests.matrix import lab
from tests.matrix.points import Point

logger = logging.getLogger("matrix.saboteur")


class Fault(StrEnum):
    """What happens to the victim."""

    KILL = "kill"
    STOP = "stop"
    DELAY = "delay"


class Saboteur:
    """
    Does one fault, once, at the ``nth`` pass of a point.

    Args:
        tell: Descriptor of a pipe; a byte in it says that the fault is about to happen.
        lasts_s: How long a delay takes; the driver ends a stop.
        waits: Passes count only once the driver has set the flag :data:`lab.ARMED`.
    """

    def __init__(
        self, point: Point, fault: Fault, *, nth: int, lasts_s: float, tell: int, waits: bool
    ) -> None:
        self._point = point
        self._fault = fault
        self._nth = nth
        self._lasts_s = lasts_s
        self._tell = tell
        self._armed = not waits
        self._passes = 0
        self._lock = threading.Lock()

    def lie_in_wait(self) -> None:
        """From now on watch the point."""
        self._point.watch(self._strike)

    def _strike(self) -> None:
        with self._lock:
            self._armed = self._armed or (lab.folder() / lab.ARMED).exists()
            self._passes += self._armed
            mine = self._armed and self._passes == self._nth
        if mine:
            logger.warning("Here it strikes: %s.", self._fault)
            os.write(self._tell, b"!")
            self._do()
            logger.warning("It goes on after: %s.", self._fault)

    def _do(self) -> None:
        """
        Signals go to this thread, which never returns to its step. Sent to the process, another thread may take one,
        and a stop was seen to let this one send its next statement first.
        """
        match self._fault:
            case Fault.KILL:
                signal.pthread_kill(threading.get_ident(), signal.SIGKILL)
            case Fault.STOP:
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            case Fault.DELAY:
                threading.Event().wait(self._lasts_s)

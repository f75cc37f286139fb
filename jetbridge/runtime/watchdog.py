"""
A thread that looks at a process's liveness from outside its event loop.

A blocked event loop cannot say so: no loop on it runs, no signal is heard, the log is silent. This thread
says it, with the line at which it stands.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from typing import Final

from jetbridge.runtime.liveness import Liveness, Stuck

logger = logging.getLogger("jetbridge.runtime")

LOOK_EVERY_S: Final = 1.0
EVENT_LOOP: Final = "event loop"


class Watchdog:
    """
    Args:
        liveness: What to look at.
        every_s: Seconds between two looks.
        watched: Identifier of the thread that runs the event loop; by default the thread that makes this.
    """

    def __init__(
        self, liveness: Liveness, *, every_s: float = LOOK_EVERY_S, watched: int | None = None
    ) -> None:
        self._liveness = liveness
        self._every_s = every_s
        self._watched = watched or threading.get_ident()
        self._ended = threading.Event()
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="jetbridge-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No further look; returns at once."""
        self._ended.set()

    def _run(self) -> None:
        while True:
            before = time.monotonic()
            if self._ended.wait(self._every_s):
                return
            # Only our own wait is measured: a log handler that hangs in look() must excuse nobody.
            late_s = time.monotonic() - before - self._every_s
            if late_s > self._every_s:
                self._liveness.stood_still(late_s)
                continue  # whoever slept with us gets a moment to wake up
            try:
                self.look()
            except Exception:  # of a log handler, most likely; the next look may be heard
                traceback.print_exc()

    def look(self) -> None:
        """Say once what is stuck, and once that it goes on."""
        stuck = {one.name: one for one in self._liveness.stuck()}
        before, self._said = self._said, set(stuck)
        for name, one in stuck.items():
            if name not in before:
                where = self._stack() if name == EVENT_LOOP else _at(one)
                logger.critical("Stuck: %s%s.%s", name, _since(one), where)
        for name in sorted(before - stuck.keys()):
            logger.warning("Not stuck any more: %s.", name)

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._watched)
        if frame is None:
            return ""
        return " Nothing else runs in this process until it returns:\n" + "".join(
            traceback.format_stack(frame)
        )


def _since(one: Stuck) -> str:
    if one.overdue_s == float("inf"):
        return ", which has ended by itself"
    return f", overdue for {one.overdue_s:.1f} s" if one.overdue_s else ""


def _at(one: Stuck) -> str:
    return f" It waits at:\n{one.where}" if one.where else ""

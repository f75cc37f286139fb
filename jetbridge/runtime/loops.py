"""The loops of a process: started together, watched from outside, and ended in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from jetbridge.runtime.liveness import Liveness
from jetbridge.runtime.logs import guard_loggers
from jetbridge.runtime.service import Loop
from jetbridge.runtime.watchdog import EVENT_LOOP, Watchdog

EVENT_LOOP_LIMIT_S: Final = 10.0
EVENT_LOOP_BEATS_S: Final = 0.5


class Loops:
    """
    Inside its block a watchdog looks at every loop that was started here, and at the event loop itself.

    Attributes:
        liveness: What is stuck, for whoever asks: the row of this process, its leases, a probe.
    """

    def __init__(self) -> None:
        self.liveness = Liveness()
        self._tasks: dict[Loop, asyncio.Task[None]] = {}
        self._watchdog = Watchdog(self.liveness)

    async def __aenter__(self) -> Self:
        guard_loggers()
        self.start(EVENT_LOOP, _beat, limit_s=EVENT_LOOP_LIMIT_S)
        self._watchdog.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watchdog.stop()
        for loop in self._tasks:
            loop.stop()
        for task in self._tasks.values():
            task.cancel()  # what has not ended when it was asked to

    def start(self, name: str, tick: Callable[[], Awaitable[float]], *, limit_s: float) -> Loop:
        """
        Begin a loop.

        Args:
            limit_s: Longer than the deadlines of everything in one tick together: beyond it, it counts as stuck.
        """
        loop = Loop(name, tick, self.liveness.beat(name, limit_s=limit_s))
        loop.beat.begins()  # it may never come to its first tick
        self._tasks[loop] = asyncio.create_task(loop.run(), name=f"jetbridge-{name}")
        return loop

    async def stop(self, *loops: Loop, timeout_s: float) -> None:
        """Ask loops to end, and wait until they have or the time is up."""
        for loop in loops:
            loop.stop()
        if loops:
            await asyncio.wait([self._tasks[loop] for loop in loops], timeout=timeout_s)


async def _beat() -> float:
    return EVENT_LOOP_BEATS_S

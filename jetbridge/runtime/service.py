"""One supervised loop: the skeleton of everything that runs for ever."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import FrameType

from django.db import DatabaseError, InterfaceError

from jetbridge.retry import is_missing_table
from jetbridge.runtime.liveness import Beat, Liveness

logger = logging.getLogger("jetbridge.runtime")

BACKOFF_S = (0.1, 1.0)  # work resumes within two seconds of an outage's end


def backoff_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row: doubling, bounded, with jitter."""
    doubled: float = BACKOFF_S[0] * 2.0 ** min(failures, 10)
    return min(BACKOFF_S[1], doubled) * (0.5 + random.random() / 2)


class Loop:
    """
    Calls ``tick`` again and again; the tick returns how many seconds to sleep until the next.

    An exception is logged and backs the loop off (0.1 to 1 s, with jitter); nothing ends it but
    :meth:`stop`.

    Args:
        beat: Where it says what it is doing; nobody looks if it is left out.
    """

    def __init__(self, name: str, tick: Callable[[], Awaitable[float]], beat: Beat | None = None) -> None:
        self.name = name
        self.beat = beat or Liveness().beat(name, limit_s=float("inf"))
        self._tick = tick
        self._woken = asyncio.Event()
        self._stopping = False
        self._failures = 0

    async def run(self) -> None:
        """Until :meth:`stop`; a tick that is under way is finished."""
        task = asyncio.current_task()
        self.beat.where = lambda: _where(task)
        try:
            while not self._stopping:
                self.beat.begins()
                delay_s = await self._guarded_tick()
                if not self._stopping:
                    self.beat.rests(delay_s)
                    await self._sleep(delay_s)
        finally:
            if self._stopping:
                self.beat.stops()
            else:
                self.beat.breaks()

    def wake(self) -> None:
        """Do not sleep any longer."""
        self._woken.set()

    def stop(self) -> None:
        """No further tick."""
        self._stopping = True
        self._woken.set()

    async def _guarded_tick(self) -> float:
        try:
            delay_s = await self._tick()
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            # Somebody else's future was cancelled, and we were waiting for it: no reason to end without a word.
            return self._failed(error)
        except (Exception, SystemExit) as error:
            return self._failed(error)
        failures, self._failures = self._failures, 0
        if failures:
            with suppress(Exception):
                logger.info("%s works again after %d failures.", self.name, failures)
        return delay_s

    def _failed(self, error: BaseException) -> float:
        self._failures += 1
        with suppress(Exception):  # a log handler that raises must not end the loop that tells of an error
            self._log(error)
        return backoff_s(self._failures)

    def _log(self, error: BaseException) -> None:
        """An outage of the database is one line, and not one for every try."""
        if not isinstance(error, (DatabaseError, InterfaceError)):
            logger.error("%s failed; trying again.", self.name, exc_info=error)
        elif self._failures in (1, 10, 100) or self._failures % 1000 == 0:
            said = str(error).strip()
            if is_missing_table(error):
                logger.warning("%s waits: a table is missing (%s). Run: manage.py migrate", self.name, said)
            else:
                logger.warning("%s: the database does not answer (%s); waiting for it.", self.name, said)

    async def _sleep(self, delay_s: float) -> None:
        if delay_s <= 0 and not self._woken.is_set():
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(delay_s):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()


def is_cancelled() -> bool:
    """Whether the running task was told to end; if not, a ``CancelledError`` in it is an error like any other."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _where(task: asyncio.Task[None] | None) -> str:
    """The chain of coroutines that a task waits in, the innermost last, like a traceback. Safe from any thread."""
    lines: list[str] = []
    waiting: object = task.get_coro() if task is not None else None
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if isinstance(frame, FrameType):
            code = frame.f_code
            lines.append(f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_qualname}')
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return "\n".join(lines)

"""One supervised loop: the skeleton of everything that runs for ever."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from django.db import DatabaseError, InterfaceError

from jetbridge.retry import is_missing_table

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
    :meth:`stop`. ``beat_at`` is the monotonic time of the last completed tick.
    """

    def __init__(self, name: str, tick: Callable[[], Awaitable[float]]) -> None:
        self.name = name
        self.beat_at = time.monotonic()
        self._tick = tick
        self._woken = asyncio.Event()
        self._stopping = False
        self._failures = 0

    async def run(self) -> None:
        """Until :meth:`stop`; a tick that is under way is finished."""
        while not self._stopping:
            delay_s = await self._guarded_tick()
            self.beat_at = time.monotonic()
            if not self._stopping:
                await self._sleep(delay_s)

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
        except Exception as error:
            self._failures += 1
            self._log(error)
            return backoff_s(self._failures)
        if self._failures:
            logger.info("%s works again after %d failures.", self.name, self._failures)
        self._failures = 0
        return delay_s

    def _log(self, error: Exception) -> None:
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

"""A process's row in the workers' table."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping

from jetbridge.leases import store
from jetbridge.runtime.threads import Threads

EVERY_S = 5.0
FORGOTTEN_S = 3_600.0


class Heartbeat:
    """
    Tells the database every few seconds that this process lives, and what it is doing.

    Args:
        every_s: How often at least; a third of the time for which others count on it.
    """

    def __init__(
        self,
        worker_id: str,
        *,
        role: str,
        version: str,
        info: Callable[[], Mapping[str, object]],
        threads: Threads,
        using: str,
        every_s: float = EVERY_S,
    ) -> None:
        self._worker_id = worker_id
        self._role = role
        self._version = version
        self._info = info
        self._threads = threads
        self._using = using
        self._every_s = min(EVERY_S, every_s)

    async def tick(self) -> float:
        await self._threads.run(
            store.beat,
            self._worker_id,
            role=self._role,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=self._version,
            info=self._info(),
            using=self._using,
        )
        return self._every_s

    async def end(self) -> None:
        """Say goodbye."""
        await self._threads.run(store.forget, self._worker_id, older_than_s=FORGOTTEN_S, using=self._using)

"""
Keeps leases for this process and says which it may act on right now.

The database's clock decides who owns a lease; this process counts on its own monotonic clock, from
*before* it sent the renewal, and stops at two thirds of the term. So however slow the answer or wrong
a clock, nobody acts on a lease that another may already have.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from jetbridge.leases import store
from jetbridge.runtime.threads import Threads

logger = logging.getLogger("jetbridge.leases")

SAFE_SHARE = 2 / 3
LOOK_S = 0.25


class LeaseHolder:
    """
    Attributes:
        acquisitions: Grows whenever a lease is taken. Between two looks one may be lost to another and won back,
            and what this process knew of its rows is stale then.

    Args:
        names: The leases to hold.
        owner: This process.
        ttl_s: Term of a lease in seconds.
        threads: Where the statements run; not the pool of the handlers, which may be busy for minutes.
        using: Database alias.
        working: Whether this process can do the work at all. A holder that cannot for a whole term
            hands its leases back: another process may see the broker that this one does not.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        owner: str,
        ttl_s: float,
        threads: Threads,
        using: str,
        working: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = frozenset(names)
        self._owner = owner
        self._ttl_s = ttl_s
        self._threads = threads
        self._using = using
        self._working = working
        self._clock = clock
        self._held: frozenset[str] = frozenset()
        self._safe_until = float("-inf")
        self._idle_since: float | None = None
        self.acquisitions = 0

    def held(self) -> frozenset[str]:
        """The leases this process may act on at this moment."""
        return self._held if self._clock() < self._safe_until else frozenset()

    def remaining_s(self) -> float:
        """Seconds for which :meth:`held` stays true without another renewal."""
        return max(0.0, self._safe_until - self._clock()) if self._held else 0.0

    async def tick(self) -> float:
        """Renew and acquire once; returns seconds until the next time."""
        if self._given_up():
            await self.release()
            # A look costs no statement, and a third of the term later would be seconds after the broker is back.
            return min(LOOK_S, self._ttl_s / 3)
        sent_at = self._clock()
        held = await self._threads.run(self._renew_and_acquire)
        self._changed(held)
        self._held, self._safe_until = held, sent_at + self._ttl_s * SAFE_SHARE
        return self._ttl_s / 3 if held == self._names else min(1.0, self._ttl_s / 3)

    async def release(self) -> None:
        """Hand everything back, so that the next owner need not wait for the term to end."""
        held, self._held = self._held, frozenset()
        self._safe_until = float("-inf")
        if held:
            await self._threads.run(store.release, held, owner=self._owner, using=self._using)

    def _renew_and_acquire(self) -> frozenset[str]:
        held: set[str] = set()
        if self._held:
            held = store.renew(self._held, owner=self._owner, ttl_s=self._ttl_s, using=self._using)
        free = self._names - held
        if free:
            store.ensure(free, using=self._using)  # each time: somebody may empty the table under us
            taken = store.acquire(
                free, owner=self._owner, ttl_s=self._ttl_s, limit=len(free), using=self._using
            )
            self.acquisitions += bool(taken)
            held |= taken
        return frozenset(held)

    def _given_up(self) -> bool:
        if self._working():
            self._idle_since = None
            return False
        now = self._clock()
        self._idle_since = now if self._idle_since is None else self._idle_since
        return now - self._idle_since >= self._ttl_s

    def _changed(self, held: frozenset[str]) -> None:
        if held != self._held:
            logger.info(
                "Leases: %d of %d held (%+d).", len(held), len(self._names), len(held) - len(self._held)
            )

"""
Keeps leases for this process and says which it may act on right now.

The database's clock decides who owns a lease; this process counts on its own monotonic clock, from
*before* it sent the renewal, and stops at two thirds of the term. So however slow the answer or wrong
a clock, nobody acts on a lease that another may already have.

Several processes of one role share their leases fairly. A lease too many first leaves :meth:`LeaseHolder.held`,
and is handed back when the step of work that uses it has ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from jetbridge.leases import store
from jetbridge.leases.shares import share
from jetbridge.runtime.threads import Threads

logger = logging.getLogger("jetbridge.leases")

SAFE_SHARE = 2 / 3
LOOK_S = 1.0
SOON_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What one visit to the table found: ``kept`` were ours before, ``taken`` are new."""

    kept: frozenset[str]
    taken: frozenset[str]
    wanted: int


class LeaseHolder:
    """
    Attributes:
        owner: This process.
        acquisitions: Grows whenever a lease is taken. Between two looks one may be lost to another and won back,
            and what this process knew of its rows is stale then.
        on_change: Called when this process begins or ceases to count among its role, or its leases change.

    Args:
        names: The leases there are.
        ttl_s: Term of a lease in seconds.
        threads: Where the statements run; not the pool of the handlers, which may be busy for minutes.
        using: Database alias.
        working: Whether this process got somewhere since the last question. A holder that did not for a whole
            term hands its leases back, and one that never did takes none: another process may see the broker
            that this one does not.
        role: Whose members share the leases, as they stand in the workers' table; ``""`` takes all there are.
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
        role: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.owner = owner
        self.acquisitions = 0
        self.on_change: Callable[[], None] = lambda: None
        self._names = frozenset(names)
        self._ttl_s = ttl_s
        self._threads = threads
        self._using = using
        self._working = working
        self._role = role
        self._clock = clock
        self._owned: frozenset[str] = frozenset()
        self._leaving: frozenset[str] = frozenset()
        self._in_hand: frozenset[str] = frozenset()
        self._lost_in_hand = False
        self._wanted = 0
        self._safe_until = self._renew_at = self._worked_at = float("-inf")
        self._told: tuple[bool, int, int] = (False, 0, 0)

    # --- what may be done ------------------------------------------------------------------------

    def held(self) -> frozenset[str]:
        """The leases this process may begin something with at this moment."""
        return self._owned - self._leaving if self._clock() < self._safe_until else frozenset()

    @contextmanager
    def in_hand(self) -> Iterator[frozenset[str]]:
        """
        The leases to act on in one step of work: none of them is handed back before the block ends.

        They may still run out meanwhile, which :meth:`remaining_s` tells.
        """
        self._in_hand, self._lost_in_hand = self.held(), False
        try:
            yield self._in_hand
        finally:
            self._in_hand, self._lost_in_hand = frozenset(), False

    def remaining_s(self) -> float:
        """Seconds for which the leases in hand, or held, are ours without another renewal."""
        # Lost and won back in the middle of a step: another has acted on what the step has read before.
        if not self._owned or self._lost_in_hand:
            return 0.0
        return max(0.0, self._safe_until - self._clock())

    @property
    def is_member(self) -> bool:
        """Whether this process counts among those that share: it got somewhere within the last term."""
        return self._clock() - self._worked_at < self._ttl_s

    def describe(self) -> Mapping[str, object]:
        """For the workers' table. ``counts_for_s``: how long the word of a member holds."""
        counts_for_s = self._ttl_s if self.is_member else 0.0
        return {"share": self._wanted, "counts_for_s": counts_for_s}

    # --- upkeep ----------------------------------------------------------------------------------

    async def tick(self) -> float:
        """Renew, take what is missing, hand back what is too much; returns seconds until the next time."""
        if self._working():
            self._worked_at = self._clock()
        if self.is_member:
            await self._look()
        else:
            # Not renewed any more: what is stuck in the middle of a step runs out.
            self._wanted, self._leaving = 0, self._owned
        await self._hand_back()
        self._tell()
        return self._pause_s()

    async def release(self) -> None:
        """Hand everything back, so that the next owner need not wait for the term to end."""
        self._leaving = self._owned
        await self._hand_back()

    async def _look(self) -> None:
        sent_at = self._clock()
        is_due = sent_at >= self._renew_at
        look = await self._threads.run(self._visit, self._owned, is_due)
        if is_due:
            self._renew_at = sent_at + self._ttl_s / 3
            self._safe_until = sent_at + self._ttl_s * SAFE_SHARE
            self._lost_in_hand = self._lost_in_hand or not self._in_hand <= look.kept
        # Kept, but not known: taken by a statement whose answer got lost.
        self.acquisitions += bool(look.taken or look.kept - self._owned)
        self._owned, self._wanted = look.kept | look.taken, look.wanted
        self._leaving = frozenset(sorted(self._owned)[self._wanted :])

    def _visit(self, known: frozenset[str], is_due: bool) -> _Look:
        """On a thread: what the table says, and what could be taken."""
        kept = known
        if is_due:
            kept = frozenset(store.renew(self._names, owner=self.owner, ttl_s=self._ttl_s, using=self._using))
        wanted, taken = len(self._names), set[str]()
        if self._role:
            wanted = share(self.owner, store.members(self._role, using=self._using), wanted)
        if len(kept) < wanted:
            free = self._names - kept
            store.ensure(free, using=self._using)  # each time: somebody may empty the table under us
            limit = wanted - len(kept)
            taken = store.acquire(free, owner=self.owner, ttl_s=self._ttl_s, limit=limit, using=self._using)
        return _Look(kept=kept, taken=frozenset(taken), wanted=wanted)

    async def _hand_back(self) -> None:
        """Of the leaving leases those that no step of work uses; the others stay ours until it has ended."""
        free = self._leaving - self._in_hand
        if free:
            await self._threads.run(store.release, free, owner=self.owner, using=self._using)
            self._owned -= free
            self._leaving -= free

    def _pause_s(self) -> float:
        if self._leaving or not self.is_member:
            return SOON_S  # costs no statement as long as nothing has changed
        look_s = LOOK_S if self._role or len(self._owned) < self._wanted else self._ttl_s / 3
        return max(SOON_S, min(look_s, self._renew_at - self._clock()))

    def _tell(self) -> None:
        told = (self.is_member, self._wanted, len(self._owned))
        if told == self._told:
            return
        gained = told[2] - self._told[2]
        self._told = told
        if gained:
            logger.info("Leases: %d of %d held (%+d).", told[2], len(self._names), gained)
        self.on_change()

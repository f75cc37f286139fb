"""
The relay: ready rows of the buckets it holds, to the stream, to the archive.

Loop over pages: read, publish, settle. A crash between any two steps sends a page again, and the same
message ids make that harmless. What the stream refuses is taken out of the way by kind: an outage
touches no row, a subject in trouble parks, a faulty message is refused with the reason.

Several relays share the buckets. All of a page happens between two points at which a bucket can change hands, and
whoever gets one learns from the table what is parked and refused in it before it sends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from jetbridge.conf import Settings
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.publisher import WindowPublisher
from jetbridge.leases.holder import LeaseHolder
from jetbridge.models import OutboxState
from jetbridge.outbox import store
from jetbridge.outbox.store_fence import LEASE_NAMES, bucket_of
from jetbridge.relay import sorting
from jetbridge.relay.knowledge import Knowledge
from jetbridge.relay.parked import Trials
from jetbridge.relay.sender import HELD, MIN_PAGE_S, Sender, Totals
from jetbridge.relay.sorting import Lane, Verdicts
from jetbridge.relay.stream_info import created_at
from jetbridge.runtime.threads import Threads

__all__ = ["LEASE_NAMES", "Relay", "Totals"]

logger = logging.getLogger("jetbridge.relay")

NO_LEASES_S = 0.1
ANSWER_S = 1.0
OUTAGE_BACKOFF_S = (0.05, 1.0)  # an event goes within two seconds of an outage's end
PROMOTE_EVERY_S = 0.1
RELEASE_EVERY_S = 1.0
RELEASE_SHARE = 0.05
RELEASE_ROWS = 5_000


class Relay:
    """
    One alias's outbox to one stream.

    Args:
        threads: Runs the statements, one at a time.
        holder: Says which buckets are ours at this moment.

    Attributes:
        progress: Grows with every step that got somewhere: an answer of the broker, or a look that found
            nothing to do. A relay for which it stands still is of no use, and others should have its buckets.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        using: str,
        connection: Connection,
        publisher: WindowPublisher,
        holder: LeaseHolder,
        threads: Threads,
    ) -> None:
        self.progress = 0
        self._settings = settings
        self._using = using
        self._connection = connection
        self._holder = holder
        self._threads = threads
        self._known = Knowledge()
        self._sender = Sender(
            settings,
            using=using,
            connection=connection,
            publisher=publisher,
            holder=holder,
            threads=threads,
            known=self._known,
        )
        self._trials = Trials(settings, using=using, threads=threads, known=self._known, sender=self._sender)
        self._acquisitions = 0
        self._next_promote = self._next_release = 0.0
        self._failures = 0
        self._epoch = 0

    @property
    def totals(self) -> Totals:
        return self._sender.totals

    async def tick(self) -> float:
        """One page; returns seconds to sleep."""
        if not self._connection.is_connected:
            await self._connection.ready(1.0)
            return 0.0
        with self._holder.in_hand() as held:
            pause_s = await self._work(held) if held else await self._nothing(NO_LEASES_S)
        self.progress += self._sender.is_heard
        return pause_s

    async def _work(self, held: frozenset[str]) -> float:
        await self._take_over(held)
        await self._learn_stream()
        await self._promote()
        await self._trials.run()
        await self._release_held()
        return await self._page()

    async def is_empty(self) -> bool:
        """Whether nothing is ready or due in any bucket, ours or not, and no parked subject is on its way out."""
        if self._known.draining() or self._known.any_untried():
            return False
        return not await self._threads.run(store.has_work, using=self._using)

    async def _page(self) -> float:
        limit, known = self._settings.page_size, self._known
        records = await self._threads.run(store.page, known.buckets, limit=limit, using=self._using)
        if not records:
            draining = known.draining(time.monotonic())
            return await self._nothing(0.0 if draining else self._settings.poll_interval_s)
        page = sorting.sort(records, parked=known.parked.keys(), refused=known.refused)
        await self._sender.set_aside(page.park, OutboxState.PARKED, "parked", "Its subject is parked.")
        await self._sender.set_aside(page.hold, OutboxState.HELD, *HELD)
        if not page.send:
            return 0.0
        verdicts = await self._sender.send(page.send)
        return MIN_PAGE_S if verdicts is None else self._pause(verdicts)

    async def _nothing(self, pause_s: float) -> float:
        """Nothing to send. After a silence it may be silent still, and buckets would come back to be stuck again."""
        if not self._sender.is_heard:
            self._sender.is_heard = await self._connection.answers(ANSWER_S)
        return pause_s

    def _pause(self, verdicts: Verdicts) -> float:
        """An outage backs off and touches nothing; otherwise the next page follows at once."""
        if not verdicts.outage:
            if self._failures:
                logger.info("Publishing works again.")
            self._failures = 0
            return 0.0
        self._failures += 1
        if self._failures in (1, 10, 100) or self._failures % 1000 == 0:
            logger.warning("Publishing does not work (%s); the events wait.", verdicts.outage)
        if verdicts.stored:
            return OUTAGE_BACKOFF_S[0]
        doubled: float = OUTAGE_BACKOFF_S[0] * 2.0 ** min(self._failures, 8)
        return min(OUTAGE_BACKOFF_S[1], doubled)

    async def _take_over(self, held: frozenset[str]) -> None:
        """Know what is parked and refused in new buckets before the first of their rows is sent."""
        known, buckets = self._known, frozenset(bucket_of(name) for name in held)
        acquisitions = self._holder.acquisitions
        # After any acquisition everything is learned anew: another owner may have parked and held rows meanwhile.
        gained = buckets - known.buckets if acquisitions == self._acquisitions else buckets
        if gained:
            known.learn_parked(await self._threads.run(store.parked_subjects, gained, using=self._using))
            held_keys = await self._threads.run(store.blocked, OutboxState.HELD, gained, using=self._using)
            known.refused |= held_keys
            if self._settings.on_refused == "hold_key":
                refused = await self._threads.run(
                    store.blocked, OutboxState.REFUSED, gained, using=self._using
                )
                known.refused |= {lane for lane in refused if lane[1]}
        known.buckets, self._acquisitions = buckets, acquisitions

    async def _learn_stream(self) -> None:
        """Once per connection: whether the stream is still the one the archive knows."""
        if self._settings.read_stream_info and self._epoch != self._connection.epoch:
            self._epoch = self._connection.epoch
            self._sender.stream_created_at = await created_at(self._connection, self._settings.stream)

    async def _promote(self) -> None:
        """Whoever holds bucket 0 moves due rows for all, so that they get their ids in the order they are due."""
        now = time.monotonic()
        if 0 in self._known.buckets and now >= self._next_promote:
            limit = self._settings.page_size
            moved = await self._threads.run(
                store.promote_due, limit=limit, owner=self._holder.owner, using=self._using
            )
            self._next_promote = now + (0.0 if moved == limit else PROMOTE_EVERY_S)

    async def _release_held(self) -> None:
        """Let the followers of a key go on once no row of it is refused any more, or refused rows are passed."""
        begun, known = time.monotonic(), self._known
        if begun < self._next_release:
            return
        # By whatever hand rows were parked meanwhile: unknown here, they would wait for ever.
        known.learn_parked(await self._threads.run(store.parked_subjects, known.buckets, using=self._using))
        held = await self._threads.run(store.held_lanes, known.buckets, using=self._using)
        blocked: set[Lane] = set()
        if self._settings.on_refused == "hold_key" and (held or known.refused):
            blocked = await self._threads.run(
                store.blocked, OutboxState.REFUSED, known.buckets, using=self._using
            )
        free = _some({lane: rows for lane, rows in held.items() if lane not in blocked}, RELEASE_ROWS)
        for to_parked in (False, True):
            lanes = [lane for lane in free if (lane[0] in known.parked) is to_parked]
            # Behind what is parked of the key, by id; and nothing of the key may be in two places then.
            await self._threads.run(
                store.release,
                lanes,
                known.buckets,
                to_parked=to_parked,
                owner=self._holder.owner,
                using=self._using,
            )
        known.refused = (known.refused & blocked) | (held.keys() - free)
        now = time.monotonic()
        self._next_release = now + max(RELEASE_EVERY_S, (now - begun) / RELEASE_SHARE)


def _some(lanes: Mapping[Lane, int], rows: int) -> set[Lane]:
    """As many lanes as hold about ``rows`` rows. A lane goes as a whole: its newer rows must not overtake."""
    taken: set[Lane] = set()
    for lane, count in lanes.items():
        if rows <= 0:
            break
        taken.add(lane)
        rows -= count
    return taken

"""
The relay: ready rows of the buckets it holds, to the stream, to the archive.

Loop over pages: read, publish, settle. A crash between any two steps sends a page again, and the same
message ids make that harmless. What the stream refuses is taken out of the way by kind: an outage
touches no row, a subject in trouble parks, a faulty message is refused with the reason. Parked rows go
out as they are, oldest first, and leave for the archive: a subject that stays full costs no writes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from jetbridge import signals
from jetbridge.conf import Settings
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.publisher import WindowPublisher
from jetbridge.leases.holder import LeaseHolder
from jetbridge.models import OutboxState
from jetbridge.outbox import store
from jetbridge.outbox.records import OutboxRecord, Settled
from jetbridge.partition import BUCKETS
from jetbridge.relay import sorting
from jetbridge.relay.sorting import Lane, Verdicts
from jetbridge.relay.stream_info import created_at
from jetbridge.runtime.threads import Threads

logger = logging.getLogger("jetbridge.relay")

LEASE_NAMES = tuple(f"relay/{number:02d}" for number in range(BUCKETS))
OUTAGE_BACKOFF_S = (0.05, 1.0)  # an event goes within two seconds of an outage's end
PROMOTE_EVERY_S = 0.1
RELEASE_EVERY_S = 1.0
RELEASE_SHARE = 0.05
RELEASE_ROWS = 5_000
DRAIN_PAGES = 2
MIN_PAGE_S = 0.05
TTL_SINCE = (2, 11, 0)
HELD = ("held", "An older event of its key is refused.")


@dataclass(slots=True, kw_only=True)
class Totals:
    """What a relay has done since it started; one-shot runs print it."""

    published: int = 0
    duplicates: int = 0
    refused: int = 0
    parked: int = 0


@dataclass(slots=True, kw_only=True)
class Trial:
    """
    A parked subject. While it is known here its new rows park too, so that nothing overtakes.

    Attributes:
        due: When to try it next, monotonic seconds.
        size: How many of its rows at once: one to see, and more and more while they pass.
    """

    due: float = 0.0
    size: int = 1


class Relay:
    """
    One alias's outbox to one stream.

    Args:
        threads: Runs the statements, one at a time.
        holder: Says which buckets are ours at this moment.
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
        self.totals = Totals()
        self._settings = settings
        self._using = using
        self._connection = connection
        self._publisher = publisher
        self._holder = holder
        self._threads = threads
        self._buckets: frozenset[int] = frozenset()
        self._acquisitions = 0
        self._parked: dict[str, Trial] = {}
        self._refused: set[tuple[str, str]] = set()
        self._next_promote = self._next_release = 0.0
        self._failures = 0
        self._stream_created_at: datetime | None = None
        self._epoch = 0
        self._ttl_disabled_in = -1

    async def tick(self) -> float:
        """One page; returns seconds to sleep."""
        held = self._holder.held()
        if not held:
            return 0.1
        if not self._connection.is_connected:
            await self._connection.ready(1.0)
            return 0.0
        await self._take_over(held)
        await self._learn_stream()
        await self._promote()
        await self._try_parked()
        await self._release_held()
        return await self._page()

    async def is_empty(self) -> bool:
        """Whether nothing is ready or due in any bucket, ours or not, and no parked subject is on its way out."""
        if self._draining() or any(trial.due == 0.0 for trial in self._parked.values()):
            return False
        return not await self._threads.run(store.has_work, using=self._using)

    async def _page(self) -> float:
        limit = self._settings.page_size
        records = await self._threads.run(store.page, self._buckets, limit=limit, using=self._using)
        if not records:
            return 0.0 if self._draining(time.monotonic()) else self._settings.poll_interval_s
        page = sorting.sort(records, parked=self._parked.keys(), refused=self._refused)
        await self._set_aside(page.park, OutboxState.PARKED, "parked", "Its subject is parked.")
        await self._set_aside(page.hold, OutboxState.HELD, *HELD)
        if not page.send:
            return 0.0
        deadline_s = min(self._settings.publish_timeout_s, self._holder.remaining_s())
        if deadline_s < MIN_PAGE_S:
            return MIN_PAGE_S
        verdicts = await self._publish(page.send, deadline_s)
        await self._apply(verdicts)
        return self._pause(verdicts)

    async def _publish(self, records: Sequence[OutboxRecord], deadline_s: float) -> Verdicts:
        # A stream made by an older server has the switch off until it is provisioned again.
        epoch = self._connection.epoch
        message_ttl = self._connection.server_version >= TTL_SINCE and self._ttl_disabled_in != epoch
        messages = [
            sorting.outgoing(record, self._settings.destinations, message_ttl=message_ttl)
            for record in records
        ]
        results = await self._publisher.publish(messages, deadline_s=deadline_s)
        verdicts = sorting.judge(
            records,
            results,
            stream=self._settings.stream,
            hold_key=self._settings.on_refused == "hold_key",
        )
        if verdicts.ttl_disabled:
            self._ttl_disabled_in = epoch
            logger.warning("The stream %s takes no Nats-TTL; run jetbridge_provision.", self._settings.stream)
        return verdicts

    async def _apply(self, verdicts: Verdicts, *, origin: OutboxState = OutboxState.READY) -> None:
        if verdicts.stored:
            await self._threads.run(self._settle, verdicts.stored)
        if not self._holder.held():
            return  # what is not stored is the next owner's to judge
        for subject, (records, refusal) in verdicts.parked.items():
            if origin is OutboxState.PARKED:
                continue  # it stays as it is, without a write
            logger.error(
                "Parking %s: %s. Its events wait, the others flow; trying again every %g s.",
                subject,
                refusal.description,
                self._settings.park_retry_s,
            )
            self._parked[subject] = Trial(due=time.monotonic() + self._settings.park_retry_s)
            await self._set_aside(records, OutboxState.PARKED, sorting.code_of(refusal), refusal.description)
        for record, refusal in verdicts.refused:
            logger.error("Refused: outbox row %d to %s: %s.", record.id, record.subject, refusal.description)
            self.totals.refused += 1
            if record.key and self._settings.on_refused == "hold_key":
                self._refused.add((record.subject, record.key))  # before a commit whose answer may get lost
            await self._set_aside(
                [record], OutboxState.REFUSED, sorting.code_of(refusal), refusal.description, origin=origin
            )
        await self._set_aside(verdicts.followers, OutboxState.HELD, *HELD, origin=origin)

    def _settle(self, stored: Sequence[Settled]) -> None:
        """On a thread: from the ack to the archive, with the signals at both ends."""
        ids = [row.id for row in stored]
        signals.send(signals.publish_acked, using=self._using, ids=ids)
        store.settle(stored, stream_created_at=self._stream_created_at, using=self._using)
        signals.send(signals.outbox_settled, using=self._using, ids=ids)
        self.totals.published += len(stored)
        self.totals.duplicates += sum(row.duplicate for row in stored)

    async def _set_aside(
        self,
        records: Sequence[OutboxRecord],
        to: OutboxState,
        code: str,
        error: str,
        *,
        origin: OutboxState = OutboxState.READY,
    ) -> None:
        if not records:
            return
        ids = [record.id for record in records]
        moved = await self._threads.run(
            store.move, ids, to, code=code, error=error, origin=origin, using=self._using
        )
        if to is OutboxState.PARKED:
            self.totals.parked += moved

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
        buckets = frozenset(int(name.rpartition("/")[2]) for name in held)
        acquisitions = self._holder.acquisitions
        # After any acquisition everything is learned anew: another owner may have parked and held rows meanwhile.
        gained = buckets - self._buckets if acquisitions == self._acquisitions else buckets
        if gained:
            parked = await self._threads.run(store.parked_subjects, gained, using=self._using)
            self._parked |= {subject: Trial() for subject in parked if subject not in self._parked}
            held_keys = await self._threads.run(store.blocked, OutboxState.HELD, gained, using=self._using)
            self._refused |= held_keys
            if self._settings.on_refused == "hold_key":
                refused = await self._threads.run(
                    store.blocked, OutboxState.REFUSED, gained, using=self._using
                )
                self._refused |= {lane for lane in refused if lane[1]}
        self._buckets, self._acquisitions = buckets, acquisitions

    async def _learn_stream(self) -> None:
        """Once per connection: whether the stream is still the one the archive knows."""
        if self._settings.read_stream_info and self._epoch != self._connection.epoch:
            self._epoch = self._connection.epoch
            self._stream_created_at = await created_at(self._connection, self._settings.stream)

    async def _promote(self) -> None:
        """Whoever holds bucket 0 moves due rows for all, so that they get their ids in the order they are due."""
        now = time.monotonic()
        if 0 in self._buckets and now >= self._next_promote:
            limit = self._settings.page_size
            moved = await self._threads.run(store.promote_due, limit=limit, using=self._using)
            self._next_promote = now + (0.0 if moved == limit else PROMOTE_EVERY_S)

    def _draining(self, now: float = float("inf")) -> bool:
        """Whether rows of a parked subject pass, so that more of them may follow, at ``now`` if given."""
        return any(trial.size > 1 and trial.due <= now for trial in self._parked.values())

    async def _try_parked(self) -> None:
        """Some rows of the parked subjects that are due, the longest waiting first; then it is the others' turn."""
        now, room = time.monotonic(), DRAIN_PAGES * self._settings.page_size
        due = [subject for subject, trial in self._parked.items() if trial.due <= now]
        for subject in sorted(due, key=lambda subject: self._parked[subject].due):
            room -= await self._try(subject)
            if room <= 0:
                return

    async def _try(self, subject: str) -> int:
        """Send the oldest parked rows of a subject; returns how many were tried."""
        trial, tried = self._parked[subject], 0
        for _ in range(DRAIN_PAGES):
            limit = trial.size
            records = await self._threads.run(
                store.parked_page, subject, self._buckets, limit=limit, using=self._using
            )
            if not records:
                # Forgotten only when none is left: until then its new rows park behind them.
                del self._parked[subject]
                logger.info("%s works again; nothing of it is parked any more.", subject)
                return tried
            tried += len(records)
            if not await self._passes(trial, records):
                return tried
            trial.due = time.monotonic()
            trial.size = min(max(self._settings.window, 2 * limit), DRAIN_PAGES * self._settings.page_size)
            if len(records) == limit:
                return tried
            # Those were the last, or a page full of large ones: a look now, before newer rows park behind them.
        return tried

    async def _passes(self, trial: Trial, records: Sequence[OutboxRecord]) -> bool:
        """Whether a parked subject took everything of it that can be taken; if not, when to try it next."""
        page = sorting.sort(records, parked=(), refused=self._refused)
        await self._set_aside(page.hold, OutboxState.HELD, *HELD, origin=OutboxState.PARKED)
        if not page.send:
            return True
        deadline_s = min(self._settings.publish_timeout_s, self._holder.remaining_s())
        if deadline_s < MIN_PAGE_S:
            return False
        verdicts = await self._publish(page.send, deadline_s)
        await self._apply(verdicts, origin=OutboxState.PARKED)
        if verdicts.parked:
            trial.due, trial.size = time.monotonic() + self._settings.park_retry_s, 1
        elif verdicts.outage:
            trial.due = time.monotonic() + min(OUTAGE_BACKOFF_S[1], self._settings.park_retry_s)
        return not (verdicts.parked or verdicts.outage)

    async def _release_held(self) -> None:
        """Let the followers of a key go on once no row of it is refused any more, or refused rows are passed."""
        begun = time.monotonic()
        if begun < self._next_release:
            return
        # A relay that stood still for a moment may park a row after another took its bucket over.
        parked = await self._threads.run(store.parked_subjects, self._buckets, using=self._using)
        self._parked |= {subject: Trial() for subject in parked if subject not in self._parked}
        held = await self._threads.run(store.held_lanes, self._buckets, using=self._using)
        blocked: set[Lane] = set()
        if self._settings.on_refused == "hold_key" and (held or self._refused):
            blocked = await self._threads.run(
                store.blocked, OutboxState.REFUSED, self._buckets, using=self._using
            )
        free = _some({lane: rows for lane, rows in held.items() if lane not in blocked}, RELEASE_ROWS)
        for to_parked in (False, True):
            lanes = [lane for lane in free if (lane[0] in self._parked) is to_parked]
            # Behind what is parked of the key, by id; and nothing of the key may be in two places then.
            await self._threads.run(
                store.release, lanes, self._buckets, to_parked=to_parked, using=self._using
            )
        self._refused = (self._refused & blocked) | (held.keys() - free)
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

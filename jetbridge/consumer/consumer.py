"""
The consumer: from the durables it holds leases for, through lanes and worker threads, to the ack.

The loop keeps lanes, retries and heart-beats; each attempt is one transaction on a thread. An ack is
sent only when every handler of the message is settled in the database.
"""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from functools import partial

from django.db import DatabaseError, InterfaceError

from jetbridge import retry, signals
from jetbridge.conf import Settings
from jetbridge.consumer import routing
from jetbridge.consumer.delivery import Held, Item
from jetbridge.consumer.durables import durables, lease_of
from jetbridge.consumer.execute import ABANDONED, Settled, Settlement, Wait, execute
from jetbridge.consumer.lanes import Lanes
from jetbridge.consumer.outages import Outages
from jetbridge.consumer.overdue import Overdue
from jetbridge.consumer.slots import Slots
from jetbridge.deferred import store as deferred
from jetbridge.inbox import store as inbox
from jetbridge.inbox.unit_of_work import NotAlone
from jetbridge.jetstream import acks
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.incoming import Incoming
from jetbridge.registry import Registry
from jetbridge.runtime.service import is_cancelled
from jetbridge.runtime.threads import Threads

logger = logging.getLogger("jetbridge.consumer")

OUTAGE_DELAY_S = 1.0
DEFERRED_EVERY_S = 0.5
DEFERRED_AT_ONCE = 100


@dataclass(slots=True, kw_only=True)
class Totals:
    """What a consumer has done since it started."""

    handled: int = 0
    duplicates: int = 0
    dead: int = 0


class Consumer:
    """
    Runs what the feeds bring.

    Args:
        owner: Name of this process, under which starts are recorded.
        threads: The handlers' pool.
        store_threads: A small pool of its own for the deferred table: the handlers' may be busy for minutes.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        owner: str,
        connection: Connection,
        registry: Registry,
        threads: Threads,
        store_threads: Threads,
    ) -> None:
        self.totals = Totals()
        self._settings = settings
        self._owner = owner
        self._connection = connection
        self._registry = registry
        self._threads = threads
        self._store_threads = store_threads
        self._lanes: Lanes[Item] = Lanes()
        self._messages: set[Held] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = Slots(threads.size)
        self._draining = asyncio.Event()
        self._running: set[Item] = set()
        self._in_hand: Counter[str] = Counter()
        self._outages = Outages()
        self._has_lost_a_lane = False
        self.overdue = Overdue(
            self._running,
            timeout_s=settings.handler_timeout_s,
            size=threads.size,
            waits_alone=lambda: self._slots.waiting_alone > 0,
        )
        self.on_room: Callable[[str], None] = lambda feed: None
        self.is_ours: Callable[[Held], bool] = lambda message: True

    # --- taking in -------------------------------------------------------------------------------

    def take(self, incoming: Incoming, feed: str) -> None:
        """A message has arrived; called on the loop by a feed that holds its lease."""
        jobs = routing.jobs_of(incoming, self._registry, self._settings)
        message = Held(
            subject=incoming.subject,
            stream=incoming.stream,
            sequence=incoming.sequence,
            reply=incoming.reply,
            feed=feed,
            lease=feed,
            open_jobs=len(jobs),
        )
        self._messages.add(message)
        self._in_hand[feed] += 1
        if not jobs:
            self._start(self._finish(message))
        for job in jobs:
            self._push(Item(job=job, message=message))

    def _push(self, item: Item) -> None:
        if self._lanes.push(item.lane(), item):
            self._start(self._run(item))

    def _start(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = CancelledError() if task.cancelled() else task.exception()
        if error is not None and not self._draining.is_set():
            self._has_lost_a_lane = True
            logger.error(
                "A delivery task ended. Its message, and all behind it, stay where they are until this process "
                "is started anew.",
                exc_info=error,
            )

    def in_hand(self, feed: str) -> int:
        """Messages of a feed that are not settled."""
        return self._in_hand[feed]

    @property
    def is_idle(self) -> bool:
        return not self._messages

    # --- running ---------------------------------------------------------------------------------

    async def _run(self, item: Item) -> None:
        """The head of a lane, until it is settled; then the next of its lane."""
        settled = await self._attempts(item)
        if settled is None:
            return  # draining: the message goes back as it came
        self._count(settled)
        item.message.open_jobs -= 1
        if not item.message.open_jobs:
            await self._finish(item.message)
        following = self._lanes.pop(item.lane())
        if following is not None:
            self._start(self._run(following))

    async def _attempts(self, item: Item) -> Settled | None:
        while True:
            await self._others_ask(item)
            async with self._slots.taken(alone=item.alone):
                if self._draining.is_set():
                    return None
                self._running.add(item)
                item.began_at = time.monotonic()
                try:
                    settlement = await self._attempt(item)
                finally:
                    self._running.discard(item)
            is_news = self._learn(item, settlement)
            if isinstance(settlement, Settled):
                return settlement
            if isinstance(settlement, NotAlone):
                item.alone = True
                continue
            logger.log(
                logging.INFO if is_news else logging.DEBUG,
                "%s %s/%s waits %.1f s: %s",
                item.job.handler_name,
                item.job.received.source,
                item.job.received.event_id,
                settlement.delay_s,
                settlement.why,
            )
            if await self._drained_within(settlement.delay_s):
                self._outages.leave(item)
                return None

    async def _others_ask(self, item: Item) -> None:
        """While the database is away one attempt asks for it; the others wait until it has got an answer."""
        while not self._draining.is_set() and (over := self._outages.over(item, item.job.using)):
            await over.wait()

    def _learn(self, item: Item, settlement: Settlement) -> bool:
        """What a settlement tells of the database; whether it is worth a line of the log beside that."""
        if isinstance(settlement, Wait) and settlement.away:
            self._outages.met(item, item.job.using, settlement.why)
            return False
        if settlement == ABANDONED:
            self._outages.leave(item)
        elif not isinstance(settlement, Wait) or settlement.heard:
            self._outages.answered(item.job.using)
        item.waits = item.waits + 1 if isinstance(settlement, Wait) and not settlement.said else 0
        return item.waits in (1, 10, 100) or (item.waits > 0 and item.waits % 1000 == 0)

    async def _attempt(self, item: Item) -> Settlement:
        job = item.job
        try:
            if not self._keeps(item.message):
                if (
                    item.began and job.suspect
                ):  # or the new owner takes us for dead, and holds it against the event
                    await self._threads.run(
                        inbox.take_back, job.received, job.handler_name, owner=self._owner, using=job.using
                    )
                return ABANDONED
            item.began = True
            return await self._threads.run(
                execute,
                job,
                self._settings,
                owner=self._owner,
                alone=item.alone,
                is_ours=lambda: self._keeps(item.message),
            )
        except (DatabaseError, InterfaceError) as error:
            return Wait(delay_s=OUTAGE_DELAY_S, why=str(error).strip(), away=retry.is_away(error))
        except (Exception, SystemExit, CancelledError) as error:  # a fault of ours must not lose the lane
            if is_cancelled():
                raise
            logger.exception("An attempt could not be recorded; trying again.")
            return Wait(delay_s=OUTAGE_DELAY_S, why=repr(error))

    def _keeps(self, message: Held) -> bool:
        """
        Whether a message is still ours. Asked of the lease itself: a process that was stopped for a while goes
        on before its loops have noticed what it has lost.
        """
        message.abandoned = message.abandoned or not self.is_ours(message)
        return not message.abandoned

    async def _drained_within(self, delay_s: float) -> bool:
        """Wait for a retry; ``True`` as soon as draining begins."""
        try:
            async with asyncio.timeout(delay_s):
                await self._draining.wait()
        except TimeoutError:
            return self._draining.is_set()
        return True

    def _count(self, settled: Settled) -> None:
        match settled.how:
            case "handled":
                self.totals.handled += 1
            case "duplicate":
                self.totals.duplicates += 1
            case "dead":
                self.totals.dead += 1

    async def _finish(self, message: Held) -> None:
        """Every handler of the message is settled in the database: only now may the ack go."""
        self._messages.discard(message)
        if message.feed:
            self._in_hand[message.feed] -= 1
            self.on_room(message.feed)
        if message.reply and not message.abandoned and await acks.ack(self._connection, message.reply):
            signals.send(
                signals.delivery_acked,
                subject=message.subject,
                stream=message.stream,
                sequence=message.sequence,
            )

    def has_lost_a_lane(self) -> bool:
        """Whether a lane stands still because nobody works on it any more."""
        return self._has_lost_a_lane

    # --- loops -----------------------------------------------------------------------------------

    async def keep_alive(self) -> float:
        """Tell the server about every message in hand, so that it does not give it to another."""
        self.overdue.say()
        interval_s = self._settings.ack_wait_s / 3
        now = time.monotonic()
        for message in list(self._messages):
            if message.reply and not message.abandoned and now - message.touched_at >= interval_s * 0.9:
                message.touched_at = now
                await acks.in_progress(self._connection, message.reply)
        return interval_s / 3

    async def dispatch_deferred(self, held: Collection[str], using: str) -> float:
        """Bring due messages of the deferred table into the lanes: those of the keys whose leases are held."""
        if not held or self._draining.is_set():
            return DEFERRED_EVERY_S
        in_hand = {m.deferred[1] for m in self._messages if m.deferred is not None and m.deferred[0] == using}
        room = self._settings.max_in_flight - len(in_hand)
        if room < self._settings.max_in_flight / 2:
            return DEFERRED_EVERY_S / 5  # each look sorts all that is due: it must bring more than a few
        limit = min(DEFERRED_AT_ONCE, max(1, room))
        lease = partial(lease_of, settings=self._settings)
        has_all = all(durable.lease in held for durable in durables(self._settings))
        records = await self._store_threads.run(
            deferred.due,
            sources=list(self._settings.sources),
            without=in_hand,
            is_wanted=None if has_all else lambda *of_row: lease(*of_row) in held,
            limit=limit,
            using=using,
        )
        for record in records:
            job = routing.job_of_deferred(record, self._registry, self._settings, using=using)
            message = Held(
                subject=record.subject,
                stream=record.stream,
                sequence=record.sequence,
                reply="",
                feed="",
                lease=lease(record.source, record.key, record.event_id),
                deferred=(using, record.id),
                open_jobs=1,
            )
            self._messages.add(message)
            self._push(Item(job=job, message=message))
        return 0.0 if len(records) == limit else DEFERRED_EVERY_S

    # --- ending ----------------------------------------------------------------------------------

    def abandon(self, feed: str) -> None:
        """
        The lease of a feed is lost: its messages belong to another now.

        What waits is dropped without a nak, which would move messages under the new owner's hands. What
        runs is finished; if the other got there first, the inbox says so.
        """
        for message in self._messages:
            message.abandoned = message.abandoned or message.feed == feed

    def _kept(self) -> set[Held]:
        """
        What runs, and all that stands behind it in any lane: given back, it would overtake at the next owner.

        A message behind a kept one is kept itself, and may stand at the head of another handler's lane.
        """
        kept = {item.message for item in self._running}
        lanes = list(self._lanes.lanes())
        grown = True
        while grown:
            before = len(kept)
            for lane in lanes:
                first = next((n for n, item in enumerate(lane) if item.message in kept), len(lane))
                kept |= {item.message for item in lane[first:]}
            grown = len(kept) > before
        return kept

    async def drain(self, timeout_s: float) -> int:
        """
        Finish what runs and give back the rest; the feeds have stopped pulling before.

        Returns:
            Attempts that were still running when the time was up. Their messages come back after ``ack_wait``.
        """
        self._draining.set()
        self._outages.leave()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        kept = self._kept()
        # In stream order, which the server mostly keeps; it rotates its queue when it wakes up without a pull.
        for message in sorted(self._messages - kept, key=lambda message: message.sequence):
            if message.reply and not message.abandoned:
                await acks.nak(self._connection, message.reply)
        return len(self._running)

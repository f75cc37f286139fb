"""A consumer process: what it is made of, and the order in which it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from django.db import DatabaseError, InterfaceError, connections

import jetbridge
from jetbridge.conf import Settings
from jetbridge.consumer.consumer import Consumer, Totals
from jetbridge.consumer.durables import durables
from jetbridge.consumer.feed import Feed
from jetbridge.consumer.stranded import Stranded
from jetbridge.deferred import store as deferred
from jetbridge.errors import BrokerUnreachable
from jetbridge.inbox import store as inbox
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.options import options_for
from jetbridge.leases import store as leases
from jetbridge.leases.heartbeat import Heartbeat
from jetbridge.leases.holder import LeaseHolder
from jetbridge.registry import registry
from jetbridge.runtime.limits import limits_of
from jetbridge.runtime.loops import Loops
from jetbridge.runtime.process import Until, quietly, run_until
from jetbridge.runtime.service import Loop
from jetbridge.runtime.sessions import idle_limit_s, limit_idle_transactions
from jetbridge.runtime.supervisor import on_forced_end, process_id
from jetbridge.runtime.threads import Threads

logger = logging.getLogger("jetbridge.consumer")
FIRST_CONNECT_S = 10.0
END_S = 5.0
# The server is asked to stop, what it sent before is taken, and the pull loop ends: each step has its own limit.
FEED_LIMIT_S = 30.0
GIVE_BACK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumeReport:
    """
    What a consumer did.

    Attributes:
        left: What it had in hand when it ended.
        waiting: Why a one-shot run could not know that all is empty, as sentences; only where time ran out.
    """

    totals: Totals
    left: int
    finished: bool
    waiting: Sequence[str] = ()


def threads_for(settings: Settings) -> int:
    """Handler threads: one where the database takes one writer at a time."""
    vendors = {connections[alias].vendor for alias in settings.databases}
    return 1 if "sqlite" in vendors else settings.concurrency


def longest_handler_s(settings: Settings) -> float:
    """The longest time-out of any handler."""
    own = [handler.timeout_s for handler in registry.all() if handler.timeout_s is not None]
    return max([settings.handler_timeout_s, *own])


async def run_consumer(
    settings: Settings, *, stop: asyncio.Event, until_empty: bool = False, timeout_s: float | None = None
) -> ConsumeReport:
    """
    Consume until stopped, or until every durable and the deferred table are empty.

    Raises:
        BrokerUnreachable: A one-shot run found no server within ten seconds; a lasting one waits instead.
    """
    connection = Connection(options_for(settings, "worker"))
    await connection.start()
    try:
        if until_empty and not await connection.ready(min(FIRST_CONNECT_S, timeout_s or FIRST_CONNECT_S)):
            raise BrokerUnreachable(connection.why_unreachable())
        async with Loops() as loops:
            process = _Process(settings, connection, loops)
            return await process.run(stop, until_empty=until_empty, timeout_s=timeout_s)
    finally:
        await connection.close()


class _Process:
    """The parts of a consumer and how they hang together."""

    def __init__(self, settings: Settings, connection: Connection, loops: Loops) -> None:
        self.settings = settings
        self.loops = loops
        self.limits = limits_of(settings, settings.databases)
        self.using = settings.databases[0]
        # Without a deadline: what runs there is not ours. Overdue handlers are told of, and freed by the database.
        self.handler_threads = Threads("handlers", threads_for(settings))
        self.store_threads = Threads("store", 1, deadline_s=self.limits.query_s)
        self.lease_threads = Threads("leases", 1, deadline_s=self.limits.lease_query_s)
        self.unlimit = limit_idle_transactions(
            settings.databases, idle_s=idle_limit_s(longest_handler_s(settings))
        )
        self.owner = owner = process_id()
        wanted = durables(settings)
        self.holder = LeaseHolder(
            [durable.lease for durable in wanted],
            owner=owner,
            ttl_s=settings.lease_s,
            threads=self.lease_threads,
            using=self.using,
            working=lambda: connection.is_connected and loops.liveness.is_alive(),
        )
        self.consumer = Consumer(
            settings,
            owner=owner,
            connection=connection,
            registry=registry,
            threads=self.handler_threads,
            store_threads=self.store_threads,
        )
        budget = max(1, settings.max_in_flight // max(1, len(wanted)))
        self.feeds = [
            Feed(
                settings,
                durable,
                connection=connection,
                consumer=self.consumer,
                budget=budget,
                is_held=lambda name: name in self.holder.held(),
            )
            for durable in wanted
        ]
        self.stranded = Stranded(
            settings,
            self.feeds,
            owner=owner,
            connection=connection,
            registry=registry,
            threads=self.store_threads,
            is_held=lambda name: name in self.holder.held(),
        )
        by_lease = {feed.lease: feed for feed in self.feeds}
        self.consumer.is_ours = lambda message: message.lease in self.holder.held()
        self.consumer.on_room = lambda lease: by_lease[lease].wake()
        self.draining = False
        self.beat = Heartbeat(
            owner,
            role="consumer",
            version=jetbridge.__version__,
            info=self._info,
            threads=self.lease_threads,
            using=self.using,
        )
        self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        """What can be stuck without being a loop."""
        liveness = self.loops.liveness
        liveness.also("connection", lambda: not connection.is_supervised)
        liveness.also("handlers", self.consumer.overdue.is_choked)
        liveness.also("lanes", self.consumer.has_lost_a_lane)
        for threads in (self.store_threads, self.lease_threads):
            liveness.also(f"threads {threads.name}", threads.are_lost)
        for feed in self.feeds:
            liveness.also(f"pull {feed.lease}", feed.is_deaf)

    def _info(self) -> Mapping[str, object]:
        info: dict[str, object] = {
            "pulling": sorted(feed.lease for feed in self.feeds if feed.is_pulling),
            "stuck": self.loops.liveness.names(),
            "overdue": self.consumer.overdue.titles(),
            **self.stranded.info,
        }
        return {**info, "draining": True} if self.draining else info

    async def run(self, stop: asyncio.Event, *, until_empty: bool, timeout_s: float | None) -> ConsumeReport:
        try:
            with on_forced_end(self._give_back_at_once):
                return await self._run(stop, until_empty=until_empty, timeout_s=timeout_s)
        finally:
            self.unlimit()  # where a consumer is run inside another program, that one's sessions are its own

    async def _run(self, stop: asyncio.Event, *, until_empty: bool, timeout_s: float | None) -> ConsumeReport:
        names = ", ".join(f"{h.name} ({' '.join(h.patterns)})" for h in registry.all())
        logger.info("Handlers: %s.", names or "none; every event will become a dead letter")
        intake, upkeep = self._start()
        finished = await run_until(
            stop, Until(empty=self._is_empty, timeout_s=timeout_s) if until_empty else None
        )
        # Asked before the end, which hands our own leases back.
        waiting = () if finished else await self._waiting()
        left = await self._drain(intake)
        await self.loops.stop(*upkeep, timeout_s=END_S)
        await quietly("handing the leases back", self.holder.release(), timeout_s=END_S)
        await quietly("signing off", self.beat.end(), timeout_s=END_S)
        for threads in (self.handler_threads, self.store_threads, self.lease_threads):
            threads.close(wait=False)
        return ConsumeReport(totals=self.consumer.totals, left=left, finished=finished, waiting=waiting)

    def _start(self) -> tuple[list[Loop], list[Loop]]:
        """Begin all loops: those that take in, which end first, and those that keep up what is in hand."""
        settings, limits, start = self.settings, self.limits, self.loops.start
        intake = [start(f"feed {feed.lease}", feed.tick, limit_s=FEED_LIMIT_S) for feed in self.feeds]
        intake += [
            start(f"deferred {alias}", partial(self._dispatch, alias), limit_s=limits.dispatch_s)
            for alias in settings.databases
        ]
        intake.append(start("given up", self.stranded.tick, limit_s=limits.stranded_s))
        upkeep = [
            start("consumer leases", self.holder.tick, limit_s=limits.upkeep_s),
            start("consumer heartbeat", self.beat.tick, limit_s=limits.upkeep_s),
            start("keep-alive", self.consumer.keep_alive, limit_s=settings.ack_wait_s),
        ]
        return intake, upkeep

    async def _dispatch(self, alias: str) -> float:
        return await self.consumer.dispatch_deferred(self.holder.held(), alias)

    async def _drain(self, intake: list[Loop]) -> int:
        """Stop taking in, then finish what runs, while leases and messages in hand are kept alive."""
        self.draining = True
        # Said at once: who has no patience with us must not be taken for the doing of what runs now.
        said = asyncio.create_task(quietly("saying so", self.beat.tick(), timeout_s=END_S))
        await self.loops.stop(*intake, timeout_s=END_S)
        await asyncio.gather(*(feed.stop() for feed in self.feeds))
        running = await self.consumer.drain(self.settings.shutdown_timeout_s)
        if running:
            logger.warning("%d attempts were still running when the time to drain was up.", running)
        await quietly("giving recorded starts back", self._give_back(), timeout_s=END_S)
        await said
        return running

    async def _give_back(self) -> None:
        """
        We live to see the end of every start we recorded, so none may be held against its event.

        What still runs is cut off first: it holds the lock on its row, and on SQLite the one on everything.
        """
        await self.store_threads.run(self.handler_threads.cut)
        for alias in self.settings.databases:
            while True:
                locked = await self.store_threads.run(inbox.give_back, self.owner, using=alias)
                if not locked:
                    break
                await asyncio.sleep(GIVE_BACK_EVERY_S)  # until the database has noticed

    def _give_back_at_once(self) -> None:
        """The same at a forced end, for as long as that allows. On a thread of its own: the loop has stopped."""
        self.handler_threads.cut()
        for alias in self.settings.databases:
            while inbox.give_back(self.owner, using=alias):
                time.sleep(GIVE_BACK_EVERY_S)

    async def _waiting(self) -> list[str]:
        """What keeps this process from seeing every durable: a lease somebody else holds, a durable nobody made."""
        owners: dict[str, str] = {}
        ours = self.holder.held()
        if any(feed.lease not in ours for feed in self.feeds):
            try:
                held = await self.lease_threads.run(leases.held, using=self.using)
            except (DatabaseError, InterfaceError) as error:
                return [f"The leases cannot be read: {str(error).strip()}."]
            owners = {lease.name: lease.owner for lease in held}
        said = []
        for feed in self.feeds:
            if feed.lease not in ours:
                owner = owners.get(feed.lease, "another process until just now")
                said.append(
                    f"The lease {feed.lease} is held by {owner}, and only its holder can see that "
                    f"{feed.durable} is empty. Stop that consumer first."
                )
            elif feed.is_missing:
                said.append(
                    f"The durable {feed.durable} does not exist in the stream {feed.stream}. "
                    "Run: manage.py jetbridge_provision"
                )
        return said

    async def _is_empty(self) -> bool:
        if not self.consumer.is_idle or await self._any_deferred():
            return False
        for feed in self.feeds:
            if not await feed.is_empty():
                return False
        return self.consumer.is_idle

    async def _any_deferred(self) -> bool:
        sources = list(self.settings.sources)
        for alias in self.settings.databases:
            if await self.store_threads.run(deferred.any_due, sources=sources, using=alias):
                return True
        return False

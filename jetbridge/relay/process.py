"""A relay process: what it is made of, and the order in which it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import jetbridge
from jetbridge.conf import Settings
from jetbridge.errors import BrokerUnreachable
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.options import options_for
from jetbridge.jetstream.publisher import WindowPublisher
from jetbridge.leases.heartbeat import Heartbeat
from jetbridge.leases.holder import LeaseHolder
from jetbridge.outbox import store
from jetbridge.relay.relay import LEASE_NAMES, Relay, Totals
from jetbridge.runtime.limits import Limits, limits_of
from jetbridge.runtime.loops import Loops
from jetbridge.runtime.process import Until, quietly, run_until
from jetbridge.runtime.sessions import harden_connections
from jetbridge.runtime.supervisor import process_id
from jetbridge.runtime.threads import Threads

logger = logging.getLogger("jetbridge.relay")
ROLE = "relay"
FIRST_CONNECT_S = 10.0
END_S = 5.0


class Moved:
    """
    Whether a number has grown since the last question: what a loop does, seen from outside.

    A loop that is stuck in the middle of a step cannot say so itself.
    """

    def __init__(self, number: Callable[[], int]) -> None:
        self._number = number
        self._seen = 0

    def __call__(self) -> bool:
        before, self._seen = self._seen, self._number()
        return self._seen > before


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayReport:
    """What a relay did, and what is left in the outbox."""

    totals: Totals
    left: int
    finished: bool


async def run_relay(
    settings: Settings,
    *,
    using: str,
    stop: asyncio.Event,
    until_empty: bool = False,
    timeout_s: float | None = None,
) -> RelayReport:
    """
    Relay until stopped, or until nothing is ready or due.

    Raises:
        BrokerUnreachable: A one-shot run found no server within ten seconds; a lasting one waits instead.
    """
    harden_connections([using])
    connection = Connection(options_for(settings, "relay"))
    await connection.start()
    limits = limits_of(settings, [using])
    pages = Threads("relay", 1, deadline_s=limits.query_s)
    leases = Threads("leases", 1, deadline_s=limits.lease_query_s)
    try:
        if until_empty and not await connection.ready(min(FIRST_CONNECT_S, timeout_s or FIRST_CONNECT_S)):
            raise BrokerUnreachable(connection.why_unreachable())
        async with Loops() as loops:
            return await _run(
                settings, using, stop, until_empty, timeout_s, connection, pages, leases, limits, loops
            )
    finally:
        await connection.close()
        pages.close(wait=False)
        leases.close(wait=False)


async def _run(
    settings: Settings,
    using: str,
    stop: asyncio.Event,
    until_empty: bool,
    timeout_s: float | None,
    connection: Connection,
    pages: Threads,
    leases: Threads,
    limits: Limits,
    loops: Loops,
) -> RelayReport:
    owner = process_id()
    liveness, moved = loops.liveness, Moved(lambda: relay.progress)
    holder = LeaseHolder(
        LEASE_NAMES,
        owner=owner,
        ttl_s=settings.lease_s,
        threads=leases,
        using=using,
        working=lambda: moved() and liveness.is_alive(),
        role=ROLE,
    )
    publisher = WindowPublisher(connection, window=settings.window)
    relay = Relay(
        settings, using=using, connection=connection, publisher=publisher, holder=holder, threads=pages
    )
    beat = Heartbeat(
        owner,
        role=ROLE,
        version=jetbridge.__version__,
        info=lambda: {
            "buckets": len(holder.held()),
            **holder.describe(),
            "published": relay.totals.published,
            "stuck": liveness.names(),
        },
        threads=leases,
        using=using,
        every_s=settings.lease_s / 3,
    )
    liveness.also("connection", lambda: not connection.is_supervised)
    for threads in (pages, leases):
        liveness.also(f"threads {threads.name}", threads.are_lost)
    work = loops.start("relay", relay.tick, limit_s=limits.relay_s)
    beating = loops.start("relay heartbeat", beat.tick, limit_s=limits.upkeep_s)
    upkeep = [loops.start("relay leases", holder.tick, limit_s=limits.upkeep_s), beating]

    def on_change() -> None:
        beating.wake()  # the others look every second; they need not wait for the next beat
        work.wake()

    holder.on_change = on_change
    finished = await run_until(
        stop, Until(empty=relay.is_empty, timeout_s=timeout_s) if until_empty else None
    )
    # The page under way is finished while its leases are still renewed.
    await loops.stop(work, timeout_s=settings.publish_timeout_s + END_S)
    await loops.stop(*upkeep, timeout_s=END_S)
    await quietly("closing the publisher", publisher.close(), timeout_s=END_S)
    await quietly("handing the leases back", holder.release(), timeout_s=END_S)
    await quietly("signing off", beat.end(), timeout_s=END_S)
    left = await pages.run(store.left, using=using) if until_empty else 0
    return RelayReport(totals=relay.totals, left=left, finished=finished)

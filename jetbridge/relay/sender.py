"""
From rows to the stream to the tables: publish some, judge the answers, write down what follows.

What the stream has stored is settled whoever owns its bucket by now. Everything else is a judgement, and written
only to buckets that are still ours (``outbox.store_fence``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from jetbridge import signals
from jetbridge.conf import Settings
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.publisher import Outgoing, WindowPublisher
from jetbridge.jetstream.subjects import covered
from jetbridge.leases.holder import LeaseHolder
from jetbridge.models import OutboxState
from jetbridge.outbox import store
from jetbridge.outbox.records import OutboxRecord, Settled
from jetbridge.relay import sorting, stream_info
from jetbridge.relay.knowledge import Knowledge, Trial
from jetbridge.relay.sorting import Verdicts
from jetbridge.runtime.threads import Threads

logger = logging.getLogger("jetbridge.relay")

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


class Sender:
    """
    Args:
        known: Learns here what is parked and refused.
        threads: Runs the statements, one at a time.

    Attributes:
        stream_created_at: Goes to the archive with each row.
        is_heard: Whether the last rows that were sent got any answer at all, be it a refusal.
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
        known: Knowledge,
    ) -> None:
        self.totals = Totals()
        self.stream_created_at: datetime | None = None
        self.is_heard = True
        self._settings = settings
        self._using = using
        self._connection = connection
        self._publisher = publisher
        self._holder = holder
        self._threads = threads
        self._known = known
        self._ttl_disabled_in = -1

    async def send(
        self, records: Sequence[OutboxRecord], *, origin: OutboxState = OutboxState.READY
    ) -> Verdicts | None:
        """
        Publish rows that are in state ``origin`` and write down what became of them.

        Returns:
            The verdicts, already applied; ``None`` if our leases do not last long enough to send anything.
        """
        verdicts = await self._publish(records)
        if verdicts is not None:
            self.is_heard = verdicts.answered
            await self._apply(verdicts, origin)
        return verdicts

    async def set_aside(
        self,
        records: Sequence[OutboxRecord],
        to: OutboxState,
        code: str,
        error: str,
        *,
        origin: OutboxState = OutboxState.READY,
    ) -> None:
        """Take rows that cannot go now out of the hot index."""
        if not records:
            return
        ids = [record.id for record in records]
        owner = self._holder.owner
        moved = await self._threads.run(
            store.move, ids, to, code=code, error=error, origin=origin, owner=owner, using=self._using
        )
        if to is OutboxState.PARKED:
            self.totals.parked += moved

    async def _publish(self, records: Sequence[OutboxRecord]) -> Verdicts | None:
        # A stream made by an older server has the switch off until it is provisioned again.
        epoch = self._connection.epoch
        message_ttl = self._connection.server_version >= TTL_SINCE and self._ttl_disabled_in != epoch
        messages = [
            sorting.outgoing(record, self._settings.destinations, message_ttl=message_ttl)
            for record in records
        ]
        # Asked last: everything above takes time of the lease, also a process that was stopped in between.
        deadline_s = min(self._settings.publish_timeout_s, self._holder.remaining_s())
        if deadline_s < MIN_PAGE_S:
            return None
        results = await self._publisher.publish(messages, deadline_s=deadline_s)
        judge = partial(
            sorting.judge,
            records,
            results,
            stream=self._settings.stream,
            hold_key=self._settings.on_refused == "hold_key",
        )
        verdicts = judge()
        if verdicts.unheard and (uncovered := await self._uncovered(records, messages)):
            verdicts = judge(uncovered=uncovered)
        if verdicts.ttl_disabled:
            self._ttl_disabled_in = epoch
            logger.warning("The stream %s takes no Nats-TTL; run jetbridge_provision.", self._settings.stream)
        return verdicts

    async def _uncovered(self, records: Sequence[OutboxRecord], messages: Sequence[Outgoing]) -> set[str]:
        """
        Subjects that our stream does not take. Asked where nothing of a page was stored: such rows in front of all
        others look like an outage, and nothing behind them would ever be sent.
        """
        taken = await stream_info.subjects(self._connection, self._settings.stream)
        pairs = zip(records, messages, strict=True)
        return {
            record.subject
            for record, message in pairs
            if taken and not any(covered(message.subject, by) for by in taken)
        }

    async def _apply(self, verdicts: Verdicts, origin: OutboxState) -> None:
        if verdicts.stored:
            await self._threads.run(self._settle, verdicts.stored)
        if not self._holder.remaining_s():
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
            self._known.parked[subject] = Trial(due=time.monotonic() + self._settings.park_retry_s)
            await self.set_aside(records, OutboxState.PARKED, sorting.code_of(refusal), refusal.description)
        for record, refusal in verdicts.refused:
            logger.error("Refused: outbox row %d to %s: %s.", record.id, record.subject, refusal.description)
            self.totals.refused += 1
            if record.key and self._settings.on_refused == "hold_key":
                # Before a commit whose answer may get lost.
                self._known.refused.add((record.subject, record.key))
            await self.set_aside(
                [record], OutboxState.REFUSED, sorting.code_of(refusal), refusal.description, origin=origin
            )
        await self.set_aside(verdicts.followers, OutboxState.HELD, *HELD, origin=origin)

    def _settle(self, stored: Sequence[Settled]) -> None:
        """On a thread: from the ack to the archive, with the signals at both ends."""
        ids = [row.id for row in stored]
        signals.send(signals.publish_acked, using=self._using, ids=ids)
        store.settle(stored, stream_created_at=self.stream_created_at, using=self._using)
        signals.send(signals.outbox_settled, using=self._using, ids=ids)
        self.totals.published += len(stored)
        self.totals.duplicates += sum(row.duplicate for row in stored)

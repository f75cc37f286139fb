"""
Messages that a durable has given up: saved where possible, and always told.

With a finite ``max_deliver`` a message whose consumers die often enough stays in a work queue for good. Who holds the
durable's lease reads it by its sequence, if it may, and puts it into the deferred table: there it runs, its starts
are counted, and what kills its process ends as a dead letter. Its copy in the stream is for an operator to remove.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from jetbridge import text
from jetbridge.conf import Settings
from jetbridge.consumer import routing
from jetbridge.consumer.durable_check import faults
from jetbridge.consumer.execute import Job, execute
from jetbridge.consumer.feed import Feed
from jetbridge.deferred import store as deferred
from jetbridge.errors import BrokerUnreachable
from jetbridge.jetstream.advisories import Advisories, Advisory, read_stored
from jetbridge.jetstream.connection import Connection, PermissionDenied
from jetbridge.jetstream.incoming import Incoming
from jetbridge.jetstream.provision_spec import ConsumerSpec, wanted
from jetbridge.jetstream.subjects import covered
from jetbridge.models.deferred import DeferredKind
from jetbridge.monitor import store as monitor
from jetbridge.registry import Registry
from jetbridge.runtime.threads import Threads

logger = logging.getLogger("jetbridge.consumer")

EVERY_S: Final = 0.2
ASK_AGAIN_S: Final = 30.0
MAX_WAITING: Final = 10_000
AT_ONCE: Final = 20  # a thousand in one tick would look like a loop that is stuck
REMEDY: Final = "Run jetbridge_provision: it sets max_deliver to -1."


class Stranded:
    """
    Attributes:
        saved: Messages that were given up and run from the deferred table, or are a dead letter now.
        lost: Messages that were given up, or terminated by somebody, and that nothing here accounts for.
    """

    def __init__(
        self,
        settings: Settings,
        feeds: Sequence[Feed],
        *,
        owner: str,
        connection: Connection,
        registry: Registry,
        threads: Threads,
        is_held: Callable[[str], bool],
    ) -> None:
        self.saved = self.lost = 0
        self._settings = settings
        self._feeds = {(feed.stream, feed.durable): feed for feed in feeds}
        self._specs = {(spec.stream, spec.name): spec for spec in wanted(settings)[1]}
        self._owner = owner
        self._connection = connection
        self._registry = registry
        self._threads = threads
        self._is_held = is_held
        self._advisories = Advisories(connection, self._feeds)
        # Every copy of the process hears them. Whoever gets the lease later looks at them, too: the inbox knows.
        self._waiting: dict[Advisory, None] = {}
        self._checked: dict[str, tuple[int, float]] = {}
        self._said: set[str] = set()

    @property
    def info(self) -> dict[str, int]:
        """For the row of this process."""
        return {"given_up_saved": self.saved, "given_up_lost": self.lost}

    async def tick(self) -> float:
        for advisory in self._advisories.take():
            if len(self._waiting) < MAX_WAITING:
                self._waiting[advisory] = None
        ours = (a for a in self._waiting if self._is_held(self._feeds[(a.stream, a.durable)].lease))
        for advisory in list(itertools.islice(ours, AT_ONCE)):
            try:
                await self._account_for(advisory)
            except BrokerUnreachable:
                # Asked again when it answers, behind the others: its stream may be gone, and theirs not.
                self._waiting[advisory] = self._waiting.pop(advisory)
                break
            del self._waiting[advisory]
        for place, feed in self._feeds.items():
            if self._is_held(feed.lease) and self._connection.is_connected:
                await self._check(feed, self._specs[place])
        return EVERY_S

    # --- messages --------------------------------------------------------------------------------

    async def _account_for(self, advisory: Advisory) -> None:
        if advisory.is_terminated:
            await self._explain(advisory)
            return
        try:
            message = await read_stored(self._connection, advisory)
        except PermissionDenied as denied:
            self.lost += 1
            logger.error(
                "%s It stays in the stream. Allow %s to save such messages, or remove it: nats stream rmm %s %d. %s",
                _given_up(advisory),
                denied.subject,
                advisory.stream,
                advisory.sequence,
                REMEDY,
            )
            return
        if message is None:
            logger.info("%s It has been removed from the stream since.", _given_up(advisory))
        elif any(
            covered(message.subject, by) for by in self._specs[(advisory.stream, advisory.durable)].filters
        ):
            await self._save(message, advisory)

    async def _save(self, message: Incoming, advisory: Advisory) -> None:
        for job in routing.jobs_of(message, self._registry, self._settings):
            if job.handler is None:
                await self._threads.run(execute, job, self._settings, owner=self._owner)
            else:
                await self._threads.run(_defer, job)
        self.saved += 1
        logger.error(
            "%s It runs from the deferred table now. Its copy stays in the stream, and this user may not remove it: "
            "nats stream rmm %s %d. %s",
            _given_up(advisory),
            advisory.stream,
            advisory.sequence,
            REMEDY,
        )

    async def _explain(self, advisory: Advisory) -> None:
        for alias in self._settings.databases:
            if await self._threads.run(
                monitor.knows_outcome, advisory.stream, advisory.sequence, using=alias
            ):
                return
        self.lost += 1
        logger.error(
            "Somebody terminated message %d of stream %s, which the durable %s had delivered %d times (%s). This "
            "service did not, and no inbox row of late says what became of it: it is lost to this service. Publish "
            "it again, or find out who acknowledges with +TERM.",
            advisory.sequence,
            advisory.stream,
            advisory.durable,
            advisory.deliveries,
            text.storable(advisory.reason, 200) or "no reason given",
        )

    # --- durables --------------------------------------------------------------------------------

    async def _check(self, feed: Feed, spec: ConsumerSpec) -> None:
        """Once per connection, and again later where there was no answer: who made the durable, and how."""
        epoch, next_at = self._checked.get(feed.lease, (0, 0.0))
        if epoch == self._connection.epoch and time.monotonic() < next_at:
            return
        self._checked[feed.lease] = (self._connection.epoch, time.monotonic() + ASK_AGAIN_S)
        try:
            answer = await self._connection.api(f"CONSUMER.INFO.{feed.stream}.{feed.durable}")
        except BrokerUnreachable:
            return
        except PermissionDenied:
            answer = {"config": {}}  # it may not ask, and need not
        config = answer.get("config")
        if not isinstance(config, dict):
            return  # not there; the feed says so
        self._checked[feed.lease] = (self._connection.epoch, float("inf"))
        for fault in faults(config, spec, self._settings) if config else ():
            line = f"The durable {feed.durable} in stream {feed.stream} is not as provisioned: {fault}."
            if line not in self._said:
                self._said.add(line)
                logger.warning("%s Run: manage.py jetbridge_provision --check", line)


def _given_up(advisory: Advisory) -> str:
    return (
        f"The durable {advisory.durable} has given up message {advisory.sequence} of stream {advisory.stream} after "
        f"{advisory.deliveries} deliveries."
    )


def _defer(job: Job) -> None:
    message = job.received
    deferred.add(
        handler=job.handler_name,
        source=message.source,
        event_id=message.event_id,
        key=message.key,
        event_type=message.event_type,
        subject=message.subject,
        stream=message.stream,
        sequence=message.sequence,
        headers=text.storable_headers(message.headers),
        body=message.body,
        kind=DeferredKind.REPLAY,
        using=job.using,
    )

"""One durable: pulled while its lease is held, and only then."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from jetbridge import topology
from jetbridge.conf import Settings
from jetbridge.consumer.consumer import Consumer
from jetbridge.consumer.durables import Durable
from jetbridge.errors import BrokerUnreachable
from jetbridge.jetstream.connection import Connection, PermissionDenied
from jetbridge.jetstream.incoming import Incoming
from jetbridge.jetstream.puller import Puller

logger = logging.getLogger("jetbridge.consumer")

STOP_S = 5.0
DEAF_S = 20.0  # it turns every second


class Feed:
    """
    Args:
        durable: What to pull.
        budget: Messages of this durable that may be in this process at once.
        is_held: Whether the lease is held at this moment.
    """

    def __init__(
        self,
        settings: Settings,
        durable: Durable,
        *,
        connection: Connection,
        consumer: Consumer,
        budget: int,
        is_held: Callable[[str], bool],
    ) -> None:
        self.sources = durable.sources
        self.lease = durable.lease
        self.durable = topology.durable_name(settings.app_name, durable.partition)
        self.stream = durable.stream
        self._settings = settings
        self._connection = connection
        self._consumer = consumer
        self._budget = budget
        self._is_held = is_held
        self._puller: Puller | None = None
        self._task: asyncio.Task[None] | None = None
        self._missing_said = False

    @property
    def is_pulling(self) -> bool:
        return self._puller is not None

    @property
    def is_missing(self) -> bool:
        """The server does not know the durable that this process wants to pull."""
        return self._puller is not None and self._puller.missing

    async def tick(self) -> float:
        """Follow the lease; returns seconds to sleep."""
        self._check_pulling()
        held = self._is_held(self.lease)
        if held and self._puller is None:
            self._begin()
        elif not held and self._puller is not None:
            await self._lose()
        self._say_missing()
        return 0.1

    def _check_pulling(self) -> None:
        """
        Pulling ends when we stop it, and not otherwise.

        Raises:
            Exception: What ended it. The next tick begins anew.
        """
        task = self._task
        if self._puller is None or task is None or not task.done() or self._connection.is_closed:
            return
        self._puller = self._task = None
        task.result()
        raise RuntimeError(f"Pulling {self.durable} ended by itself.")

    def is_deaf(self) -> bool:
        """Whether the pull loop has stood still for so long that it cannot be waiting for anything."""
        puller = self._puller
        return puller is not None and time.monotonic() - puller.turned_at > DEAF_S

    def _begin(self) -> None:
        lease_s = self._settings.lease_s
        self._puller = Puller(
            self._connection,
            stream=self.stream,
            consumer=self.durable,
            credit=self._credit,
            deliver=self._deliver,
            expires_s=min(30.0, lease_s / 3),
            heartbeat_s=min(5.0, lease_s / 7),
            max_batch=self._budget,
        )
        self._task = asyncio.create_task(self._puller.run(), name=f"jetbridge-pull-{self.lease}")
        logger.info("Pulling %s from %s.", self.durable, self.stream)

    def _credit(self) -> int:
        if not self._is_held(self.lease):
            return 0
        return max(0, self._budget - self._consumer.in_hand(self.lease))

    def _deliver(self, incoming: Incoming) -> None:
        if not self._is_held(self.lease):
            return  # unacknowledged, so it goes to the lease's new owner
        self._consumer.take(incoming, self.lease)

    async def _lose(self) -> None:
        logger.warning("The lease of %s is lost; its messages are another's now.", self.lease)
        self._consumer.abandon(self.lease)
        await self.stop()

    async def stop(self) -> None:
        """Stop asking, and leave nothing delivered that was not handed over."""
        puller, self._puller = self._puller, None
        if puller is not None and self._task is not None:
            await puller.stop(STOP_S)
            await asyncio.wait([self._task], timeout=STOP_S)

    def wake(self) -> None:
        """There is room again."""
        if self._puller is not None:
            self._puller.wake()

    async def is_empty(self) -> bool:
        """Two pulls in a row that do not wait find nothing, and no delivery, to whomever, waits for its ack."""
        puller = self._puller
        if puller is None or puller.missing:
            return False
        return await puller.probe_empty() and await puller.probe_empty() and not await self._any_unsettled()

    async def _any_unsettled(self) -> bool:
        """What a killed consumer had in hand is invisible to pulls until ``ack_wait`` is over."""
        try:
            info = await self._connection.api(f"CONSUMER.INFO.{self.stream}.{self.durable}")
        except PermissionDenied:
            return False  # a user without the right to ask sees only what can be pulled
        except BrokerUnreachable:
            return True
        return info.get("num_ack_pending") != 0

    def _say_missing(self) -> None:
        missing = self.is_missing
        if missing and not self._missing_said:
            logger.warning(
                "The durable %s does not exist in the stream %s; waiting for it. Run: manage.py jetbridge_provision",
                self.durable,
                self.stream,
            )
        self._missing_said = missing

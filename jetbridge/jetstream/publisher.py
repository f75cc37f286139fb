"""
The windowed publisher: many messages on their way at once, each with a definite result.

No Future and no task per message, one reply subscription, a deadline per call: 8 to 14 times nats-py's
``js.publish()`` one after the other (300 bytes, two headers, two cores; ``tests/broker/test_publisher.py``
prints the ratio), and none of the futures that ``publish_async()`` leaves hanging after a lost connection or an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.denials import Denial
from jetbridge.jetstream.page import Page
from jetbridge.jetstream.results import NoAnswer, NotSent, Outgoing, Refused, Result, Stored
from jetbridge.jetstream.session import Session

__all__ = ["NoAnswer", "NotSent", "Outgoing", "Refused", "Result", "Stored", "WindowPublisher"]


class WindowPublisher:
    """
    Publishes pages over one connection. Calls run one after the other.

    Args:
        window: Messages that may wait for their answer at once.
        max_in_flight_bytes: And their bytes. Stays below what nats-py queues for a server that stopped reading.
    """

    def __init__(
        self, connection: Connection, *, window: int = 512, max_in_flight_bytes: int = 1_000_000
    ) -> None:
        self._connection = connection
        self._window = window
        self._max_in_flight_bytes = max_in_flight_bytes
        self._turn = asyncio.Lock()
        self._closed = False

    async def publish(self, messages: Sequence[Outgoing], *, deadline_s: float) -> list[Result]:
        """
        Store ``messages``.

        Args:
            deadline_s: After this whatever has no answer is :class:`NoAnswer`, what never went :class:`NotSent`.

        Returns:
            One result per message, in order. :class:`NoAnswer` at once for everything in flight when the
            connection is lost, :class:`NotSent` for everything when there is none.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_s
        try:
            async with asyncio.timeout_at(deadline):
                await self._turn.acquire()
        except TimeoutError:
            return [NotSent("the deadline passed before it was its turn")] * len(messages)
        try:
            session = self._connection.session
            if session is None or self._closed:
                reason = self._connection.last_error or "no connection"
                return [NotSent(f"not connected: {reason}")] * len(messages)
            return await _PageRun(self._connection, session).publish(
                messages,
                deadline=deadline,
                window=self._window,
                max_in_flight_bytes=self._max_in_flight_bytes,
            )
        finally:
            self._turn.release()

    async def close(self) -> None:
        """Take nothing more; a call under way ends by its own deadline at the latest."""
        self._closed = True
        async with self._turn:
            pass


class _PageRun:
    """One page on one session: lends its page a reply subject, feeds it answers, sends what it releases."""

    def __init__(self, connection: Connection, session: Session) -> None:
        self._connection = connection
        self._session = session
        self._reason = "no answer before the deadline"
        self._over = False
        self._progress: asyncio.Future[None] | None = None
        self._page: Page | None = None

    async def publish(
        self, messages: Sequence[Outgoing], *, deadline: float, window: int, max_in_flight_bytes: int
    ) -> list[Result]:
        # A reply subject of its own for every call: a late answer to an older page cannot be taken for one to this.
        reply = self._session.reply_to(self._on_answer)
        page = self._page = Page(
            messages,
            reply=reply,
            window=window,
            max_in_flight_bytes=max_in_flight_bytes,
            max_payload=self._session.client.max_payload,
        )
        undo = (self._session.on_lost(self._on_lost), self._connection.denials.listen(self._on_denial))
        try:
            async with asyncio.timeout_at(deadline):
                await self._run(page)
        except TimeoutError:
            for _ in range(3):  # answers that arrived while the loop was busy elsewhere are still to be read
                await asyncio.sleep(0)
        finally:
            self._session.no_reply_to(reply)
            for take_back in undo:
                take_back()
        return page.finish(self._reason)

    async def _run(self, page: Page) -> None:
        loop = asyncio.get_running_loop()
        while page.left and not self._over:
            frames = page.burst()
            if frames and not self._session.client.push(frames):
                self._on_lost("the connection takes no more data")
            if page.left and not self._over:
                self._progress = loop.create_future()
                await self._progress

    def _on_answer(self, rest: bytes, body: bytes, headers: bytes) -> None:
        if self._page is not None and rest.isdigit():
            self._page.answer(int(rest), body, headers)
            self._wake()

    def _on_denial(self, denial: Denial) -> None:
        if self._page is not None and not denial.is_subscription:
            self._page.deny(denial.subject)
            self._wake()

    def _on_lost(self, reason: str) -> None:
        self._over = True
        self._reason = f"connection lost: {reason}"
        self._wake()

    def _wake(self) -> None:
        if self._progress is not None and not self._progress.done():
            self._progress.set_result(None)

"""
One life of the connection: from a verified connect to the moment it is lost.

A session is never repaired. Whoever holds something on it (a subscription, messages in flight) registers with
:meth:`Session.on_lost`, is told once, and starts again on the next one, whose ``epoch`` is larger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from jetbridge.jetstream.client import Client
from jetbridge.jetstream.logs import logger

FLUSH_TIMEOUT_S: Final = 5.0

# The rest of the reply subject after the token, the body, the header block.
ReplyHandler = Callable[[bytes, bytes, bytes], None]


class Session:
    """
    A client, its reply inbox and who waits on them.

    Args:
        client: Connected.
        epoch: Number of this session within its connection, from 1.
    """

    def __init__(self, client: Client, epoch: int) -> None:
        self.client = client
        self.epoch = epoch
        self.inbox = client.new_inbox()
        self.reason = ""
        self._lost = asyncio.Event()
        self._watchers: dict[int, Callable[[str], None]] = {}
        self._replies: dict[bytes, ReplyHandler] = {}
        self._counter = 0
        self._prefix_len = len(self.inbox) + 1
        client.listen(self.reply_subject, self._on_reply)

    @property
    def reply_subject(self) -> str:
        """What the session subscribes to: all its replies."""
        return f"{self.inbox}.>"

    @property
    def is_lost(self) -> bool:
        return self._lost.is_set()

    def reply_to(self, handler: ReplyHandler) -> bytes:
        """
        A fresh reply subject ``<inbox>.<token>``; answers to it and to anything below go to ``handler``.

        All replies share the session's one subscription. End it with :meth:`no_reply_to`: a late answer
        then finds nobody, and cannot be taken for an answer to something newer.
        """
        self._counter += 1
        token = b"%x" % self._counter
        self._replies[token] = handler
        return b"%b.%b" % (self.inbox.encode(), token)

    def no_reply_to(self, subject: bytes) -> None:
        """Forget a subject made by :meth:`reply_to`."""
        self._replies.pop(subject[self._prefix_len :], None)

    def _on_reply(self, subject: bytes, _reply: bytes, body: bytes, headers: bytes) -> None:
        token, _, rest = subject[self._prefix_len :].partition(b".")
        handler = self._replies.get(token)
        if handler is not None:
            handler(rest, body, headers)

    def on_lost(self, watcher: Callable[[str], None]) -> Callable[[], None]:
        """
        Call ``watcher(reason)`` when the session is lost, at once if it is.

        Returns:
            A function that takes the watcher back.
        """
        if self.is_lost:
            watcher(self.reason)
            return lambda: None
        self._counter += 1
        key = self._counter
        self._watchers[key] = watcher
        return lambda: self._watchers.pop(key, None) and None

    def lose(self, reason: str) -> None:
        """Mark it lost and tell everybody. The second time does nothing."""
        if self.is_lost:
            return
        self.reason = reason
        self._lost.set()
        watchers = list(self._watchers.values())
        self._watchers.clear()
        for watcher in watchers:
            try:
                watcher(reason)
            except Exception:  # the others would wait for answers that cannot come
                logger.exception("Somebody who was told of a lost connection failed.")

    async def wait_lost(self) -> str:
        """Wait for the end; the reason."""
        await self._lost.wait()
        return self.reason

    async def barrier(self, timeout_s: float = FLUSH_TIMEOUT_S) -> bool:
        """
        Whether the server has read everything queued before this call and we its answers to it.

        Two flushes, because nats-py writes the PING of the first one in front of what is waiting.
        """
        flushes = asyncio.ensure_future(self._flush_twice(timeout_s))
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait((flushes, lost), return_when=asyncio.FIRST_COMPLETED)
            return (
                flushes.done()
                and not flushes.cancelled()
                and flushes.exception() is None
                and not self.is_lost
            )
        finally:
            flushes.cancel()
            lost.cancel()

    async def _flush_twice(self, timeout_s: float) -> None:
        async with asyncio.timeout(timeout_s):
            for _ in range(2):
                await self.client.flush(timeout=max(1, round(timeout_s)))

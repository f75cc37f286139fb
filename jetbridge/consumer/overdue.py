"""
Handlers that run for longer than they should.

Nothing can stop a thread, so nothing is stopped: it is said, and shown where the process describes itself.
The process counts as stuck only when no thread is left for anybody else: all are taken, or one waits for them all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

from jetbridge.consumer.delivery import Item
from jetbridge.runtime.sessions import idle_limit_s

logger = logging.getLogger("jetbridge.consumer")


class Overdue:
    """
    Args:
        running: What runs at this moment; read from any thread.
        timeout_s: For handlers that have no time-out of their own.
        size: Number of handler threads.
        waits_alone: Whether somebody waits for every thread, and all others behind it; asked from any thread.
    """

    def __init__(
        self,
        running: Collection[Item],
        *,
        timeout_s: float,
        size: int,
        waits_alone: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._running = running
        self._timeout_s = timeout_s
        self._size = size
        self._waits_alone = waits_alone
        self._clock = clock
        self._said: set[Item] = set()

    def titles(self) -> list[str]:
        """Handlers that are overdue, each with its event."""
        return sorted(item.title for item in self._late())

    def is_choked(self) -> bool:
        """Whether every thread is taken by one of them, so that no other event gets a turn."""
        late = self._late()
        taken = sum(self._size if item.alone else 1 for item in late)
        return taken >= self._size or bool(late and self._waits_alone())

    def say(self) -> None:
        """One line for each, once."""
        late = set(self._late())
        for item in late - self._said:
            logger.warning(
                "%s has run for %.0f s. It keeps its thread and its key until it returns; nothing can stop a thread.",
                item.title,
                self._clock() - item.began_at,
            )
        self._said = late

    def _late(self) -> list[Item]:
        now = self._clock()
        return [item for item in list(self._running) if now - item.began_at > self._patience_s(item)]

    def _patience_s(self, item: Item) -> float:
        """After it the database ends an idle transaction, and so frees its key for another copy."""
        handler = item.job.handler
        own_s = handler.timeout_s if handler is not None else None
        return idle_limit_s(own_s or self._timeout_s)

"""Room for attempts: for several side by side, or for one that must be alone. A data structure, nothing else."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """
    ``size`` slots, given out in the order in which they were asked for.

    Who must be alone gets all of them at once or none: two that each held a part would wait for each other
    for ever. And nobody overtakes it, or a busy consumer would never come to it.

    Attributes:
        waiting_alone: How many wait to be alone, and everybody behind them.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._free = size
        self.waiting_alone = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, *, alone: bool = False) -> AsyncIterator[None]:
        """Hold one slot inside the block; with ``alone`` all of them."""
        count = self._size if alone else 1
        self.waiting_alone += alone
        try:
            await self._take(count)
        finally:
            self.waiting_alone -= alone
        try:
            yield
        finally:
            self._give(count)

    async def _take(self, count: int) -> None:
        if not self._waiting and self._free >= count:
            self._free -= count
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(count)  # cancelled after it was its turn
            else:
                self._give(0)  # it may have been the one that all others waited behind
            raise

    def _give(self, count: int) -> None:
        self._free += count
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.done():
                if self._free < wanted:
                    return
                self._free -= wanted
                turn.set_result(None)
            self._waiting.popleft()

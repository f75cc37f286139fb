"""
Lanes: one item of a key at a time, in order; keys side by side. A data structure, nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Lanes(Generic[T]):
    """
    Queues by lane. The head of a lane is running; the others wait for it.

    A lane that waits for a retry keeps its head, so nothing behind it can overtake.
    """

    def __init__(self) -> None:
        self._lanes: dict[Hashable, deque[T]] = {}

    def push(self, lane: Hashable, item: T) -> bool:
        """Add an item; whether it may run at once."""
        waiting = self._lanes.setdefault(lane, deque())
        waiting.append(item)
        return len(waiting) == 1

    def pop(self, lane: Hashable) -> T | None:
        """The head of the lane is done: the next item, which may run now, or ``None``."""
        waiting = self._lanes[lane]
        waiting.popleft()
        if waiting:
            return waiting[0]
        del self._lanes[lane]
        return None

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def lanes(self) -> Iterator[Sequence[T]]:
        """Every lane, its head first."""
        return (tuple(lane) for lane in self._lanes.values())

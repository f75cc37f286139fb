"""
Book-keeping of pulls: how many messages were asked for and have not come, and what a status means. Pure.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

# A pull ends with a status when its time is over; if that got lost, this much later it is over all the same.
GRACE_S: Final = 2.0


class Reaction(Enum):
    """What a status message asks of the pull loop."""

    ALIVE = "alive"  # a heartbeat
    EMPTY = "empty"  # nothing there, the answer to a probe
    ENDED = "ended"  # the pull is over, ask again
    PAUSE = "pause"  # ask again after a moment
    MISSING = "missing"  # no such consumer, or nobody who knows
    WRONG = "wrong"  # the pull itself is not allowed: configuration


_MISSING: Final = ("consumer deleted", "consumer is push based")
_PAUSE: Final = (
    "leadership change",
    "server shutdown",
    "exceeded maxwaiting",
    "nats-pin-id",
    "nats-wrong-pin-id",
)
_MAX_BATCH: Final = re.compile(r"exceeded maxrequestbatch of (\d+)", re.IGNORECASE)


def react(code: int, description: str) -> Reaction:
    """The meaning of a status on the inbox of a pull."""
    text = description.lower()
    match code:
        case 100:
            return Reaction.ALIVE
        case 404:
            return Reaction.EMPTY
        case 408:
            return Reaction.ENDED
        case 503:
            return Reaction.MISSING
        case 423:
            return Reaction.PAUSE
        case 409 if text.startswith(_MISSING):
            return Reaction.MISSING
        case 409 if text.startswith(_PAUSE):
            return Reaction.PAUSE
        case 409 if text.startswith("message size exceeds maxbytes"):
            return Reaction.ENDED
        case _:
            return Reaction.WRONG


def allowed_batch(description: str) -> int | None:
    """The limit that ``Exceeded MaxRequestBatch of 5`` names."""
    found = _MAX_BATCH.search(description)
    return int(found[1]) if found else None


class Pulls:
    """
    What is asked for and outstanding.

    A message does not say which pull it answers, so only the sum is known; a status does, and says what is
    left of it. Counting must never drift for good: too high starves the consumer, too low asks for more than it
    has room for. So an overdue pull is written off, and without any pull the sum is 0 by definition.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._open: dict[int, tuple[int, float]] = {}
        self._token = 0

    def add(self, count: int, deadline: float) -> int:
        """Note a pull for ``count`` that the server ends at ``deadline``; its token."""
        self._token += 1
        self._open[self._token] = (count, deadline)
        self.asked += count
        return self._token

    def arrived(self) -> None:
        """One message came."""
        self._take(1)

    def ended(self, token: int, left: int | None) -> None:
        """A pull is over with ``left`` messages not delivered; ``None`` when the server did not say: none came."""
        entry = self._open.pop(token, None)
        if entry is not None:
            self._take(entry[0] if left is None else left)

    def write_off(self, now: float) -> None:
        """Forget pulls that are long over."""
        while self._open:
            token = next(iter(self._open))
            if self._open[token][1] + GRACE_S > now:
                return
            del self._open[token]
        self.asked = 0

    def clear(self) -> None:
        """The inbox is gone, nothing more will come."""
        self._open.clear()
        self.asked = 0

    def _take(self, count: int) -> None:
        self.asked = max(0, self.asked - count)
        if self.asked == 0:
            self._open.clear()

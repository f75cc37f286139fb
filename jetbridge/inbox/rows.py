"""What is known of an inbox row: locked by this transaction, or as an attempt found it."""

from __future__ import annotations

from dataclasses import dataclass

from jetbridge.models import InboxState


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An inbox row, locked by this transaction. ``wait_s``: until its next attempt, by the database's clock."""

    id: int
    state: str
    attempts: int
    starts: int
    generation: int
    claimed_by: str
    wait_s: float

    def is_of(self, owner: str) -> bool:
        """Whether the start that is going on was recorded by this process."""
        return self.state == InboxState.RUNNING and self.claimed_by == owner

    def unfinished(self, owner: str) -> int:
        """
        Starts that ended with their process. A start of our own is none, whatever became of it: we live.

        The row is locked, and a handler keeps it locked as long as it runs: whoever recorded the start of a
        running row is gone.
        """
        return max(0, self.starts - self.attempts - self.is_of(owner))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """
    What an attempt found in the row. Its outcome is written only over that: a copy that was stopped for a while
    must not write over what the next owner of the event has done.

    ``started_by``: who recorded the start; ``None`` if nobody did.
    """

    attempts: int
    generation: int
    started_by: str | None = None


class Overtaken(Exception):
    """Another copy has moved on since the attempt began, and its word counts. Nothing was written."""

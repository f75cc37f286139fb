"""A message in this process's hands, from its arrival to its ack."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass, field

from jetbridge.consumer.execute import Job


@dataclass(slots=True, kw_only=True, eq=False)
class Held:
    """
    A message and how many of its handlers are not done with it yet.

    Attributes:
        reply: Where the ack goes; ``""`` for a message out of the deferred table.
        feed: Name of the lease under which it came; ``""`` for a message out of the deferred table.
        lease: Name of the lease under which it may be run.
        deferred: Alias and id of its row in the deferred table, if it came from there.
        abandoned: Its lease is lost: whoever has it now gets the message again.
    """

    subject: str
    stream: str
    sequence: int
    reply: str
    feed: str
    lease: str = ""
    deferred: tuple[str, int] | None = None
    open_jobs: int = 0
    abandoned: bool = False
    touched_at: float = field(default_factory=time.monotonic)


@dataclass(slots=True, kw_only=True, eq=False)
class Item:
    """
    One job in its lane.

    Attributes:
        began: It has been attempted.
        began_at: When its running attempt began, monotonic.
        alone: A process died of it: it runs while nothing else does.
        waits: How often in a row it had to, through no failure of its own.
    """

    job: Job
    message: Held
    began: bool = False
    began_at: float = 0.0
    alone: bool = False
    waits: int = 0

    @property
    def title(self) -> str:
        """Handler and event, for people."""
        received = self.job.received
        return f"{self.job.handler_name or 'no handler'} {received.source}/{received.event_id}"

    def lane(self) -> Hashable:
        """
        Items of one lane run one after the other: those of a handler with the same key from the same app.

        Without a key, or for an unordered handler, an item has a lane of its own.
        """
        handler = self.job.handler
        if not self.job.received.key or (handler is not None and not handler.ordered):
            return id(self)
        return (self.job.handler_name, self.job.received.source, self.job.received.key)

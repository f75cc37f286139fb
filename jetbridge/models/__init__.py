"""The tables. Schema only: every statement on them lives in a ``store.py``."""

from jetbridge.models.dead_letter import DeadLetter, DeadLetterState
from jetbridge.models.deferred import Deferred, Hold
from jetbridge.models.inbox import Inbox, InboxState
from jetbridge.models.outbox import Archive, Kind, Outbox, OutboxState, Scheduled
from jetbridge.models.processes import Lease, Worker

__all__ = [
    "Archive",
    "DeadLetter",
    "DeadLetterState",
    "Deferred",
    "Hold",
    "Inbox",
    "InboxState",
    "Kind",
    "Lease",
    "Outbox",
    "OutboxState",
    "Scheduled",
    "Worker",
]

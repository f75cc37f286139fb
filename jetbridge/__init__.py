"""
jetbridge: two Django services share events, exactly once in effect, over NATS JetStream.

Importing this package needs only Django, and neither models nor settings: both are looked up when
something is published.
"""

from __future__ import annotations

from jetbridge.errors import (
    DuplicateHandler,
    EventTooLarge,
    InvalidEvent,
    JetbridgeError,
    NotInTransaction,
    Reject,
    Retry,
    Snooze,
    UnknownDestination,
    WrongDatabase,
)
from jetbridge.event import Delivery, Event
from jetbridge.outbox.publish import apublish, apublish_many, publish, publish_many
from jetbridge.registry import handler

__version__ = "0.1.0"

__all__ = [
    "Delivery",
    "DuplicateHandler",
    "Event",
    "EventTooLarge",
    "InvalidEvent",
    "JetbridgeError",
    "NotInTransaction",
    "Reject",
    "Retry",
    "Snooze",
    "UnknownDestination",
    "WrongDatabase",
    "apublish",
    "apublish_many",
    "handler",
    "publish",
    "publish_many",
]

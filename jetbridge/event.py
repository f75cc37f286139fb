"""
The event as Python sees it: what ``publish_many()`` takes and what a handler gets.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal
from typing import TypeAlias
from uuid import UUID

Scalar: TypeAlias = str | int | float | bool | Decimal | date | clock_time | timedelta | UUID
JSON: TypeAlias = "Scalar | Mapping[str, JSON] | list[JSON] | tuple[JSON, ...] | None"
"""What ``publish()`` encodes: JSON, and what Django's encoder writes as strings."""


@dataclass(frozen=True, slots=True)
class Event:
    """
    One event. To publish, ``type`` and ``payload`` suffice; the rest has the defaults of ``publish()``.

    Attributes:
        type: Dotted name, e.g. ``order.placed``.
        payload: A JSON object.
        resource_type: What the event is about; default: ``type`` up to its first dot, else ``event``.
        resource_id: Which one; default: ``payload["id"]`` as a string, else empty.
        key: Events of one key keep their order; ``None`` means ``<resource_type>:<resource_id>``,
            or no order at all where there is no resource id. A received event has it filled in,
            and ``""`` stands for no key.
        event_id: 1 to 128 visible ASCII characters; default: a new UUIDv7.
        occurred_at: Aware datetime; default: now.
        headers: Headers of the caller; a received event has all but NATS's own.
    """

    type: str
    payload: Mapping[str, JSON] = field(default_factory=dict)
    resource_type: str | None = None
    resource_id: str | None = None
    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    event_id: str | None = None
    occurred_at: datetime | None = None
    trace_id: str | None = None
    producer: str = ""
    schema_version: int = 1
    causation_id: str = ""
    correlation_id: str = ""


@dataclass(frozen=True, slots=True)
class Delivery(Event):
    """
    An event on its way through a handler.

    Attributes:
        attempt: 1 for the first try.
        source: The publishing app, proven by the subject (``producer`` is only the body's claim).
        subject, stream, sequence: Where the message lies.
    """

    attempt: int = 1
    source: str = ""
    subject: str = ""
    stream: str = ""
    sequence: int = 0
    deadline: float | None = field(default=None, repr=False, compare=False)

    @property
    def cancelled(self) -> bool:
        """Whether the handler's time is up (``timeout``): a long handler looks at this and stops by itself."""
        return self.deadline is not None and time.monotonic() >= self.deadline

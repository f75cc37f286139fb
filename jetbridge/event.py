"""
The event as Python sees it: what ``publish_many()`` takes and what a handler gets.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

JSON: TypeAlias = object
"""
A value that Django's JSON encoder takes. Checked by ``publish()`` and not by types: ``list`` is invariant and a
``TypedDict`` is no mapping of a union, so an exact alias would refuse most of what people have in their hands.
"""
Id: TypeAlias = str | int | UUID
"""What may name something; it is text on the wire."""


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
    payload: Mapping[str, Any] = field(
        default_factory=dict
    )  # as json.loads() types it: the sender knows its shape
    resource_type: str | None = None
    resource_id: Id | None = None
    key: Id | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    event_id: str | UUID | None = None
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

    The optional members of an event are filled in here. Only ``occurred_at`` stays ``None`` where the sender gave
    none that can be read.
    """

    resource_type: str = ""
    resource_id: str = ""
    key: str = ""
    event_id: str = ""
    trace_id: str = ""
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

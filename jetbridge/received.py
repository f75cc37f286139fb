"""A message as it came from a stream or out of the deferred table: bytes, place, and what could be read of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from jetbridge import envelope, text, topology
from jetbridge.envelope import Position
from jetbridge.errors import MalformedMessage
from jetbridge.event import Delivery, Event

MAX_SEQUENCE: Final = 2**63 - 1
MAX_SOURCE_CHARS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """
    One message. ``event`` is ``None`` where the body is malformed, and ``fault`` then says why.
    Everything but ``headers`` and ``body`` fits into its column.
    """

    source: str
    subject: str
    stream: str
    sequence: int
    headers: Mapping[str, str]
    body: bytes
    event_id: str
    event_type: str
    key: str
    event: Event | None
    fault: str

    def delivery(self, *, attempt: int, deadline: float | None) -> Delivery:
        """
        What a handler gets.

        Raises:
            MalformedMessage: There is no event in this message.
        """
        event = self.event
        if event is None:
            raise MalformedMessage(self.fault)
        return Delivery(
            type=event.type,
            payload=event.payload,
            resource_type=event.resource_type or "",
            resource_id=str(event.resource_id or ""),
            key=str(event.key or ""),
            headers=event.headers,
            event_id=self.event_id,
            occurred_at=event.occurred_at,
            trace_id=event.trace_id or "",
            producer=event.producer,
            schema_version=event.schema_version,
            causation_id=event.causation_id,
            correlation_id=event.correlation_id,
            attempt=attempt,
            source=self.source,
            subject=self.subject,
            stream=self.stream,
            sequence=self.sequence,
            deadline=deadline,
        )


def read(body: bytes, headers: Mapping[str, str], position: Position, *, app: str) -> Received:
    """
    Make sense of a message; never raises for what is in it.

    A malformed one is still identified where possible, so that its dead letter is found by the id its
    sender knows, and a second copy of it is recognised.
    """
    event, fault = None, ""
    try:
        event = envelope.decode(body, headers, position, app=app)
    except MalformedMessage as error:
        fault = str(error)
    event_id = str(event.event_id) if event else _id_of_malformed(body, headers, position, app)
    return Received(
        # Cut to their columns: a durable that somebody else made may deliver any subject, and a stream
        # may begin at a sequence that no bigint holds. Neither may make the dead letter fail.
        source=text.storable_key(topology.source_of(position.subject), MAX_SOURCE_CHARS),
        subject=text.storable_key(position.subject),
        stream=text.storable_key(position.stream),
        sequence=min(position.sequence, MAX_SEQUENCE),
        headers=headers,
        body=body,
        event_id=text.storable_key(event_id),
        event_type=event.type if event else "",
        key=text.storable_key(str(event.key or "")) if event else "",
        event=event,
        fault=fault,
    )


def _id_of_malformed(body: bytes, headers: Mapping[str, str], position: Position, app: str) -> str:
    try:
        members = envelope.parse_body(body)
    except MalformedMessage:
        members = {}
    try:
        return envelope.event_id_of(members, headers, position, app=app)
    except MalformedMessage:
        return f"{position.stream}:{position.sequence}:{position.stored_ns}"

"""What the outbox's store hands out: frozen values, never model instances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutboxRecord:
    """A row to send."""

    id: int
    subject: str
    destination: str
    key: str
    event_id: str
    message_id: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Settled:
    """What the stream said of a row it has stored."""

    id: int
    stream: str
    sequence: int
    duplicate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """Rows by state, and the age of the oldest ready one in seconds."""

    ready: int
    held: int
    parked: int
    refused: int
    scheduled: int
    oldest_ready_s: float | None

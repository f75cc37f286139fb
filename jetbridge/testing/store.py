"""Every statement of the test helpers: all read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from jetbridge.models import Archive, Kind, Outbox, Scheduled


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An event of one of the three tables it may be in on its way out."""

    subject: str
    destination: str
    key: str
    headers: Mapping[str, str]
    body: bytes
    event_id: str
    created_at: datetime
    due_at: datetime | None


def events(*, using: str) -> Iterator[Row]:
    """Events that are sent, waiting, or planned for later; each table in the order of writing."""
    for model in (Archive, Outbox, Scheduled):
        for row in model.objects.using(using).filter(kind=Kind.EVENT).order_by("pk"):
            yield Row(
                subject=row.subject,
                destination=row.destination,
                key=row.key,
                headers=row.headers,
                body=bytes(row.body),
                event_id=row.event_id,
                created_at=row.created_at,
                due_at=getattr(row, "due_at", None),
            )

"""What the code under test has published."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime

from django.core.serializers.json import DjangoJSONEncoder

from jetbridge import conf, envelope, patterns
from jetbridge.envelope import Position
from jetbridge.event import JSON, Event
from jetbridge.testing import store
from jetbridge.testing.store import Row


@dataclass(frozen=True, slots=True)
class PublishedEvent(Event):
    """
    An event as its receiver will see it. Can be given to :func:`deliver`.

    Attributes:
        destination: The app it is for.
        subject: Where it goes.
        due_at: For an event that was published with ``delay`` or ``at``.
    """

    destination: str = ""
    subject: str = ""
    due_at: datetime | None = None


def published(
    type: str | None = None, to: str | None = None, using: str | None = None
) -> list[PublishedEvent]:
    """
    The events in the outbox, planned for later or sent already, one for each destination, oldest first.

    Args:
        type: Only of this type; a pattern such as ``order.*`` is fine.
        to: Only for this app.
        using: Database alias; default: the first of ``DATABASES``.
    """
    if type is not None:
        patterns.check_pattern(type)
    rows = sorted(store.events(using=using or conf.get_settings().databases[0]), key=lambda r: r.created_at)
    found = [_event(row) for row in rows if to in (None, row.destination)]
    return [event for event in found if type is None or patterns.matches(type, event.type)]


def assert_published(
    type: str,
    *,
    to: str | None = None,
    payload: Mapping[str, JSON] | None = None,
    key: str | None = None,
    times: int = 1,
    using: str | None = None,
) -> Sequence[PublishedEvent]:
    """
    Fail unless exactly ``times`` such events were published; returns them.

    Args:
        type: Event type, or a pattern.
        to: The app they are for.
        payload: Members that the payload must have; it may have more. Compared as JSON, so a Decimal equals
            the string that it becomes.
        key: The ordering key.
        times: How many; 0 for none.
    """
    candidates = published(using=using)
    members = json.loads(json.dumps(payload or {}, cls=DjangoJSONEncoder))
    found = [
        event
        for event in candidates
        if patterns.matches(type, event.type)
        and to in (None, event.destination)
        and key in (None, event.key)
        and _contains(event.payload, members)
    ]
    if len(found) != times:
        wanted = ", ".join(
            f"{name}={value!r}"
            for name, value in (("to", to), ("payload", payload), ("key", key))
            if value is not None
        )
        shown = "\n".join(f"  {_shown(event)}" for event in candidates) or "  nothing"
        raise AssertionError(
            f"Expected {times} of {type!r}{f' with {wanted}' if wanted else ''}, found {len(found)}. "
            f"Published was:\n{shown}"
        )
    return found


def _event(row: Row) -> PublishedEvent:
    settings = conf.get_settings()
    place = Position(subject=row.subject, stream=settings.stream, sequence=0, stored_ns=0)
    event = envelope.decode(row.body, row.headers, place, app=row.destination)
    return PublishedEvent(
        **{field.name: getattr(event, field.name) for field in fields(Event)},
        destination=row.destination,
        subject=row.subject,
        due_at=row.due_at,
    )


def _contains(payload: Mapping[str, JSON], wanted: Mapping[str, JSON]) -> bool:
    return all(name in payload and payload[name] == value for name, value in wanted.items())


def _shown(event: PublishedEvent) -> str:
    return f"{event.type} to {event.destination}, key {event.key!r}: {dict(event.payload)!r}"

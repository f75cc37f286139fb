"""
Every statement on dead letters.

``bury`` is one transaction that cannot fail on content: strings are escaped and cut, the body is
bytes, and a notice too large to send is born refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import MAXYEAR, MINYEAR, datetime
from typing import Any, Final

from django.conf import settings as django_settings
from django.db import transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from jetbridge import signals, text
from jetbridge.conf import Settings
from jetbridge.dead_letters.notice import Failure, is_sendable, notice
from jetbridge.deferred import store as deferred
from jetbridge.inbox import store as inbox
from jetbridge.inbox.rows import Seen
from jetbridge.models import DeadLetter, DeadLetterState
from jetbridge.models.clock import WallClock
from jetbridge.outbox import store as outbox
from jetbridge.received import Received


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterSummary:
    """A dead letter as a list shows it: nothing that may be large."""

    id: int
    event_id: str
    source: str
    handler: str
    event_type: str
    key: str
    reason: str
    error_class: str
    error: str
    attempts: int
    state: str
    redrives: int
    created_at: datetime
    resolved_at: datetime | None
    resolved_by: str
    note: str
    stream: str
    sequence: int
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterRecord(DeadLetterSummary):
    """A whole dead letter. ``body`` is what a redrive would run: the edited one, if there is one."""

    traceback: str
    headers: Mapping[str, str]
    body: bytes
    is_edited: bool


_SUMMARY: Final = tuple(field.name for field in fields(DeadLetterSummary))


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which dead letters an act is for. Everything given must match; nothing given matches nothing."""

    ids: Sequence[int] = ()
    handler: str | None = None
    type: str | None = None
    source: str | None = None
    key: str | None = None
    reason: str | None = None
    since: datetime | None = None
    limit: int | None = None
    all: bool = False

    @property
    def is_empty(self) -> bool:
        filters = (self.handler, self.type, self.source, self.key, self.reason, self.since)
        return not self.all and not self.ids and all(value is None for value in filters)


def failure(error: BaseException, *, reason: str, attempts: int) -> Failure:
    """An exception as it is stored."""
    return Failure(
        reason=reason,
        error_class=text.storable(text.class_of(error), text.MAX_NAME_CHARS),
        error=text.storable(text.of_error(error), text.MAX_ERROR_CHARS),
        traceback=text.traceback_of(error, 50_000),
        attempts=attempts,
    )


def bury(
    received: Received,
    handler: str,
    error: BaseException,
    *,
    reason: str,
    attempt: int,
    is_started: bool = False,
    seen: Seen | None = None,
    settings: Settings,
    using: str,
) -> int | None:
    """
    Give an event up: inbox row, dead letter and notice in one transaction; the signal after its commit.

    Args:
        handler: Name of the handler, ``""`` for a message that reached none.
        attempt: Attempts made; 0 if none could be.
        is_started: The inbox row counts the last start already.
        seen: The inbox row as the attempt found it, if it could look.

    Returns:
        The dead letter's id; ``None`` if another copy has settled the event meanwhile.

    Raises:
        Overtaken: Another copy is about to.
    """
    facts = failure(error, reason=reason, attempts=attempt)
    with transaction.atomic(using=using):
        starts = inbox.bury(
            received,
            handler,
            attempt=attempt,
            error=error,
            is_started=is_started,
            seen=seen,
            using=using,
        )
        if starts is None:
            return None
        facts = replace(facts, starts=starts)
        dead_letter_id, redrives = _write(received, handler, facts, using)
        deferred.remove(handler=handler, source=received.source, event_id=received.event_id, using=using)
        row = notice(received, facts, message_id=f"dlq:{dead_letter_id}:{redrives}", settings=settings)
        if is_sendable(row, settings):
            outbox.insert([row], using=using)
        else:
            outbox.insert_refused(
                row,
                code="too_large",
                error="With the facts of the failure the message is too large.",
                using=using,
            )
    signals.send(
        signals.dead_lettered,
        using=using,
        handler=handler,
        event_id=received.event_id,
        source=received.source,
        reason=reason,
        dead_letter_id=dead_letter_id,
    )
    return dead_letter_id


def _write(received: Received, handler: str, facts: Failure, using: str) -> tuple[int, int]:
    """redriving → open for an event that failed again, else a new row; returns its id and redrives."""
    values = {
        "reason": facts.reason,
        "error_class": facts.error_class,
        "error": facts.error,
        "traceback": facts.traceback,
        "attempts": facts.attempts,
        "starts": facts.starts,
        "fingerprint": _fingerprint(handler, facts),
    }
    known = _of(handler, received.source, received.event_id, using).filter(state=DeadLetterState.REDRIVING)
    row = known.order_by("-id").first()
    if row is not None:
        known.filter(pk=row.pk).update(state=DeadLetterState.OPEN, resolved_by="", **values)
        return row.pk, row.redrives
    event = received.event
    created = DeadLetter(
        handler=handler,
        source=received.source,
        event_id=received.event_id,
        event_type=received.event_type,
        key=received.key,
        subject=received.subject,
        stream=received.stream,
        sequence=received.sequence,
        headers=text.storable_headers(received.headers),
        body=received.body,
        occurred_at=_stored(event.occurred_at) if event and event.occurred_at else None,
        trace_id=text.storable(event.trace_id or "", 255) if event else "",
        **values,
    )
    DeadLetter.objects.using(using).bulk_create([created])
    return created.pk, 0


def _stored(instant: datetime) -> datetime | None:
    """
    ``None`` at both ends of the calendar, where an instant does not exist in every time zone.

    Go's zero time, the first of January of the year 1, has no local time west of UTC: burying must not fail,
    and neither must reading the row.
    """
    if not MINYEAR < instant.year < MAXYEAR:
        return None
    return instant if django_settings.USE_TZ else timezone.make_naive(instant)


def _fingerprint(handler: str, facts: Failure) -> str:
    """Groups dead letters of one cause: handler, reason, error class and where it was raised."""
    frames = [line for line in facts.traceback.splitlines() if line.startswith("  File ")]
    cause = "\n".join([handler, facts.reason, facts.error_class, frames[-1] if frames else ""])
    return hashlib.sha256(cause.encode()).hexdigest()[:16]


def reopen(dead_letter_id: int, *, by: str, note: str = "", using: str) -> bool:
    """open → redriving. An empty ``note`` leaves an earlier one."""
    values: dict[str, object] = {"state": DeadLetterState.REDRIVING, "resolved_by": by[:150]}
    values |= {"note": note} if note else {}
    rows = DeadLetter.objects.using(using).filter(pk=dead_letter_id, state=DeadLetterState.OPEN)
    return bool(rows.update(redrives=F("redrives") + 1, **values))


def resolve_redriven(*, handler: str, source: str, event_id: str, using: str) -> bool:
    """redriving → redriven; inside the transaction of the handler that succeeded."""
    rows = _of(handler, source, event_id, using).filter(state=DeadLetterState.REDRIVING)
    return bool(rows.update(state=DeadLetterState.REDRIVEN, resolved_at=WallClock()))


def discard(dead_letter_id: int, *, by: str, note: str, using: str) -> bool:
    """open → discarded, with the operator's reason."""
    return bool(
        DeadLetter.objects.using(using)
        .filter(pk=dead_letter_id, state=DeadLetterState.OPEN)
        .update(state=DeadLetterState.DISCARDED, resolved_at=WallClock(), resolved_by=by[:150], note=note)
    )


def select(
    selection: Selection, *, states: Collection[DeadLetterState] | None, using: str
) -> list[DeadLetterSummary]:
    """The dead letters of a selection, oldest first; ``states=None`` means any."""
    rows = _selected(selection, states, using).order_by("id").values_list(*_SUMMARY)
    limited = rows[: selection.limit] if selection.limit is not None else rows
    return [_summary(row) for row in limited]


def count(selection: Selection, *, states: Collection[DeadLetterState] | None, using: str) -> int:
    """How many :func:`select` would find without a limit."""
    return _selected(selection, states, using).count()


def _selected(
    selection: Selection, states: Collection[DeadLetterState] | None, using: str
) -> QuerySet[DeadLetter]:
    rows = DeadLetter.objects.using(using)
    if selection.is_empty or (selection.since is not None and selection.since.year == MAXYEAR):
        return rows.none()
    wanted: dict[str, object] = {
        "handler": selection.handler,
        "event_type": selection.type,
        "source": selection.source,
        "key": selection.key,
        "reason": selection.reason,
        "created_at__gte": selection.since and _stored(selection.since),
        "pk__in": list(selection.ids) or None,
        "state__in": None if states is None else list(states),
    }
    return rows.filter(**{name: value for name, value in wanted.items() if value is not None})


def get(dead_letter_id: int, *, using: str) -> DeadLetterRecord | None:
    """One dead letter, whatever its state."""
    row = DeadLetter.objects.using(using).filter(pk=dead_letter_id).first()
    return None if row is None else _record(row)


def open_of_event(source: str, event_id: str, *, using: str) -> DeadLetterSummary | None:
    """The newest open dead letter that a handler made of an event."""
    rows = DeadLetter.objects.using(using).filter(
        source=source, event_id=event_id, state=DeadLetterState.OPEN
    )
    row = rows.exclude(handler="").order_by("-id").values_list(*_SUMMARY).first()
    return None if row is None else _summary(row)


def _of(handler: str, source: str, event_id: str, using: str) -> QuerySet[DeadLetter]:
    return DeadLetter.objects.using(using).filter(handler=handler, source=source, event_id=event_id)


def _summary(row: Sequence[Any]) -> DeadLetterSummary:
    return DeadLetterSummary(**dict(zip(_SUMMARY, row, strict=True)))


def _record(row: DeadLetter) -> DeadLetterRecord:
    return DeadLetterRecord(
        **{name: getattr(row, name) for name in _SUMMARY},
        traceback=row.traceback,
        headers=row.headers,
        body=bytes(row.body if row.edited_body is None else row.edited_body),
        is_edited=row.edited_body is not None,
    )

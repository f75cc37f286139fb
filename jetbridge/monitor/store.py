"""
Every statement of the monitor. All read, and all stop at a cap.

A plain COUNT(*) over an archive of a hundred million rows takes minutes and the database's cache with it;
the number a person needs is "none", "a few" or "far too many".
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db.models import Min, Q, QuerySet

from jetbridge.leases import store as leases
from jetbridge.models import (
    Archive,
    DeadLetter,
    DeadLetterState,
    Deferred,
    Inbox,
    InboxState,
    Outbox,
    OutboxState,
    Scheduled,
    Worker,
)
from jetbridge.models.clock import WallClock
from jetbridge.monitor.views import LeaseView, WorkerView

RECENT_ROWS = 10_000


class Counter:
    """
    Counts on one alias up to ``cap`` rows each (``None``: exactly), and remembers which numbers it cut.

    Attributes:
        capped: Names of the numbers that are "at least".
    """

    def __init__(self, using: str, cap: int | None) -> None:
        self.using = using
        self.cap = cap
        self.capped: list[str] = []

    def outbox(self, state: OutboxState) -> int:
        return self._count(f"outbox.{state.value}", _outbox(self.using).filter(state=state))

    def scheduled(self) -> int:
        return self._count("outbox.scheduled", _scheduled(self.using))

    def due(self) -> int:
        """Scheduled rows whose time has come; no number of the interface, so never named as capped."""
        return self._counted(_scheduled(self.using).filter(due_at__lte=WallClock()))[0]

    def archived(self) -> int:
        return self._count("archive.rows", Archive.objects.using(self.using))

    def inbox(self, state: InboxState) -> int:
        rows = Inbox.objects.using(self.using).filter(state=state)
        return self._count(f"inbox.{state.value}", rows)

    def deferred_due(self) -> int:
        rows = Deferred.objects.using(self.using).filter(due_at__lte=WallClock())
        return self._count("deferred.due", rows)

    def deferred_waiting(self) -> int:
        later = Q(due_at__isnull=True) | Q(due_at__gt=WallClock())
        return self._count("deferred.waiting", Deferred.objects.using(self.using).filter(later))

    def dead_letters(self, state: DeadLetterState) -> int:
        rows = DeadLetter.objects.using(self.using).filter(state=state)
        return self._count(f"dead_letters.{state.value}", rows)

    def _count(self, name: str, rows: QuerySet[Any]) -> int:
        number, is_capped = self._counted(rows)
        if is_capped:
            self.capped.append(name)
        return number

    def _counted(self, rows: QuerySet[Any]) -> tuple[int, bool]:
        if self.cap is None:
            return rows.count(), False
        number = rows.values("pk")[: self.cap + 1].count()
        return min(number, self.cap), number > self.cap


def oldest_ready_s(*, using: str, cap: int | None) -> float | None:
    """
    For how long the oldest ready row has been ready, in seconds of the database's clock; ``None`` without one.

    Not since its ``created_at``: a row scheduled last week and due a second ago is not late. With a cap only
    the rows first in line are looked at.
    """
    ready = _outbox(using).filter(state=OutboxState.READY)
    first = ready.order_by("id")[:cap] if cap is not None else ready
    oldest: datetime | None = first.aggregate(oldest=Min("state_at"))["oldest"]
    now = ready.annotate(now=WallClock()).values_list("now", flat=True).first()
    if oldest is None or now is None:
        return None
    return max(0.0, (now - oldest).total_seconds())


def held_leases(*, using: str) -> list[LeaseView]:
    """Leases somebody holds."""
    return [
        LeaseView(database=using, name=one.name, owner=one.owner, epoch=one.epoch, expires_at=one.expires_at)
        for one in leases.held(using=using)
    ]


def knows_outcome(stream: str, sequence: int, *, using: str) -> bool:
    """
    Whether one of the latest inbox rows says what became of a message.

    Only the latest ``RECENT_ROWS``, by their primary key: nothing else finds a place in a stream quickly.
    """
    rows = Inbox.objects.using(using)
    newest = rows.order_by("-pk").values_list("pk", flat=True).first() or 0
    here = rows.filter(pk__gt=newest - RECENT_ROWS, stream=stream, sequence=sequence)
    return here.exclude(state__in=(InboxState.RETRYING, InboxState.RUNNING)).exists()


def workers(*, using: str) -> list[WorkerView]:
    """Processes that have not signed off, by role; one that was killed stays here for an hour."""
    rows = Worker.objects.using(using).annotate(now=WallClock()).order_by("role", "id")
    return [
        WorkerView(
            database=using,
            id=row.id,
            role=row.role,
            host=row.host,
            pid=row.pid,
            version=row.version,
            beat_age_s=max(0.0, (row.now - row.beat_at).total_seconds()),
            info=row.info,
        )
        for row in rows
    ]


def _outbox(using: str) -> QuerySet[Outbox]:
    return Outbox.objects.using(using).all()


def _scheduled(using: str) -> QuerySet[Scheduled]:
    return Scheduled.objects.using(using).all()

"""Every statement on the deferred table: messages that wait in the database."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet

from jetbridge.models import Deferred
from jetbridge.models.clock import WallClock
from jetbridge.models.deferred import DeferredKind

LOOK_ROWS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeferredRecord:
    """A stored message that is due."""

    id: int
    handler: str
    source: str
    event_id: str
    key: str
    subject: str
    stream: str
    sequence: int
    headers: Mapping[str, str]
    body: bytes


def add(
    *,
    handler: str,
    source: str,
    event_id: str,
    key: str,
    event_type: str,
    subject: str,
    stream: str,
    sequence: int,
    headers: Mapping[str, str],
    body: bytes,
    kind: DeferredKind,
    using: str,
) -> bool:
    """Put a message at the head of its key's queue, due now. ``False``: it waits there already."""
    try:
        with transaction.atomic(using=using):
            rows = [
                Deferred(
                    handler=handler,
                    source=source,
                    event_id=event_id,
                    key=key,
                    event_type=event_type,
                    subject=subject,
                    stream=stream,
                    sequence=sequence,
                    headers=dict(headers),
                    body=body,
                    kind=kind,
                    due_at=WallClock(),
                )
            ]
            Deferred.objects.using(using).bulk_create(rows)
    except IntegrityError:
        return False
    return True


def due(
    *,
    sources: Collection[str],
    without: Collection[int],
    limit: int,
    is_wanted: Callable[[str, str, str], bool] | None = None,
    using: str,
) -> list[DeferredRecord]:
    """
    Messages of some sources that are due and not already in the caller's hands, in stream order.

    Redriven together, the dead letters of one key run in the order in which they were published.

    Args:
        is_wanted: Asked with source, key and event id of each; ``None`` wants all.
    """
    rows = Deferred.objects.using(using).filter(Q(due_at__lte=WallClock()), source__in=sources)
    rows = rows.exclude(pk__in=list(without)).order_by("stream", "sequence", "id")
    if is_wanted is not None:
        rows = rows.filter(pk__in=_wanted(rows, is_wanted, limit))
    return [
        DeferredRecord(
            id=row.pk,
            handler=row.handler,
            source=row.source,
            event_id=row.event_id,
            key=row.key,
            subject=row.subject,
            stream=row.stream,
            sequence=row.sequence,
            headers=row.headers,
            body=bytes(row.body),
        )
        for row in rows[:limit]
    ]


def _wanted(rows: QuerySet[Deferred], is_wanted: Callable[[str, str, str], bool], limit: int) -> list[int]:
    """The first of ``rows`` that are wanted. Without their bodies: those of others may be many, and in front."""
    found: list[int] = []
    for start in itertools.count(0, LOOK_ROWS):
        some = list(rows.values_list("pk", "source", "key", "event_id")[start : start + LOOK_ROWS])
        found += [pk for pk, *of_row in some if is_wanted(*of_row)]
        if len(found) >= limit or len(some) < LOOK_ROWS:
            break
    return found[:limit]


def any_due(*, sources: Collection[str], using: str) -> bool:
    """Whether anything of these sources is due."""
    return Deferred.objects.using(using).filter(due_at__lte=WallClock(), source__in=sources).exists()


def waits(*, source: str, event_id: str, using: str) -> bool:
    """Whether any handler has yet to run a stored message."""
    return Deferred.objects.using(using).filter(source=source, event_id=event_id).exists()


def waits_for(*, handler: str, source: str, event_id: str, using: str) -> bool:
    """Whether this handler has yet to run a stored message."""
    return Deferred.objects.using(using).filter(handler=handler, source=source, event_id=event_id).exists()


def remove(*, handler: str, source: str, event_id: str, using: str) -> int:
    """The message has been settled; inside the transaction that settles it."""
    rows = Deferred.objects.using(using).filter(handler=handler, source=source, event_id=event_id)
    return rows.delete()[0]

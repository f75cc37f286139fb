"""
Every statement that writes or reads the outbox on its way to the stream.

Statements that a relay runs per page are raw on PostgreSQL, where a round trip or a sort decides the
speed; everything else is the ORM. Functions return frozen records, so that nothing can query lazily.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, Final, TypeVar

from django.conf import settings
from django.db import NotSupportedError, ProgrammingError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, QuerySet
from django.db.models.functions import Length
from django.utils import timezone

from jetbridge.models import Archive, Outbox, OutboxState, Scheduled
from jetbridge.models.clock import WallClock
from jetbridge.outbox import store_fence
from jetbridge.outbox.drafts import Draft
from jetbridge.outbox.records import OutboxRecord, Settled

logger = logging.getLogger("jetbridge.outbox")

T = TypeVar("T")
_unflushable: Final = set[str]()
INSERT_ROWS: Final = 1_000
CHUNK_ROWS: Final = 50
COPY_ROWS: Final = 100
RELEASE_KEYS: Final = 500
# A page in memory, several times over: as rows, messages and frames.
PAGE_BYTES: Final = 16_000_000
_CONTENT: Final = (
    "event_id",
    "message_id",
    "kind",
    "event_type",
    "destination",
    "subject",
    "key",
    "bucket",
    "headers",
    "body",
    "causation_id",
    "correlation_id",
)
_RECORD: Final = ("id", "subject", "destination", "key", "event_id", "message_id", "headers", "body")

# The sizes of large bodies are known without reading them: what does not fit is never fetched.
_PAGE: Final = """\
-- jetbridge: outbox.page
SELECT id, subject, destination, key, event_id, message_id, headers, body
FROM (
    SELECT p.*, sum(octet_length(body)) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) AS bytes
    FROM (
        SELECT o.id, o.subject, o.destination, o.key, o.event_id, o.message_id, o.headers, o.body
        FROM unnest(%s::smallint[]) AS b (n)
        CROSS JOIN LATERAL (
            SELECT id, subject, destination, key, event_id, message_id, headers, body
            FROM jetbridge_outbox WHERE bucket = b.n AND state = 'ready' ORDER BY id LIMIT %s
        ) o
        ORDER BY o.id LIMIT %s
    ) p
) q
WHERE bytes - octet_length(body) < %s ORDER BY id"""

_SETTLE: Final = f"""\
-- jetbridge: outbox.settle
WITH sent (id, stream, sequence, duplicate) AS (
    SELECT * FROM unnest(%s::bigint[], %s::varchar[], %s::bigint[], %s::boolean[])
), gone AS (
    DELETE FROM jetbridge_outbox o USING sent WHERE o.id = sent.id
    RETURNING o.id, {", ".join(f"o.{column}" for column in _CONTENT)}, o.created_at
)
INSERT INTO jetbridge_archive (id, {", ".join(_CONTENT)}, created_at,
    stream, stream_created_at, sequence, duplicate, sent_at)
SELECT gone.*, sent.stream, %s::timestamptz, sent.sequence, sent.duplicate, clock_timestamp()
FROM gone JOIN sent USING (id)"""

_PROMOTE: Final = f"""\
-- jetbridge: outbox.promote
WITH due AS (
    SELECT id FROM jetbridge_scheduled WHERE due_at <= (SELECT clock_timestamp())
    AND {{fence}} ORDER BY due_at, id LIMIT %s FOR UPDATE SKIP LOCKED
), moved AS (
    DELETE FROM jetbridge_scheduled s USING due WHERE s.id = due.id
    RETURNING s.due_at, s.id AS scheduled_id, {", ".join(f"s.{column}" for column in _CONTENT)}, s.created_at
)
INSERT INTO jetbridge_outbox ({", ".join(_CONTENT)}, created_at)
SELECT {", ".join(_CONTENT)}, created_at FROM moved ORDER BY due_at, scheduled_id"""


# The position of the flush is read first: whatever the page shows was written before the second one.
_IS_FLUSHED: Final = """\
-- jetbridge: outbox.is_flushed
SELECT pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()"""

# A commit that waits for the disk takes every earlier record along. It needs a record of its own to wait for.
_FLUSH: Final = """\
-- jetbridge: outbox.flush
WITH wait AS MATERIALIZED (SELECT set_config('synchronous_commit', 'on', true))
SELECT pg_logical_emit_message(true, 'jetbridge', '') FROM wait"""


def insert(rows: Sequence[Draft], *, using: str) -> None:
    """Write rows that may go at once: one statement for few, COPY for many where the database has it."""
    connection = connections[using]
    if len(rows) >= COPY_ROWS and _can_copy(connection):
        _copy(rows, connection)
        return
    ready = {"state": OutboxState.READY, "error_code": "", "error": "", "attempts": 0}
    Outbox.objects.using(using).bulk_create(
        [Outbox(**_columns(row), **ready) for row in rows], batch_size=INSERT_ROWS
    )


def insert_refused(row: Draft, *, code: str, error: str, using: str) -> None:
    """Write a row that is known to be unsendable, so that it is visible with its reason instead of lost."""
    refused = {"state": OutboxState.REFUSED, "error_code": code, "error": error, "attempts": 0}
    Outbox.objects.using(using).bulk_create([Outbox(**_columns(row), **refused)])


def schedule(rows: Sequence[Draft], *, due_at: datetime, using: str) -> None:
    """Write rows that may go from ``due_at`` (aware) on."""
    Scheduled.objects.using(using).bulk_create(
        [Scheduled(**_columns(row), due_at=_stored(due_at)) for row in rows], batch_size=INSERT_ROWS
    )


def _stored(instant: datetime) -> datetime:
    """An aware instant as a DateTimeField takes it: naive local time under ``USE_TZ=False``."""
    return instant if settings.USE_TZ else timezone.make_naive(instant)


def _columns(row: Draft) -> dict[str, object]:
    return {name: getattr(row, name) for name in _CONTENT}


def _can_copy(connection: BaseDatabaseWrapper) -> bool:
    if connection.vendor != "postgresql":
        return False
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    return bool(is_psycopg3)


def _copy(rows: Sequence[Draft], connection: BaseDatabaseWrapper) -> None:
    statement = f"COPY jetbridge_outbox ({', '.join(_CONTENT)}) FROM STDIN"
    one = transaction.atomic(using=connection.alias, savepoint=False)
    # Django wraps the errors of execute() alone: those of a COPY would reach the caller as psycopg's own.
    with one, connection.wrap_database_errors, connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(
                [json.dumps(row.headers) if name == "headers" else getattr(row, name) for name in _CONTENT]
            )


def page(buckets: Collection[int], *, limit: int, using: str) -> list[OutboxRecord]:
    """
    Ready rows of some buckets, by id within each: up to ``limit``, or fewer that fill ``PAGE_BYTES``.

    Ids follow insertion, not commit, so a smaller id may appear in a later call: callers must never
    remember "the last id". What is returned is on the database's disk, or its crash would leave a ghost in
    the stream.
    """
    connection = connections[using]
    if connection.vendor == "postgresql":
        per_bucket = max(32, 2 * limit // max(1, len(buckets)))
        with connection.cursor() as cursor:
            cursor.execute(_PAGE, [sorted(buckets), per_bucket, limit, PAGE_BYTES])
            found = [_record(row) for row in cursor.fetchall()]
        if found:
            _make_durable(connection)
        return found
    ready = Outbox.objects.using(using).filter(state=OutboxState.READY, bucket__in=buckets)
    return _bounded(ready, limit)


def _make_durable(connection: BaseDatabaseWrapper) -> None:
    """
    Wait until what this session has read is on disk: ``synchronous_commit=off`` shows rows before that.

    Costs a round trip where everything is on disk, else a flush, which other sessions' commits share.
    """
    if connection.in_atomic_block:
        return  # of a test: nothing of it is on disk
    if connection.alias in _unflushable:
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute(_IS_FLUSHED)
            if not cursor.fetchone()[0]:
                cursor.execute(_FLUSH)
    except (NotSupportedError, ProgrammingError) as error:
        # A hosted server without these functions must not stop the relay for the sake of a rare option.
        _unflushable.add(connection.alias)
        logger.warning(
            "The database %s does not say what is on its disk (%s). Keep synchronous_commit on there: with it off, "
            "a crash of the database may leave events in the stream whose transaction is lost.",
            connection.alias,
            str(error).strip(),
        )


def _bounded(rows: QuerySet[Outbox], limit: int) -> list[OutboxRecord]:
    """The oldest of ``rows``: up to ``limit``, or until ``PAGE_BYTES`` are full, but always one."""
    rows = rows.order_by("id")
    if connections[rows.db].vendor == "sqlite":
        # Read as it goes: what does not fit any more never leaves the file.
        found = (_record(row) for row in rows.values_list(*_RECORD)[:limit].iterator(chunk_size=CHUNK_ROWS))
        with closing(found):
            return list(_fitting(found, lambda record: len(record.body)))
    sizes = rows.values_list(Length("body"), flat=True)[:limit]
    count = sum(1 for _ in _fitting(sizes, int))
    return [_record(row) for row in rows.values_list(*_RECORD)[:count]] if count else []


def _fitting(items: Iterable[T], size: Callable[[T], int]) -> Iterator[T]:
    """The first of ``items`` until ``PAGE_BYTES`` are full; the one that fills them is the last."""
    room = PAGE_BYTES
    for item in items:
        yield item
        room -= size(item)
        if room <= 0:
            return


def _record(row: Sequence[Any]) -> OutboxRecord:
    id_, subject, destination, key, event_id, message_id, headers, body = row
    parsed = json.loads(headers) if isinstance(headers, str) else headers
    return OutboxRecord(id_, subject, destination, key, event_id, message_id, parsed, bytes(body))


def settle(sent: Sequence[Settled], *, stream_created_at: datetime | None, using: str) -> None:
    """
    Move rows that the stream has stored to the archive, in one transaction.

    A row that another relay has settled meanwhile is left alone. The commit may be asynchronous: what a
    crash of the database undoes is sent again and dropped as a duplicate.
    """
    connection = connections[using]
    if connection.vendor == "postgresql":
        ordered = sorted(sent, key=lambda row: row.id)  # or two that settle the same page could deadlock
        columns = [
            [getattr(row, name) for row in ordered] for name in ("id", "stream", "sequence", "duplicate")
        ]
        with connection.cursor() as cursor:
            cursor.execute(_SETTLE, [*columns, stream_created_at])
        return
    by_id = {row.id: row for row in sent}
    with transaction.atomic(using=using):
        rows = Outbox.objects.using(using).filter(id__in=by_id)
        Archive.objects.using(using).bulk_create(
            [_archived(row, by_id[row.pk], stream_created_at) for row in rows.only(*_CONTENT, "created_at")]
        )
        rows.delete()


def _archived(row: Outbox, sent: Settled, stream_created_at: datetime | None) -> Archive:
    content = {name: getattr(row, name) for name in (*_CONTENT, "created_at")}
    return Archive(
        id=row.pk,
        stream=sent.stream,
        stream_created_at=stream_created_at,
        sequence=sent.sequence,
        duplicate=sent.duplicate,
        **content,
    )


def promote_due(*, limit: int, owner: str | None = None, using: str) -> int:
    """
    Move scheduled rows that are due to the outbox, in the order they were due; returns how many.

    Args:
        owner: Moves nothing unless this process owns bucket 0: two that promote at once would mix the order.
    """
    if not _due(using).exists():
        return 0  # an idle look takes no lock
    connection = connections[using]
    if connection.vendor == "postgresql":
        fence, given = store_fence.condition(owner)
        with connection.cursor() as cursor:
            cursor.execute(_PROMOTE.format(fence=fence), [*given, limit])
            return int(cursor.rowcount)
    with transaction.atomic(using=using):
        if owner is not None and 0 not in store_fence.locked(owner, using=using):
            return 0
        rows = list(_due(using).order_by("due_at", "id")[:limit])
        Scheduled.objects.using(using).filter(id__in=[row.pk for row in rows]).delete()
        Outbox.objects.using(using).bulk_create(
            [Outbox(**{name: getattr(row, name) for name in (*_CONTENT, "created_at")}) for row in rows]
        )
    return len(rows)


def _due(using: str) -> QuerySet[Scheduled]:
    return Scheduled.objects.using(using).filter(due_at__lte=WallClock())


def move(
    ids: Iterable[int],
    to: OutboxState,
    *,
    code: str = "",
    error: str = "",
    origin: OutboxState = OutboxState.READY,
    owner: str | None = None,
    using: str,
) -> int:
    """
    Set rows in state ``origin`` aside: parked, held or refused, with the reason. Returns how many moved.

    Args:
        owner: Moves rows of those buckets only that this process still owns.
    """
    rows = Outbox.objects.using(using).filter(id__in=list(ids), state=origin)
    with store_fence.fenced(rows, owner) as own:
        return own.update(state=to, error_code=code[:32], error=error, state_at=WallClock())


def blocked(state: OutboxState, buckets: Collection[int], *, using: str) -> set[tuple[str, str]]:
    """The (subject, key) pairs that have rows in ``state``: what a relay must know when it takes buckets over."""
    rows = Outbox.objects.using(using).filter(state=state, bucket__in=buckets)
    return set(rows.values_list("subject", "key").distinct())


def parked_subjects(buckets: Collection[int], *, using: str) -> set[str]:
    """The subjects that have parked rows."""
    rows = Outbox.objects.using(using).filter(state=OutboxState.PARKED, bucket__in=buckets)
    return set(rows.values_list("subject", flat=True).distinct())


def parked_page(subject: str, buckets: Collection[int], *, limit: int, using: str) -> list[OutboxRecord]:
    """The oldest parked rows of a subject, bounded like :func:`page`. They stay parked until they are settled."""
    rows = Outbox.objects.using(using).filter(state=OutboxState.PARKED, subject=subject, bucket__in=buckets)
    found = _bounded(rows, limit)
    if found and connections[using].vendor == "postgresql":
        _make_durable(connections[using])
    return found


def held_lanes(buckets: Collection[int], *, using: str) -> dict[tuple[str, str], int]:
    """The (subject, key) pairs that have held rows, and how many."""
    rows = Outbox.objects.using(using).filter(state=OutboxState.HELD, bucket__in=buckets)
    counts = rows.values_list("subject", "key").annotate(rows=Count("id")).order_by()
    return {(subject, key): count for subject, key, count in counts}


def release(
    lanes: Iterable[tuple[str, str]],
    buckets: Collection[int],
    *,
    to_parked: bool = False,
    owner: str | None = None,
    using: str,
) -> int:
    """
    Let the held rows of some (subject, key) pairs go on; returns how many.

    Args:
        to_parked: Their subject is parked: they join its queue, and so do ready rows of the pair, which may
            be older than what is parked of it.
        owner: Releases rows of those buckets only that this process still owns.
    """
    keys = defaultdict[str, list[str]](list)
    for subject, key in lanes:
        keys[subject].append(key)
    states = [OutboxState.HELD, OutboxState.READY] if to_parked else [OutboxState.HELD]
    to = OutboxState.PARKED if to_parked else OutboxState.READY
    code, error = ("parked", "Its subject is parked.") if to_parked else ("", "")
    moved = 0
    for subject, all_keys in keys.items():
        for start in range(0, len(all_keys), RELEASE_KEYS):
            some = all_keys[start : start + RELEASE_KEYS]
            rows = Outbox.objects.using(using).filter(state__in=states, bucket__in=buckets)
            with store_fence.fenced(rows.filter(subject=subject, key__in=some), owner) as own:
                moved += own.update(state=to, error_code=code, error=error, state_at=WallClock())
    return moved


def has_work(*, using: str) -> bool:
    """Whether any row, of any bucket, is ready or due. Future rows do not count."""
    return Outbox.objects.using(using).filter(state=OutboxState.READY).exists() or _due(using).exists()


def left(*, using: str) -> int:
    """Rows that should have gone by now and have not: everything in the outbox, and what is due."""
    return Outbox.objects.using(using).count() + _due(using).count()

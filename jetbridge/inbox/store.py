"""
Every statement on the inbox.

``claim`` is raw: whether this transaction or another one inserted the row is the whole
deduplication, and only the statement's row count tells.
"""

from __future__ import annotations

from typing import Final

from django.db import connections, transaction
from django.db.models import Case, F, QuerySet, Value, When

from jetbridge import text
from jetbridge.inbox.rows import Entry, Overtaken, Seen
from jetbridge.models import Inbox, InboxState, Worker
from jetbridge.models.clock import WallClock
from jetbridge.received import Received

_COLUMNS: Final = (
    "handler, source, event_id, state, attempts, starts, generation, duplicates, event_type, key, "
    "stream, sequence, received_at, finished_at, claimed_by, claim_epoch, error_class, error"
)
_VALUES: Final = "%s, %s, %s, 'processed', 1, 1, 0, 0, %s, %s, %s, %s, {now}, {now}, '', 0, '', ''"

# An ack stands for this transaction, so its commit waits for the disk, whatever the role's default says.
_DURABLY: Final = """\
set_config('synchronous_commit',
    CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
    ELSE current_setting('synchronous_commit') END, true)"""

# The time-outs are set inside the statement (a round trip less). The lock's holds for the wait on another copy;
# the one on idling holds to the end of the transaction, also where a pooler lends each transaction another session.
_CLAIM: Final = {
    "postgresql": f"""\
-- jetbridge: inbox.claim
WITH wait AS MATERIALIZED (
    SELECT set_config('jetbridge.lock_timeout', current_setting('lock_timeout'), true),
        set_config('lock_timeout', %s, true),
        set_config('idle_in_transaction_session_timeout', %s, true),
        {_DURABLY}
)
INSERT INTO jetbridge_inbox ({_COLUMNS})
SELECT {_VALUES.format(now="clock_timestamp()")} FROM wait
ON CONFLICT (handler, source, event_id) DO NOTHING""",
    "sqlite": f"""\
INSERT INTO jetbridge_inbox ({_COLUMNS})
VALUES ({_VALUES.format(now="strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now')")})
ON CONFLICT (handler, source, event_id) DO NOTHING""",
    "mysql": f"""\
INSERT IGNORE INTO jetbridge_inbox ({_COLUMNS})
VALUES ({_VALUES.format(now="UTC_TIMESTAMP(6)")})""",
}
_LIMIT: Final = "-- jetbridge: inbox.limit\nSELECT set_config('lock_timeout', %s, true)"
_UNLIMIT: Final = """\
-- jetbridge: inbox.claimed
SELECT set_config('lock_timeout', current_setting('jetbridge.lock_timeout'), true)"""

_DURABLE: Final = f"-- jetbridge: inbox.durable\nSELECT {_DURABLY}"

SETTLED: Final = (InboxState.PROCESSED, InboxState.DEAD, InboxState.SKIPPED)


def claim(
    received: Received, handler: str, *, lock_timeout_s: float, idle_limit_s: float, using: str
) -> bool:
    """
    Insert the row in its final state; to be called inside the handler's transaction.

    A concurrent copy makes this wait until that one commits or rolls back.

    Args:
        idle_limit_s: The database ends this transaction when nothing was asked of it for so long.

    Returns:
        Whether this transaction owns the row now. ``False``: it exists, see :func:`lock`.

    Raises:
        OperationalError: Another copy is still running after ``lock_timeout_s``.
    """
    connection = connections[using]
    identity: list[str | int] = [handler, received.source, received.event_id]
    place: list[str | int] = [received.event_type, received.key, received.stream, received.sequence]
    with connection.cursor() as cursor:
        if connection.vendor != "postgresql":
            cursor.execute(_CLAIM[connection.vendor], [*identity, *place])
            return bool(cursor.rowcount)
        limits = [f"{lock_timeout_s * 1000:.0f}ms", f"{idle_limit_s * 1000:.0f}ms"]
        cursor.execute(_CLAIM["postgresql"], [*limits, *identity, *place])
        return bool(cursor.rowcount)


def limit_lock_wait(lock_timeout_s: float, *, using: str) -> None:
    """Until the end of the transaction, do not wait longer than this for another copy of the event."""
    connection = connections[using]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_LIMIT, [f"{lock_timeout_s * 1000:.0f}ms"])


def end_lock_timeout(*, using: str) -> None:
    """Give the handler's own statements the lock time-out back that the session had before the claim."""
    connection = connections[using]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_UNLIMIT)


def lock(received: Received, handler: str, *, using: str) -> Entry | None:
    """The existing row, locked until the end of the transaction."""
    rows = _identity(received, handler, using).select_for_update().annotate(now=WallClock())
    found = rows.values_list(
        "pk", "state", "attempts", "starts", "generation", "claimed_by", "next_attempt_at", "now"
    ).first()
    if found is None:
        return None
    pk, state, attempts, starts, generation, claimed_by, next_attempt_at, now = found
    wait_s = (next_attempt_at - now).total_seconds() if next_attempt_at else 0.0
    return Entry(
        id=pk,
        state=state,
        attempts=attempts,
        starts=starts,
        generation=generation,
        claimed_by=claimed_by,
        wait_s=wait_s,
    )


def was_draining(owner: str, *, using: str) -> bool:
    """
    Whether a process had been asked to end. If it ended in the middle of a handler, somebody did not want to
    wait for it: its start is held against nobody.
    """
    info = Worker.objects.using(using).filter(pk=owner).values_list("info", flat=True).first()
    return isinstance(info, dict) and bool(info.get("draining"))


def record_start(
    received: Received,
    handler: str,
    entry: Entry | None,
    *,
    owner: str,
    instead: bool = False,
    using: str,
) -> None:
    """
    (absent), retrying, deferred or running → running, before the handler and in a commit of its own.

    A start of the same owner that is still recorded, because the database was away at its end, is kept.

    Args:
        entry: The row, locked by this transaction; ``None`` if there is none.
        owner: Name of this process.
        instead: The start that stands there counts for nothing, and this one takes its place.

    Raises:
        IntegrityError: Another copy has inserted the row meanwhile.
        OperationalError: It is about to.
    """
    if entry is None:
        _insert(received, handler, InboxState.RUNNING, using, starts=1, claimed_by=owner)
    elif not entry.is_of(owner):
        Inbox.objects.using(using).filter(pk=entry.id).update(
            state=InboxState.RUNNING,
            starts=entry.starts + (not instead),
            claimed_by=owner,
            next_attempt_at=None,
        )


def take_back(received: Received, handler: str, *, owner: str, using: str) -> bool:
    """running, by this owner → retrying or deferred: the start came to nothing, through nobody's fault."""
    rows = _identity(received, handler, using).filter(state=InboxState.RUNNING, claimed_by=owner)
    return bool(rows.update(**_not_running(), starts=F("starts") - 1))


def give_back(owner: str, *, using: str) -> int:
    """
    Take back every start of a process that ends; returns how many are left, locked by their handler.
    """
    rows = Inbox.objects.using(using)
    mine = rows.filter(state=InboxState.RUNNING, claimed_by=owner)
    skip = connections[using].features.has_select_for_update_skip_locked
    with transaction.atomic(using=using):
        free = list(mine.select_for_update(skip_locked=skip).values_list("pk", flat=True))
        rows.filter(pk__in=free).update(**_not_running(), starts=F("starts") - 1)
        return mine.count()


def _not_running() -> dict[str, object]:
    """A row that was redriven keeps off the copies from the broker, so it becomes deferred again."""
    back = Case(
        When(generation__gt=0, then=Value(InboxState.DEFERRED.value)),
        default=Value(InboxState.RETRYING.value),
    )
    return {"state": back, "claimed_by": ""}


def finish(entry: Entry, *, using: str) -> bool:
    """retrying, deferred or running → processed, with the attempt that succeeded; inside the handler's transaction."""
    return bool(
        Inbox.objects.using(using)
        .filter(pk=entry.id, state=entry.state, attempts=entry.attempts)
        .update(
            state=InboxState.PROCESSED,
            attempts=entry.attempts + 1,
            starts=entry.starts + int(entry.state != InboxState.RUNNING),
            claimed_by="",
            finished_at=WallClock(),
            next_attempt_at=None,
            error_class="",
            error="",
        )
    )


def record_failure(
    received: Received,
    handler: str,
    *,
    attempt: int,
    spends: bool,
    delay_s: float,
    error: BaseException,
    started_by: str | None = None,
    generation: int = 0,
    using: str,
) -> bool:
    """
    (absent), retrying, deferred or running → retrying or deferred, with the error and the time of the next attempt.

    Args:
        attempt: Number of the attempt that failed.
        spends: Whether it counts; a snoozed one does not, and its start is taken back.
        started_by: Who recorded the start; ``None`` if nobody did.
        generation: Of the row, as the attempt found it.

    Returns:
        Whether it happened; ``False``: another copy has moved on, and its word counts.
    """
    values = {
        "attempts": attempt if spends else attempt - 1,
        "next_attempt_at": WallClock(delay_s),
        **_error(error),
    }
    with transaction.atomic(using=using):
        rows = _identity(received, handler, using).filter(attempts=attempt - 1, generation=generation)
        if started_by is not None:
            mine = rows.filter(state=InboxState.RUNNING, claimed_by=started_by)
            return bool(mine.update(**_not_running(), **values, starts=F("starts") - int(not spends)))
        expected = rows.exclude(state__in=(*SETTLED, InboxState.RUNNING))
        if expected.update(**values, starts=F("starts") + int(spends)):
            return True
        if attempt > 1 or _identity(received, handler, using).exists():
            return False
        _insert(received, handler, InboxState.RETRYING, using, starts=int(spends), **values)
    return True


def bury(
    received: Received,
    handler: str,
    *,
    attempt: int,
    error: BaseException,
    is_started: bool = False,
    seen: Seen | None = None,
    using: str,
) -> int | None:
    """
    (absent), retrying, deferred or running → dead; inside the transaction that writes the dead letter.

    Args:
        attempt: Attempts made; 0 if no handler saw the message.
        is_started: The row counts the last start already.
        seen: The row as the attempt found it; ``None`` if it could not look, and then any row will do.

    Returns:
        The starts of the row; ``None`` if it was settled before.

    Raises:
        Overtaken: It is not settled, and not as it was seen.
    """
    connection = connections[using]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_DURABLE)
    values = {
        "attempts": attempt,
        "claimed_by": "",
        "finished_at": WallClock(),
        "next_attempt_at": None,
    }
    values |= _error(error)
    rows = _identity(received, handler, using)
    expected = rows.exclude(state__in=SETTLED) if seen is None else _as_seen(rows, seen)
    new = 0 if is_started else min(attempt, 1)
    if expected.update(state=InboxState.DEAD, **values, starts=F("starts") + new):
        return rows.values_list("starts", flat=True).get()
    state = rows.values_list("state", flat=True).first()
    if state in SETTLED:
        return None
    if state is not None:
        raise Overtaken
    _insert(received, handler, InboxState.DEAD, using, starts=new, **values)
    return new


def _as_seen(rows: QuerySet[Inbox], seen: Seen) -> QuerySet[Inbox]:
    """The row, if nobody has moved on since."""
    same = rows.exclude(state__in=SETTLED).filter(attempts=seen.attempts, generation=seen.generation)
    if seen.started_by is None:
        return same.exclude(state=InboxState.RUNNING)
    return same.filter(state=InboxState.RUNNING, claimed_by=seen.started_by)


def reopen(handler: str, source: str, event_id: str, *, using: str) -> bool:
    """dead → deferred, as a new generation with fresh attempts: the redriven copy alone may run it."""
    return bool(
        Inbox.objects.using(using)
        .filter(handler=handler, source=source, event_id=event_id, state=InboxState.DEAD)
        .update(
            state=InboxState.DEFERRED,
            generation=F("generation") + 1,
            attempts=0,
            starts=0,
            finished_at=None,
            next_attempt_at=None,
        )
    )


def can_reopen(handler: str, source: str, event_id: str, *, using: str) -> bool:
    """Whether :func:`reopen` would find its row."""
    return (
        Inbox.objects.using(using)
        .filter(handler=handler, source=source, event_id=event_id, state=InboxState.DEAD)
        .exists()
    )


def count_duplicate(received: Received, handler: str, *, using: str) -> None:
    """One more copy of a settled event has arrived."""
    _identity(received, handler, using).update(duplicates=F("duplicates") + 1)


def _identity(received: Received, handler: str, using: str) -> QuerySet[Inbox]:
    return Inbox.objects.using(using).filter(
        handler=handler, source=received.source, event_id=received.event_id
    )


def _insert(received: Received, handler: str, state: InboxState, using: str, **values: object) -> None:
    Inbox.objects.using(using).bulk_create(
        [
            Inbox(
                handler=handler,
                source=received.source,
                event_id=received.event_id,
                state=state,
                event_type=received.event_type,
                key=received.key,
                stream=received.stream,
                sequence=received.sequence,
                **values,
            )
        ]
    )


def _error(error: BaseException) -> dict[str, object]:
    return {
        "error_class": text.storable(text.class_of(error), text.MAX_NAME_CHARS),
        "error": text.storable(text.of_error(error), text.MAX_ERROR_CHARS),
    }

"""
``publish()`` in its four forms: one INSERT into the outbox of the caller's transaction, nothing else.

The web process never talks to NATS. What the transaction decides, the event follows: rolled back in
any way, it is nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db import connections, router
from django.db.backends.base.base import BaseDatabaseWrapper

from jetbridge import conf, context
from jetbridge.conf import Settings
from jetbridge.errors import InvalidEvent, NotInTransaction, WrongDatabase
from jetbridge.event import JSON, Event, Id
from jetbridge.outbox import drafts
from jetbridge.runtime.threads import to_async


def publish(
    type: str,
    payload: Mapping[str, JSON],
    /,
    *,
    to: str | Sequence[str] | None = None,
    subject: str | None = None,
    resource_type: str | None = None,
    resource_id: Id | None = None,
    key: Id | None = None,
    headers: Mapping[str, str] | None = None,
    event_id: str | UUID | None = None,
    occurred_at: datetime | None = None,
    trace_id: str | None = None,
    delay: float | timedelta | None = None,
    at: datetime | None = None,
    using: str | None = None,
) -> str:
    """
    Write an event into the outbox, as part of the current transaction.

    Args:
        type: Dotted name, e.g. ``order.placed``.
        payload: A JSON object; what Django's JSON encoder knows (dates, Decimal, UUID) is fine.
        to: One or more names of ``DESTINATIONS``; may be left out where there is exactly one.
        subject: Instead of ``<app>.sync.<to>``; must start with ``<app>.sync.``.
        resource_type: Default: ``type`` up to its first dot, else ``event``.
        resource_id: Default: ``payload["id"]``, else empty.
        key: Events of one key keep their order. Default: ``<resource_type>:<resource_id>``; without a
            resource id there is no key, and no order.
        headers: Additional headers, ASCII. ``Nats-*``, ``Jetbridge-*`` and ``x-dlq-*`` are reserved.
        event_id: Your own id, 1 to 128 visible ASCII characters. The same id twice is legal: it is one
            effect at the other end.
        occurred_at: Default: now.
        trace_id: Default: the handled event's, else new.
        delay: Not before so many seconds from now.
        at: Not before this instant.
        using: Database alias. Default: the handler's inside a handler, else what the router says.

    Returns:
        The event id.

    Raises:
        InvalidEvent: An argument cannot be sent (also :class:`UnknownDestination`, :class:`EventTooLarge`).
        WrongDatabase: Only another alias is inside ``atomic()``.
        NotInTransaction: ``REQUIRE_ATOMIC`` is on and there is no transaction.
        ImproperlyConfigured: The setting ``JETBRIDGE`` has faults; all are listed.
    """
    event = Event(
        type=type,
        payload=payload,
        resource_type=resource_type,
        resource_id=resource_id,
        key=key,
        headers=headers if headers is not None else {},
        event_id=event_id,
        occurred_at=occurred_at,
        trace_id=trace_id,
    )
    return _publish([event], to=to, subject=subject, delay=delay, at=at, using=using)[0]


def publish_many(
    events: Iterable[Event],
    /,
    *,
    to: str | Sequence[str] | None = None,
    delay: float | timedelta | None = None,
    at: datetime | None = None,
    using: str | None = None,
) -> list[str]:
    """
    Write many events at once: all or none, by COPY on PostgreSQL, else one statement per 1000.

    Args:
        events: What to publish; see :class:`jetbridge.Event` for the defaults.
        to, delay, at, using: As for :func:`publish`, for all of them.

    Returns:
        The event ids, in order. Nothing is written for an empty iterable.
    """
    return _publish(_events(events), to=to, subject=None, delay=delay, at=at, using=using)


async def apublish(
    type: str,
    payload: Mapping[str, JSON],
    /,
    *,
    to: str | Sequence[str] | None = None,
    subject: str | None = None,
    resource_type: str | None = None,
    resource_id: Id | None = None,
    key: Id | None = None,
    headers: Mapping[str, str] | None = None,
    event_id: str | UUID | None = None,
    occurred_at: datetime | None = None,
    trace_id: str | None = None,
    delay: float | timedelta | None = None,
    at: datetime | None = None,
    using: str | None = None,
) -> str:
    """
    :func:`publish` for coroutines.

    Inside an async handler it joins the handler's transaction. In any other coroutine there is none to
    join (Django has no async transactions), and the event is committed by itself.
    """
    return await to_async(publish)(
        type,
        payload,
        to=to,
        subject=subject,
        resource_type=resource_type,
        resource_id=resource_id,
        key=key,
        headers=headers,
        event_id=event_id,
        occurred_at=occurred_at,
        trace_id=trace_id,
        delay=delay,
        at=at,
        using=using,
    )


async def apublish_many(
    events: Iterable[Event],
    /,
    *,
    to: str | Sequence[str] | None = None,
    delay: float | timedelta | None = None,
    at: datetime | None = None,
    using: str | None = None,
) -> list[str]:
    """:func:`publish_many` for coroutines; see :func:`apublish` for what it joins."""
    return await to_async(publish_many)(events, to=to, delay=delay, at=at, using=using)


def _events(events: Iterable[Event]) -> list[Event]:
    if not isinstance(events, Iterable):
        raise InvalidEvent(f"publish_many() takes an iterable of jetbridge.Event objects, got {events!r}.")
    found = list(events)
    for event in found:
        if not isinstance(event, Event):
            raise InvalidEvent(f"publish_many() takes jetbridge.Event objects, got {event!r}.")
    return found


def _publish(
    events: Sequence[Event],
    *,
    to: str | Sequence[str] | None,
    subject: str | None,
    delay: float | timedelta | None,
    at: datetime | None,
    using: str | None,
) -> list[str]:
    from jetbridge.outbox import store  # models: not before the app registry is ready

    settings = conf.get_settings()
    cause = context.current()
    alias = _alias(settings, using, cause)
    _check_transaction(settings, alias, cause)
    addresses = drafts.targets(settings, to, subject)
    due_at = _due_at(delay, at)
    ids: list[str] = []
    rows: list[drafts.Draft] = []
    for number, event in enumerate(events):
        try:
            full = drafts.complete(event, settings, cause)
            rows += drafts.drafts(full, addresses, settings)
        except InvalidEvent as error:
            if number == 0 and len(events) == 1:
                raise
            raise type(error)(f"events[{number}]: {error}") from error
        ids.append(str(full.event_id))
    if due_at is None:
        store.insert(rows, using=alias)
    else:
        store.schedule(rows, due_at=due_at, using=alias)
    return ids


def _due_at(delay: float | timedelta | None, at: datetime | None) -> datetime | None:
    """The instant of a delayed event in UTC, or ``None`` if it may go at once."""
    if delay is not None and at is not None:
        raise InvalidEvent("delay= and at= exclude each other; got both.")
    now = datetime.now(UTC)
    if at is not None:
        due = drafts.aware("at", at)
    elif delay is not None:
        due = _after(now, _delay(delay))
    else:
        return None
    return due if due > now else None


def _after(now: datetime, span: timedelta) -> datetime:
    try:
        return now + span
    except OverflowError:
        raise InvalidEvent(f"delay must end before the year 10000, got {span}.") from None


def _delay(delay: object) -> timedelta:
    if isinstance(delay, timedelta):
        span = delay
    elif isinstance(delay, (int, float)) and not isinstance(delay, bool) and 0 <= delay < 10**9:
        span = timedelta(seconds=delay)
    else:
        raise InvalidEvent(f"delay must be a timedelta or a number of seconds from 0 to 1e9, got {delay!r}.")
    if span < timedelta(0):
        raise InvalidEvent(f"delay must not be negative, got {span}.")
    return span


def _alias(settings: Settings, using: str | None, cause: context.Handling | None) -> str:
    from jetbridge.models import Outbox

    if using is not None:
        if using not in settings.databases:
            raise InvalidEvent(
                f'using={using!r} has no outbox; JETBRIDGE["DATABASES"]: {", ".join(map(repr, settings.databases))}.'
            )
        return using
    if cause is not None:
        return cause.using
    routed = router.db_for_write(Outbox)
    return routed if routed in settings.databases else settings.databases[0]


def _check_transaction(settings: Settings, alias: str, cause: context.Handling | None) -> None:
    if _in_users_transaction(connections[alias]):
        return
    if cause is not None and cause.atomic and alias == cause.using:
        raise NotInTransaction(
            "publish() was called by a handler, but in another thread than its transaction, so the event would stay "
            "if the handler fails. Call it on the handler's thread (sync_to_async with thread_sensitive=True)."
        )
    elsewhere = [c.alias for c in connections.all(initialized_only=True) if _in_users_transaction(c)]
    if elsewhere:
        raise WrongDatabase(
            f"publish() would write to {alias!r}, but the open transaction is on {', '.join(map(repr, elsewhere))}: "
            f"the event would not share its fate. Open transaction.atomic(using={alias!r}), or give using=."
        )
    if settings.require_atomic:
        raise NotInTransaction(
            f'publish() was called outside transaction.atomic(using={alias!r}), and JETBRIDGE["REQUIRE_ATOMIC"] is on.'
        )


def _in_users_transaction(connection: BaseDatabaseWrapper) -> bool:
    """
    Whether the user has a transaction open here. The blocks that TestCase wraps around a test do not
    count: with them, code that forgot its ``atomic()`` would pass its tests.
    """
    if connection.connection is not None and not connection.in_atomic_block and not connection.autocommit:
        return True
    return any(not getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)

"""
One attempt of one handler at one event: claim, handler, commit, in a single transaction.

Called on a worker thread. The claim writes the inbox row in its final state, so that row, the
handler's writes and what it published become true together or not at all.

An event that may have been started before has its start recorded first, in a commit of its own: if the
handler kills the process, nothing else would tell.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from django.db import IntegrityError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from jetbridge import context, retry, signals
from jetbridge.conf import Settings
from jetbridge.errors import HandlerLeftRollback
from jetbridge.event import Delivery
from jetbridge.inbox import store
from jetbridge.inbox.rows import Entry, Seen
from jetbridge.models import InboxState
from jetbridge.received import Received
from jetbridge.registry import Handler
from jetbridge.runtime.sessions import idle_limit_s
from jetbridge.runtime.threads import IDLE, replace_broken_connections, to_sync


@dataclass(frozen=True, slots=True, kw_only=True)
class Processed:
    """The handler's effect is committed."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """The event was settled before; this copy is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotYet:
    """An earlier attempt failed and the next one is due in ``delay_s`` seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """
    Everything this attempt wrote is rolled back.

    Attributes:
        attempt: Its number, from 1.
        is_recorded: Its start stands in the inbox row.
        seen: The inbox row as it was found; ``None`` if the error came before.
        session_lost: The database ended the session under the handler, whatever the handler made of it.
    """

    attempt: int
    error: BaseException
    session_lost: bool = False
    is_recorded: bool = False
    seen: Seen | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotAlone:
    """A process died while it handled this event: it may run only where nothing else runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed:
    """``deaths`` processes died while they handled this event, and it is not started again."""

    attempts: int
    deaths: int
    generation: int = 0


logger = logging.getLogger("jetbridge.inbox")
_IN_ERROR: Final = 3  # PQTRANS_INERROR of libpq
GONE_DELAY_S = 0.1

Result: TypeAlias = Processed | Duplicate | NotYet | Failed | NotAlone | Crashed


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """
    What to attempt.

    Attributes:
        received: The message.
        handler: Who is to handle it.
        using: Alias of its inbox.
        redriven: The message comes out of the deferred table, so it may run an event that waits there.
        suspect: It may have been started before, by a process that is gone.
        owner: Name of this process.
        alone: Nothing else runs in it.
        also: Runs inside the transaction after the handler, and for a duplicate in one of its own.
    """

    received: Received
    handler: Handler
    using: str
    redriven: bool = False
    suspect: bool = False
    owner: str = ""
    alone: bool = True
    also: Callable[[], None] | None = None


class _AlreadySettled(Exception):
    """Leaves the transaction without an error of the handler."""


class _TooEarly(Exception):
    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s


class _Suspect(Exception):
    """The row tells of an earlier start that nobody saw the end of."""


class _Instead(Exception):
    """The handler is not to be started."""

    def __init__(self, result: NotAlone | Crashed) -> None:
        self.result = result


def attempt(work: Work, settings: Settings) -> Result:
    """Run the handler once. Never raises for what the handler or the database does: that is the result."""
    run = _Run(work, settings)
    in_a_test = connections[work.using].in_atomic_block
    try:
        delivery = run.run()
    except _AlreadySettled:
        return _duplicate(work)
    except _TooEarly as early:
        return NotYet(delay_s=early.delay_s)
    except _Instead as instead:
        return instead.result
    except BaseException as error:  # also SystemExit: a handler that calls sys.exit() has failed
        if run.committed is None:
            if not in_a_test:
                # What is recorded next must be committed: not in a session that the handler left with autocommit off.
                replace_broken_connections()
            return run.failed(error)
        # The effect stands, so this is no failure of the handler.
        logger.exception("An on_commit hook of handler %s failed after the commit.", work.handler.name)
        delivery = run.committed
    signals.send(signals.handler_committed, using=work.using, handler=work.handler.name, delivery=delivery)
    return Processed(attempt=run.number)


class _Run:
    """The state of one attempt."""

    def __init__(self, work: Work, settings: Settings) -> None:
        self.work = work
        self.settings = settings
        self.number = 1
        self.generation: int | None = None
        self.is_recorded = False
        self.committed: Delivery | None = None
        self.session_lost = False

    def failed(self, error: BaseException) -> Failed:
        """What is known of an attempt that ended with ``error``."""
        seen = None
        if self.generation is not None:
            started_by = self.work.owner if self.is_recorded else None
            seen = Seen(attempts=self.number - 1, generation=self.generation, started_by=started_by)
        return Failed(
            attempt=self.number,
            error=error,
            session_lost=self.session_lost,
            is_recorded=self.is_recorded,
            seen=seen,
        )

    def run(self) -> Delivery:
        once = self.in_transaction if self.work.handler.atomic else self.without_transaction
        if not self.work.suspect:
            try:
                return once()
            except _Suspect:
                pass
        self._record_start()
        return once()

    def _record_start(self) -> None:
        work, using = self.work, self.work.using
        try:
            with transaction.atomic(using=using):
                store.limit_lock_wait(self.settings.lock_timeout_s, using=using)
                entry = store.lock(work.received, work.handler.name, using=using)
                self._check_due(entry)
                deaths = 0 if entry is None else entry.unfinished(work.owner)
                hurried = entry is not None and deaths > 0 and self._was_hurried(entry)
                deaths -= hurried
                if entry is not None and deaths >= self.settings.max_starts:
                    raise _Instead(
                        Crashed(attempts=entry.attempts, deaths=deaths, generation=entry.generation)
                    )
                # Beside others it would take them along, and they would be blamed with it. A first death may
                # have been a neighbour's fault, so the one that decides is never shared.
                if (deaths or self.settings.max_starts == 1) and not work.alone:
                    raise _Instead(NotAlone())
                store.record_start(
                    work.received, work.handler.name, entry, owner=work.owner, instead=hurried, using=using
                )
        except IntegrityError:  # another copy was faster
            raise _TooEarly(GONE_DELAY_S) from None
        self.is_recorded = True

    def _was_hurried(self, entry: Entry) -> bool:
        """The last start ended with a process that was already asked to end: no death, but impatience."""
        running = entry.state == InboxState.RUNNING and not entry.is_of(self.work.owner)
        return running and store.was_draining(entry.claimed_by, using=self.settings.databases[0])

    def in_transaction(self) -> Delivery:
        using = self.work.using
        in_a_test = connections[using].in_atomic_block
        with transaction.atomic(using=using, durable=True):
            # First of the transaction's hooks: if it has run, the commit has happened.
            transaction.on_commit(self._mark_committed, using=using)
            # Django never forgets it: an outage that one handler swallowed would excuse every later one.
            connections[using].rollback_exc = None  # type: ignore[attr-defined]
            entry = self._claim()
            try:
                delivery = self._call_handler()
            except BaseException as error:
                self._judge(error)
                raise
            self._check_transaction()
            if entry is not None and not store.finish(entry, using=using):
                raise _AlreadySettled
            if self.work.also is not None:
                self.work.also()
            self._delivery = delivery
        if self.committed is None and not in_a_test:
            raise HandlerLeftRollback(
                f"The transaction of handler {self.work.handler.name!r} was not committed: autocommit is off."
            )
        return delivery

    def _judge(self, error: BaseException) -> None:
        """
        Tell an outage from a handler that closed its connection: the error that follows is the same, but the
        one is to be waited for, and the other would be for ever.
        """
        connection = connections[self.work.using]
        if connection.closed_in_transaction:
            raise HandlerLeftRollback(
                f"Handler {self.work.handler.name!r} closed the connection of its transaction."
            ) from None  # with that error as its cause it would be an outage again
        self.session_lost = bool(getattr(connection.connection, "closed", False)) and not retry.is_too_slow(
            error
        )

    def _check_transaction(self) -> None:
        """Whether what the handler wrote can still be committed together with its inbox row."""
        connection, name = connections[self.work.using], self.work.handler.name
        # What it swallowed is the cause: an outage is not to be held against it.
        swallowed = getattr(connection, "rollback_exc", None) if connection.needs_rollback else None
        if connection.closed_in_transaction or not _is_open(connection):
            raise HandlerLeftRollback(
                f"Handler {name!r} ended its transaction (it closed the connection, or ran COMMIT or ROLLBACK). "
                f"The transaction is committed after the handler, with its inbox row; leave it open."
            ) from swallowed
        if _can_only_roll_back(connection):
            raise HandlerLeftRollback(
                f"Handler {name!r} returned, but its transaction is marked for rollback "
                f"(set_rollback(True), or a database error that was caught outside a savepoint). "
                f"Wrap the failing part in transaction.atomic()."
            ) from swallowed

    def _mark_committed(self) -> None:
        self.committed = self._delivery

    def without_transaction(self) -> Delivery:
        """At least once: the effect and the inbox row are two commits, and a crash between them repeats the effect."""
        using = self.work.using
        with transaction.atomic(using=using):
            entry = store.lock(self.work.received, self.work.handler.name, using=using)
            self._check(entry)
        delivery = self._call_handler()
        if not connections[using].in_atomic_block and not connections[using].get_autocommit():
            raise HandlerLeftRollback(
                f"Handler {self.work.handler.name!r} left autocommit off: nothing after it would be committed."
            )
        with transaction.atomic(using=using):
            current = self._claim(is_done=True)
            if current is not None and not store.finish(current, using=using):
                raise _AlreadySettled
            if self.work.also is not None:
                self.work.also()
        self.committed = delivery
        return delivery

    def _claim(self, *, is_done: bool = False) -> Entry | None:
        """``None`` if the row is new, else the row of earlier attempts, locked. ``is_done``: the effect is there."""
        work, using = self.work, self.work.using
        new = store.claim(
            work.received,
            work.handler.name,
            lock_timeout_s=self.settings.lock_timeout_s,
            idle_limit_s=idle_limit_s(work.handler.timeout_s or self.settings.handler_timeout_s),
            using=using,
        )
        entry = None if new else store.lock(work.received, work.handler.name, using=using)
        if not new and entry is None:
            # Deleted in between. Without a row nothing would stop a second copy.
            raise _TooEarly(GONE_DELAY_S)
        store.end_lock_timeout(using=using)
        if is_done:
            self._check_due(entry)
        else:
            self._check(entry)
        return entry

    def _check(self, entry: Entry | None) -> None:
        self._check_due(entry)
        if entry is None:
            return
        if not self.is_recorded:
            if entry.state == InboxState.RUNNING or entry.unfinished(self.work.owner):
                raise _Suspect
        elif not entry.is_of(self.work.owner):
            raise _TooEarly(GONE_DELAY_S)  # another copy has moved on

    def _check_due(self, entry: Entry | None) -> None:
        self.generation = 0 if entry is None else entry.generation
        if entry is None:
            return
        # Once redriven, the event belongs to the stored message.
        of_redrive = entry.state == InboxState.DEFERRED or entry.generation > 0
        if entry.state in store.SETTLED or (of_redrive and not self.work.redriven):
            raise _AlreadySettled
        self.number = entry.attempts + 1
        if entry.wait_s > 0:
            raise _TooEarly(entry.wait_s)

    def _call_handler(self) -> Delivery:
        work = self.work
        timeout_s = work.handler.timeout_s or self.settings.handler_timeout_s
        delivery = work.received.delivery(attempt=self.number, deadline=time.monotonic() + timeout_s)
        signals.send(signals.handler_started, using=work.using, handler=work.handler.name, delivery=delivery)
        with context.handling(delivery, work.using, atomic=work.handler.atomic):
            made: object = work.handler.function(delivery)
            # By what came back: a decorator, or an object with __call__, hides that it is a coroutine function.
            if inspect.isawaitable(made):
                to_sync(_ended)(made)
            elif inspect.isgenerator(made) or inspect.isasyncgen(made):
                raise TypeError(
                    f"Handler {work.handler.name!r} has a `yield`, so calling it runs nothing of it."
                )
        return delivery


async def _ended(made: Awaitable[object]) -> None:
    await made


def _is_open(connection: BaseDatabaseWrapper) -> bool:
    """Whether the session is inside a transaction, as Django believes."""
    if connection.vendor == "postgresql":
        return bool(connection.connection.info.transaction_status != IDLE)
    return bool(getattr(connection.connection, "in_transaction", True))


def _can_only_roll_back(connection: BaseDatabaseWrapper) -> bool:
    """
    Also where Django does not know: PostgreSQL answers the COMMIT of a transaction in which a statement has
    failed with ROLLBACK and no error. The message would be acked, and its effect nowhere.
    """
    if connection.needs_rollback or connection.vendor != "postgresql":
        return connection.needs_rollback
    return bool(connection.connection.info.transaction_status == _IN_ERROR)


def _duplicate(work: Work) -> Duplicate:
    with transaction.atomic(using=work.using):
        store.count_duplicate(work.received, work.handler.name, using=work.using)
        if work.also is not None:
            work.also()
    return Duplicate()

"""
What a failure means: again, later, never, or nobody's fault. Pure decisions, tested by table.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from django.db import DatabaseError, InterfaceError, OperationalError

from jetbridge.errors import MalformedMessage, Reject, Retry, Snooze

ErrorClasses: TypeAlias = tuple[type[BaseException], ...]

REASON_REJECTED: Final = "rejected"
REASON_UNRECOVERABLE: Final = "unrecoverable"
REASON_EXHAUSTED: Final = "max_deliver_exceeded"
REASON_MALFORMED: Final = "malformed_json"
REASON_UNKNOWN: Final = "unknown_event"
REASON_CRASHED: Final = "crashed"

OUTAGE_DELAY_S: Final = 1.0
TRANSIENT_DELAY_S: Final = 1.0
# The database is not there, has no room, or takes no writes: whoever asks, and whatever is asked.
_AWAY_SQLSTATES: Final = ("08", "53", "57P", "58", "25006")
# Another transaction was in the way. Waiting helps, and whose fault it is cannot be told: a count would
# give up events for the length of somebody's migration.
_CONTENTION_SQLSTATES: Final = ("40001", "40P01", "55P03", "55006")
_AWAY_SQLITE: Final = frozenset({5, 6, 8, 10, 13, 14})  # BUSY, LOCKED, READONLY, IOERR, FULL, CANTOPEN
_AWAY_SQLITE_TEXTS: Final = ("locked", "busy", "disk i/o", "unable to open", "disk is full", "readonly")
_OUTAGE_MYSQL: Final = frozenset({1040, 1205, 1213, 1290, 2002, 2003, 2006, 2013, 2055})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """
    How often and when a handler is tried again.

    Attributes:
        max_attempts: The attempt with this number is the last.
        backoff: Seconds before the 2nd, 3rd, … attempt; the last value repeats.
        permanent: Exceptions that dead-letter at once.
        transient: Exceptions that spend no attempt.
    """

    max_attempts: int
    backoff: Sequence[float]
    permanent: ErrorClasses = ()
    transient: ErrorClasses = ()

    def delay_s(self, attempt: int, rng: random.Random) -> float:
        """Seconds to wait after failed attempt number ``attempt``: half fixed, half random."""
        full = self.backoff[min(attempt, len(self.backoff)) - 1]
        return full * (0.5 + 0.5 * rng.random())


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """Try again after ``delay_s``; ``spends`` tells whether an attempt is used up."""

    delay_s: float
    spends: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """Dead letter; ``reason`` is one of the words on the wire."""

    reason: str


def decide(error: BaseException, attempt: int, policy: RetryPolicy, rng: random.Random) -> Again | GiveUp:
    """
    What follows from a failed attempt.

    Args:
        error: What the handler raised, or the database at its commit.
        attempt: Number of the attempt that failed, from 1.
        policy: The handler's.
        rng: Source of the jitter.
    """
    match error:
        case Snooze():
            return Again(delay_s=error.delay, spends=False)
        case Reject():
            return GiveUp(reason=REASON_REJECTED)
        case MalformedMessage():
            return GiveUp(reason=REASON_MALFORMED)
    outage = is_outage(error)
    # permanent=(Exception,) must not kill what a restarting database breaks.
    if isinstance(error, policy.permanent) and not outage:
        return GiveUp(reason=REASON_UNRECOVERABLE)
    if isinstance(error, policy.transient):
        return Again(delay_s=max(TRANSIENT_DELAY_S, policy.delay_s(1, rng)), spends=False)
    if outage:
        # Not the handler's backoff: that may be minutes, and work resumes within seconds of an outage's end.
        return Again(delay_s=OUTAGE_DELAY_S, spends=False)
    if attempt >= policy.max_attempts:
        return GiveUp(reason=REASON_EXHAUSTED)
    delay = (
        error.delay if isinstance(error, Retry) and error.delay is not None else policy.delay_s(attempt, rng)
    )
    return Again(delay_s=delay, spends=True)


def is_outage(error: BaseException) -> bool:
    """
    Whether an error is the database's state and not the handler's fault: :func:`is_away`, or another
    transaction was in the way (serialization, deadlock, lock not available).
    """
    if is_away(error):
        return True
    states = map(_sqlstate, _causes(error)) if isinstance(error, DatabaseError) else ()
    return any(state.startswith(_CONTENTION_SQLSTATES) for state in states)


def is_away(error: BaseException) -> bool:
    """
    Whether the database is unreachable, without room or read-only, so that every other statement would fail, too.

    Also under an error of the handler's own: ``except DatabaseError as e: raise MyError from e`` is good style.
    """
    return any(_is_away(link) for link in _chain(error) if isinstance(link, (DatabaseError, InterfaceError)))


def _is_away(error: BaseException) -> bool:
    """
    By SQLSTATE or SQLite's code where there is one. Only where there is none the text decides:
    "no such table: locked_accounts" would be waited for, for ever.
    """
    cause = error.__cause__
    if cause is not None and _sqlstate(cause):
        return _sqlstate(cause).startswith(_AWAY_SQLSTATES)
    code = getattr(cause, "sqlite_errorcode", None)
    if isinstance(code, int):
        return code & 0xFF in _AWAY_SQLITE
    said = str(error).lower()
    if isinstance(error, InterfaceError):
        # A closed cursor and a value that cannot be bound are the handler's making.
        return not any(word in said for word in ("cursor", "binding", "parameter"))
    if not isinstance(error, OperationalError):
        return False
    if error.args and isinstance(error.args[0], int):
        return error.args[0] in _OUTAGE_MYSQL
    return any(word in said for word in _AWAY_SQLITE_TEXTS) or _lost_without_sqlstate(error)


def is_too_slow(error: BaseException) -> bool:
    """Whether the database ended the session because its transaction was idle for too long (25P03)."""
    contexts = [error.__context__] if error.__context__ is not None else []
    return any(_sqlstate(cause) == "25P03" for start in (error, *contexts) for cause in _causes(start))


def is_missing_table(error: BaseException) -> bool:
    """Whether the migrations have not run: by SQLSTATE on PostgreSQL, by the text elsewhere."""
    return "42P01" in map(_sqlstate, _causes(error)) or "no such table: jetbridge_" in str(error)


def _lost_without_sqlstate(error: BaseException) -> bool:
    """psycopg reports a refused or broken connection as OperationalError with no SQLSTATE."""
    return any(type(cause).__module__.startswith("psycopg") for cause in _causes(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it: its cause, or else what was being handled when it was raised."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()  # `raise error from error` makes a ring
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _sqlstate(error: BaseException) -> str:
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else ""

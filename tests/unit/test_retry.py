"""What a failure means, as a table."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading

import pytest
from django.db import DataError, IntegrityError, InterfaceError, OperationalError, ProgrammingError

import jetbridge
from jetbridge import retry
from jetbridge.errors import HandlerLeftRollback, MalformedMessage
from jetbridge.retry import Again, GiveUp, RetryPolicy

POLICY = RetryPolicy(max_attempts=3, backoff=(2.0, 10.0), permanent=(KeyError,), transient=(ConnectionError,))


def decide(error: BaseException, attempt: int = 1, policy: RetryPolicy = POLICY) -> Again | GiveUp:
    return retry.decide(error, attempt, policy, random.Random(1))


def with_sqlstate(cls: type[Exception], state: str) -> Exception:
    """A Django error as psycopg's wrapper makes it: the SQLSTATE is at its cause."""
    cause = type("Cause", (Exception,), {"sqlstate": state})("x")
    error = cls("x")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (jetbridge.Reject("no"), "rejected"),
        (KeyError("x"), "unrecoverable"),
        (MalformedMessage("x"), "malformed_json"),
    ],
)
def test_what_is_given_up_at_once(error, reason):
    """At the first attempt, with the reason on the wire."""
    assert decide(error) == GiveUp(reason=reason)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        jetbridge.Retry(),
        HandlerLeftRollback("x"),
        SystemExit(1),
        asyncio.CancelledError(),
        AssertionError(),
        RecursionError(),
    ],
)
def test_an_ordinary_error_spends_attempts_and_ends(error):
    """Attempt 3 of 3 is the last."""
    for attempt in (1, 2):
        again = decide(error, attempt)
        assert isinstance(again, Again)
        assert again.spends
    assert decide(error, 3) == GiveUp(reason="max_deliver_exceeded")
    assert decide(error, 4) == GiveUp(reason="max_deliver_exceeded")


def test_a_snooze_never_ends_and_spends_nothing():
    """Also at the last attempt."""
    assert decide(jetbridge.Snooze(3600), 99) == Again(delay_s=3600, spends=False)
    assert decide(jetbridge.Snooze(0)) == Again(delay_s=0, spends=False)


def test_a_retry_may_name_its_delay():
    """Exactly that, without jitter; without one it is the back-off."""
    assert decide(jetbridge.Retry(delay=30)) == Again(delay_s=30, spends=True)
    assert decide(jetbridge.Retry(delay=0)) == Again(delay_s=0, spends=True)
    plain = decide(jetbridge.Retry("why"))
    assert isinstance(plain, Again)
    assert 1.0 <= plain.delay_s <= 2.0


@pytest.mark.parametrize(("attempt", "full"), [(1, 2.0), (2, 10.0)])
def test_the_back_off_has_jitter_and_its_last_value_repeats(attempt, full):
    """Half fixed, half random: retries of a storm spread."""
    policy = RetryPolicy(max_attempts=100, backoff=(2.0, 10.0))
    rng = random.Random(5)
    delays = [policy.delay_s(attempt, rng) for _ in range(200)]

    assert all(full / 2 <= delay <= full for delay in delays)
    assert max(delays) - min(delays) > full / 4
    assert 5.0 <= policy.delay_s(50, rng) <= 10.0


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        InterfaceError("connection already closed"),
        OperationalError("database is locked"),
        OperationalError("disk I/O error"),
        with_sqlstate(OperationalError, "57P01"),
        with_sqlstate(OperationalError, "08006"),
        with_sqlstate(OperationalError, "40001"),
        with_sqlstate(OperationalError, "40P01"),
        with_sqlstate(OperationalError, "55P03"),
        with_sqlstate(OperationalError, "53300"),
        with_sqlstate(ProgrammingError, "25006"),
        OperationalError(2006, "MySQL server has gone away"),
    ],
)
def test_outages_and_transient_classes_spend_nothing(error):
    """P5: also at the last attempt, and with a pause."""
    again = decide(error, 3)

    assert isinstance(again, Again)
    assert not again.spends
    assert again.delay_s > 0


@pytest.mark.parametrize(
    "error",
    [
        IntegrityError("x"),
        DataError("x"),
        ProgrammingError("x"),
        OperationalError("no such table: x"),
        with_sqlstate(IntegrityError, "23505"),
        with_sqlstate(OperationalError, "57014"),
        with_sqlstate(ProgrammingError, "42P01"),
        OperationalError(1054, "Unknown column"),
        sqlite3.OperationalError("not wrapped by Django"),
    ],
)
def test_database_errors_of_the_handlers_own_making_spend_attempts(error):
    """A missing table or a broken rule is no outage: it must not loop for ever."""
    assert decide(error, 3) == GiveUp(reason="max_deliver_exceeded")


def from_sqlite(name: str, text: str = "x") -> Exception:
    """A Django error as its SQLite backend makes it: the code is at its cause."""
    cause = sqlite3.OperationalError(text)
    cause.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{name}")
    error = OperationalError(text)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("name", ["BUSY", "LOCKED", "READONLY", "IOERR", "FULL", "CANTOPEN", "BUSY_SNAPSHOT"])
def test_sqlites_codes_of_an_outage(name):
    """Extended codes, too, and whatever the text says."""
    assert retry.is_outage(from_sqlite(name))


def test_a_word_in_the_name_of_a_table_is_no_outage():
    """Red if the text decides where there is a code: a missing column ``readonly`` was waited for, for ever."""
    assert not retry.is_outage(from_sqlite("ERROR", "no such table: locked_accounts"))
    assert not retry.is_outage(from_sqlite("ERROR", "no such column: readonly"))


@pytest.mark.parametrize(
    "text", ["the cursor is closed", "Error binding parameter 0 - probably unsupported type"]
)
def test_a_misused_driver_is_the_handlers_fault(text):
    """The class is that of a lost connection; red if it alone decides."""
    assert not retry.is_outage(InterfaceError(text))
    assert retry.is_outage(InterfaceError("connection already closed"))


def wrapped(error: Exception, *, explicit: bool) -> Exception:
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("could not") from (cause if explicit else cause.__context__)
    except RuntimeError as outer:
        if not explicit:
            outer.__suppress_context__ = False
        return outer


@pytest.mark.parametrize("explicit", [True, False])
def test_an_outage_under_an_error_of_the_handlers_own_is_one(explicit):
    """Red if only the outermost error is asked: a full disk would use up the attempts."""
    for state in ("53100", "25006", "57P01", "08006"):
        assert retry.is_outage(wrapped(with_sqlstate(OperationalError, state), explicit=explicit))
    assert retry.is_outage(wrapped(from_sqlite("FULL"), explicit=explicit))


def test_what_a_handler_makes_of_contention_is_its_own_word():
    """``except OperationalError: raise OutOfStock``: it has asked for the lock and knows what a refusal means."""
    assert not retry.is_outage(wrapped(with_sqlstate(OperationalError, "55P03"), explicit=True))
    assert not retry.is_outage(wrapped(ValueError("x"), explicit=True))


def test_errors_that_lead_to_one_another_are_looked_at_once():
    """A chain may be a ring."""
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert not retry.is_outage(first)


@pytest.mark.parametrize("cls", [IntegrityError, OperationalError, ValueError])
def test_an_error_that_was_raised_from_itself_is_judged(cls):
    """
    ``raise error from error`` is a slip that Python allows. Red if the chain of its causes is walked to the end:
    there is none, and the thread, its event and its key are gone for good.
    """
    error = cls("x")
    error.__cause__ = error
    said: list[object] = []

    def judge() -> None:
        said.extend([decide(error), retry.is_too_slow(error), retry.is_missing_table(error)])

    thread = threading.Thread(target=judge, daemon=True)
    thread.start()
    thread.join(5)

    assert said == [decide(ValueError("x")), False, False]


@pytest.mark.parametrize("state", ["40001", "40P01", "55P03"])
def test_contention_is_an_outage_of_nobody(state):
    """Nothing is spent for it, and no other event waits for its end."""
    error = with_sqlstate(OperationalError, state)
    assert retry.is_outage(error)
    assert not retry.is_away(error)


def test_an_outage_is_an_outage_even_if_its_class_is_called_permanent():
    """``permanent=(Exception,)`` on a handler must not dead-letter what a restart of the database breaks."""
    policy = RetryPolicy(max_attempts=3, backoff=(1.0,), permanent=(Exception,))
    again = decide(with_sqlstate(OperationalError, "57P01"), 1, policy)

    assert isinstance(again, Again)
    assert not again.spends


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), "5", True])
def test_a_verdict_with_an_impossible_delay_is_refused_where_it_is_made(delay):
    """With the value."""
    for verdict in (jetbridge.Retry, jetbridge.Snooze):
        with pytest.raises(ValueError, match="delay must be a timedelta or a number of seconds"):
            verdict(delay=delay)


def test_verdicts_take_their_reason():
    """``Retry(delay=30)``, ``Snooze(delay=3600)``, ``Reject("why")``."""
    assert jetbridge.Retry(delay=30).delay == 30
    assert jetbridge.Snooze(delay=3600).delay == 3600
    assert str(jetbridge.Reject("why")) == "why"
    for verdict in (jetbridge.Retry(), jetbridge.Snooze(1), jetbridge.Reject()):
        assert str(verdict)
        assert isinstance(verdict, jetbridge.JetbridgeError)

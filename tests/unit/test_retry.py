"""What a failure means, as a table."""

from __future__ import annotations

import asyncio
import random
import sqlite3

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

"""Starts on record: what is counted when a process dies, and what is not."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection, connections, transaction

import jetbridge
from jetbridge.conf import get_settings
from jetbridge.consumer.execute import Job, Settled, Wait, execute
from jetbridge.inbox import store, unit_of_work
from jetbridge.inbox.unit_of_work import Crashed, Duplicate, Failed, NotAlone, NotYet, Processed
from jetbridge.models import DeadLetter, Inbox, InboxState
from testproject.orders.models import Order
from tests.db.work import message, work_for
from tests.worlds import outbox

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("shop", "handlers")]


class Died(BaseException):
    """Stands for the end of the process: the row is left as a dead process leaves it."""


def row() -> tuple[str, int, int, str]:
    one = Inbox.objects.get()
    return one.state, one.attempts, one.starts, one.claimed_by


def record(owner: str) -> None:
    """A start and nothing after it."""
    with transaction.atomic():
        entry = store.lock(message(), "t.handler", using="default")
        store.record_start(message(), "t.handler", entry, owner=owner, using="default")


def attempt(function: Any, *, owner: str = "me", **changes: Any) -> unit_of_work.Result:
    """One attempt of a suspect."""
    work, settings = work_for(function)
    return unit_of_work.attempt(replace(work, owner=owner, **{"suspect": True, **changes}), settings)


def run(function: Any, *, owner: str = "me", **changes: Any) -> object:
    """One attempt of a suspect with everything that follows from it."""
    work, settings = work_for(function)
    given = {"suspect": True, "redriven": False, **changes}
    job = Job(received=message(), handler=work.handler, handler_name="t.handler", using="default", **given)
    return execute(job, settings, owner=owner)


def effect(event: jetbridge.Delivery) -> None:
    Order.objects.create(number=str(event.event_id), total=1)


def seen_outside(facts: list[object]) -> None:
    """What another session reads: only what is committed."""

    def read() -> None:
        try:
            facts.append(row())
        finally:
            connections.close_all()

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(10)


def test_the_start_of_a_suspect_is_committed_before_its_handler():
    """Red if it is recorded in the handler's transaction: that dies with the process."""
    facts: list[object] = []

    assert attempt(lambda event: seen_outside(facts)) == Processed(attempt=1)

    assert facts == [("running", 0, 1, "me")]
    assert row() == ("processed", 1, 1, "")


def test_a_first_delivery_records_nothing():
    """It would cost every event a second commit."""
    seen: list[int] = []
    assert attempt(lambda event: seen.append(Inbox.objects.count()), suspect=False) == Processed(attempt=1)
    assert len(seen) == 1
    assert row() == ("processed", 1, 1, "")


def test_a_start_of_another_owner_is_counted_and_one_of_our_own_is_not():
    """The other's process is gone, or it would hold the lock on the row; ours is here."""
    record("first")
    assert row() == ("running", 0, 1, "first")
    record("first")
    assert row() == ("running", 0, 1, "first")
    record("second")
    assert row() == ("running", 0, 2, "second")
    assert attempt(effect) == Processed(attempt=1)
    assert row() == ("processed", 1, 3, "")


@pytest.mark.parametrize("suspect", [True, False])
def test_after_an_unfinished_start_only_alone(suspect):
    """Also where the broker calls it a first delivery: the row knows better. Nothing is recorded meanwhile."""
    record("dead")
    assert attempt(effect, suspect=suspect, alone=False) == NotAlone()
    assert row() == ("running", 0, 1, "dead")
    assert Order.objects.count() == 0

    assert attempt(effect, suspect=suspect) == Processed(attempt=1)


def test_alone_until_it_is_settled():
    """A counted failure does not take the blame away."""

    def handler(event: jetbridge.Delivery) -> None:
        raise jetbridge.Retry(delay=0)

    record("dead")
    run(handler)
    assert row() == ("retrying", 1, 2, "")
    assert attempt(effect, suspect=False, alone=False) == NotAlone()
    assert run(effect) == Settled(how="handled")
    assert row() == ("processed", 2, 3, "")


def test_a_suspect_without_blame_runs_beside_others():
    """A redelivery after an orderly stop must not cost the concurrency."""
    assert attempt(effect, alone=False) == Processed(attempt=1)


def test_with_one_start_allowed_every_suspect_runs_alone(shop):
    """Else a neighbour's death would be its own. Red if only blamed ones run alone."""
    shop.JETBRIDGE = {**shop.JETBRIDGE, "MAX_STARTS": 1}
    assert attempt(effect, alone=False) == NotAlone()
    assert Inbox.objects.count() == 0


def test_after_max_starts_it_is_a_dead_letter_and_does_not_run():
    """Reason, text, and the numbers of row and dead letter."""
    for owner in ("1", "2", "3"):
        record(owner)
    assert attempt(effect) == Crashed(attempts=0, deaths=3)

    assert run(effect) == Settled(how="dead")

    assert row() == ("dead", 0, 3, "")
    letter = DeadLetter.objects.get()
    assert (letter.reason, letter.error_class, letter.attempts, letter.starts) == (
        "crashed",
        "ProcessDied",
        0,
        3,
    )
    assert letter.error.startswith("The process died 3 times while handler 't.handler' handled this event")
    assert outbox()[0].headers["x-deliveries"] == "3"
    assert Order.objects.count() == 0
    assert run(effect) == Settled(how="duplicate")


def test_failures_and_deaths_are_counted_apart():
    """Two deaths and two failures are neither three deaths nor three failures."""

    def handler(event: jetbridge.Delivery) -> None:
        raise ValueError

    record("1")
    assert isinstance(run(handler), Wait)
    assert row() == ("retrying", 1, 2, "")
    Inbox.objects.update(next_attempt_at=None)
    record("2")
    assert isinstance(run(handler), Wait)
    assert row() == ("retrying", 2, 4, "")
    Inbox.objects.update(next_attempt_at=None)
    record("3")
    assert attempt(handler) == Crashed(attempts=2, deaths=3)


@pytest.mark.parametrize("error", [jetbridge.Snooze(60), OperationalError("database is locked")])
def test_snooze_and_outage_take_the_start_back(error):
    """They spend nothing. Red if the start stays: three snoozes would be a dead letter."""

    def handler(event: jetbridge.Delivery) -> None:
        raise error

    for _ in range(4):
        assert isinstance(run(handler), Wait)
        assert row() == ("retrying", 0, 0, "")
        Inbox.objects.update(next_attempt_at=None)


def test_a_rollback_is_not_excused_by_the_outage_of_an_earlier_event():
    """
    Red if what Django remembers of an earlier transaction counts as the cause: such a handler would be tried for
    ever, and spend nothing.
    """

    def marks_it(event: jetbridge.Delivery) -> None:
        transaction.set_rollback(True)

    with suppress(OperationalError), transaction.atomic(), transaction.mark_for_rollback_on_error("default"):
        raise OperationalError("database is locked")

    assert isinstance(run(marks_it), Wait)
    assert row() == ("retrying", 1, 1, "")


def test_a_transient_error_takes_the_start_back():
    def handler(event: jetbridge.Delivery) -> None:
        raise ValueError

    work, settings = work_for(handler, transient=(ValueError,))
    job = Job(
        received=message(), handler=work.handler, handler_name="t.handler", using="default", suspect=True
    )
    assert isinstance(execute(job, settings, owner="me"), Wait)
    assert row() == ("retrying", 0, 0, "")


@pytest.mark.parametrize("error", [jetbridge.Snooze(3_600), ValueError("not yet")])
def test_a_handler_that_closed_its_session_waits_as_long_as_it_asked_to(error):
    """
    A long handler without a transaction does well to close it. Red if no session is taken for no database: an
    outage, tried again each second.
    """

    def handler(event: jetbridge.Delivery) -> None:
        connection.close()
        raise error

    work, settings = work_for(handler, atomic=False, transient=(ValueError,), backoff=[3_600])
    job = Job(received=message(), handler=work.handler, handler_name="t.handler", using="default")
    waits = execute(job, settings, owner="me")

    assert isinstance(waits, Wait)
    assert waits.delay_s >= 1_800
    assert row() == ("retrying", 0, 0, "")


def test_a_start_of_our_own_that_could_not_be_taken_back_goes_on_with_any_copy():
    """Red if a first delivery runs beside that record: its failure would never be counted."""

    def handler(event: jetbridge.Delivery) -> None:
        raise ValueError

    record("me")
    run(handler, suspect=False)
    assert row() == ("retrying", 1, 1, "")


def test_a_rejected_suspect_counts_its_one_start():
    def handler(event: jetbridge.Delivery) -> None:
        raise jetbridge.Reject("no")

    assert run(handler) == Settled(how="dead")
    assert row() == ("dead", 1, 1, "")
    assert DeadLetter.objects.get().starts == 1


def test_a_retry_keeps_its_time():
    """Recording a start must not shorten the back-off, and an early look must not be counted."""
    store.record_failure(
        message(), "t.handler", attempt=1, spends=True, delay_s=60, error=ValueError(), using="default"
    )
    assert isinstance(attempt(effect), NotYet)
    assert row() == ("retrying", 1, 1, "")


@pytest.mark.postgres
def test_a_copy_that_lives_is_not_taken_for_dead():
    """Its row is locked: in progress elsewhere. Red if the row is read without waiting for the lock."""
    results: list[unit_of_work.Result] = []

    def elsewhere() -> None:
        try:
            results.append(attempt(effect, owner="second"))
        finally:
            connections.close_all()

    def handler(event: jetbridge.Delivery) -> None:
        other = threading.Thread(target=elsewhere)
        other.start()
        other.join(10)
        effect(event)

    assert attempt(handler, owner="first") == Processed(attempt=1)
    assert isinstance(results[0], Failed)
    assert isinstance(results[0].error, DatabaseError)
    assert not results[0].is_recorded
    assert row() == ("processed", 1, 1, "")
    assert Order.objects.count() == 1


def test_what_is_settled_is_a_duplicate():
    """No start is recorded for it."""
    assert attempt(effect, suspect=False) == Processed(attempt=1)
    assert attempt(effect) == Duplicate()
    assert row() == ("processed", 1, 1, "")


def test_a_redriven_event_keeps_off_the_copies_of_the_broker():
    """While its stored message runs, and when its start was taken back. Red if "running" forgets the redrive."""
    for owner in ("1", "2", "3"):
        record(owner)
    assert run(effect) == Settled(how="dead")
    assert store.reopen("t.handler", "billing", "e-1", using="default")
    assert row() == ("deferred", 0, 0, "")

    record("me")
    assert row() == ("running", 0, 1, "me")
    assert attempt(effect) == Duplicate()
    assert store.take_back(message(), "t.handler", owner="me", using="default")
    assert row() == ("deferred", 0, 0, "")
    assert attempt(effect) == Duplicate()
    assert Order.objects.count() == 0

    assert run(effect, redriven=True) == Settled(how="handled")
    assert row() == ("processed", 1, 1, "")


def test_only_the_owner_takes_back():
    record("first")
    assert not store.take_back(message(), "t.handler", owner="second", using="default")
    assert store.give_back("second", using="default") == 0
    assert row() == ("running", 0, 1, "first")
    assert store.give_back("first", using="default") == 0
    assert row() == ("retrying", 0, 0, "")


@pytest.mark.postgres
def test_giving_back_tells_what_is_still_locked():
    """It does not wait for a handler that runs."""
    left: list[int] = []

    def elsewhere() -> None:
        try:
            left.append(store.give_back("me", using="default"))
        finally:
            connections.close_all()

    def handler(event: jetbridge.Delivery) -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(10)

    assert attempt(handler) == Processed(attempt=1)
    assert left == [1]


def test_a_failure_of_a_start_that_another_has_taken_over_is_not_recorded():
    """The other's word counts."""
    record("first")
    record("second")
    assert not store.record_failure(
        message(),
        "t.handler",
        attempt=1,
        spends=True,
        delay_s=0,
        error=ValueError(),
        started_by="first",
        using="default",
    )
    assert row() == ("running", 0, 2, "second")
    assert InboxState.RUNNING not in store.SETTLED


def test_without_a_transaction_the_start_is_recorded_as_well(shop):
    """``atomic=False``: the handler has its row, before and after."""
    facts: list[object] = []
    work, settings = work_for(lambda event: facts.append(row()), atomic=False)
    assert get_settings() is settings
    result = unit_of_work.attempt(replace(work, owner="me", suspect=True), settings)
    assert result == Processed(attempt=1)
    assert facts == [("running", 0, 1, "me")]
    assert row() == ("processed", 1, 1, "")
    assert connection.in_atomic_block is False

"""
A copy that comes back late, from a stop or behind a dead line, finds its event with another owner: it neither
doubles the effect nor writes its own verdict over the other's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
import pytest
from django.db import connection, connections, transaction

import jetbridge
from jetbridge.conf import get_settings
from jetbridge.consumer.execute import ABANDONED, Job, Settled, Wait, execute
from jetbridge.dead_letters import store as dead_letters
from jetbridge.inbox import store
from jetbridge.inbox.rows import Overtaken, Seen
from jetbridge.models import DeadLetter, Inbox
from testproject.orders.models import Order
from tests.db.work import message, work_for
from tests.waiting import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("shop", "handlers")]
T = TypeVar("T")


def run(
    function: Any, *, owner: str = "me", is_ours: bool = True, suspect: bool = False, **options: Any
) -> object:
    work, settings = work_for(function, **{"max_attempts": 1, **options})
    job = Job(
        received=message(),
        handler=work.handler,
        handler_name="t.handler",
        using="default",
        suspect=suspect,
    )
    return execute(job, settings, owner=owner, is_ours=lambda: is_ours)


def row() -> tuple[str, int, int, str]:
    one = Inbox.objects.get()
    return one.state, one.attempts, one.starts, one.claimed_by


def elsewhere(job: Callable[[], T]) -> T:
    """In another thread, with a session of its own."""
    found: list[T] = []

    def work() -> None:
        try:
            found.append(job())
        finally:
            connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    return found[0]


def fail(event: object) -> None:
    raise ValueError("no")


@pytest.mark.parametrize("suspect", [False, True])
def test_without_the_lease_a_failure_is_nobodys(suspect):
    """
    Story 40: the lease was stolen while the handler ran. No dead letter, no attempt, no start. Red if the failure
    is recorded without a look at the lease.
    """
    assert run(fail, is_ours=False, suspect=suspect) == ABANDONED
    assert DeadLetter.objects.count() == 0
    left = [(one.state, one.attempts, one.starts, one.claimed_by) for one in Inbox.objects.all()]
    assert left == ([("retrying", 0, 0, "")] if suspect else [])

    assert run(lambda event: None) == Settled(how="handled")


def test_without_the_lease_an_effect_stands():
    """It was committed while the row was locked: the new owner finds it done."""

    def effect(event: object) -> None:
        Order.objects.create(number="1", total=1)

    assert run(effect, is_ours=False) == Settled(how="handled")
    assert run(effect) == Settled(how="duplicate")
    assert Order.objects.count() == 1


@pytest.mark.postgres
def test_a_copy_that_idled_for_too_long_does_not_give_up_what_another_has_begun():
    """
    The database ends its transaction; meanwhile the next owner has failed once and waits for its second attempt.
    Red if the dead letter is written over any row that is not settled: attempt 1 of 1, of a handler deployed
    with more by now, ended an event that was being retried.
    """
    others: list[object] = []

    def idles(event: jetbridge.Delivery) -> None:
        pid = _backend_pid()
        _wait_for_end_of(pid)
        others.append(elsewhere(_other_copy_fails))
        Order.objects.count()  # raises: the session is gone

    assert isinstance(run(idles, max_attempts=1, timeout=0.2), Wait)
    assert others == [True]
    assert DeadLetter.objects.count() == 0
    assert row() == ("retrying", 1, 1, "")


def _backend_pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def _wait_for_end_of(pid: int) -> None:
    """The handler asks nothing of its own session meanwhile."""
    settings = connection.settings_dict
    address = {
        "host": settings["HOST"],
        "port": settings["PORT"],
        "user": "postgres",
        "dbname": settings["NAME"],
    }
    with psycopg.connect(**address, autocommit=True) as other:
        gone = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
        eventually(lambda: not other.execute(gone, [pid]).fetchall(), 20, what="its transaction is ended")


def _other_copy_fails() -> bool:
    return store.record_failure(
        message(), "t.handler", attempt=1, spends=True, delay_s=0.0, error=ValueError(), using="default"
    )


def bury(seen: Seen | None, *, attempt: int = 1, is_started: bool = False) -> int | None:
    return dead_letters.bury(
        message(),
        "t.handler",
        ValueError("no"),
        reason="rejected",
        attempt=attempt,
        is_started=is_started,
        seen=seen,
        settings=get_settings(),
        using="default",
    )


def recorded(owner: str) -> None:
    entry = store.lock(message(), "t.handler", using="default")
    store.record_start(message(), "t.handler", entry, owner=owner, using="default")


@pytest.mark.parametrize(
    ("seen", "is_written"),
    [
        (Seen(attempts=0, generation=0), False),
        (Seen(attempts=1, generation=1), False),
        (Seen(attempts=1, generation=0, started_by="me"), False),
        (Seen(attempts=1, generation=0), True),
        (None, True),
    ],
)
def test_a_dead_letter_is_written_over_what_was_seen_and_nothing_else(seen, is_written):
    """After one failure of another copy. ``None``: the attempt could not look, and then it must not loop."""
    _other_copy_fails()

    if is_written:
        assert bury(seen, attempt=2) is not None
    else:
        with pytest.raises(Overtaken):
            bury(seen)
        assert row() == ("retrying", 1, 1, "")


def test_a_start_that_another_has_recorded_is_not_given_up():
    """It runs there; the row is locked only a moment later."""
    with transaction.atomic():
        recorded("another")

    for seen in (Seen(attempts=0, generation=0), Seen(attempts=0, generation=0, started_by="me")):
        with pytest.raises(Overtaken):
            bury(seen)
    assert bury(Seen(attempts=0, generation=0, started_by="another"), is_started=True) is not None


def test_a_failure_of_before_a_redrive_is_not_recorded_after_it():
    """The numbers of attempts are the same again; red without the generation."""
    assert bury(None) is not None
    assert store.reopen("t.handler", "billing", "e-1", using="default")

    assert not store.record_failure(
        message(), "t.handler", attempt=1, spends=True, delay_s=9, error=ValueError(), using="default"
    )
    assert row() == ("deferred", 0, 0, "")

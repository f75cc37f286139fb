"""One attempt of one handler: claim, effect, publishes and inbox row are one commit, or nothing."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, connections, transaction

import jetbridge
from jetbridge.inbox import store, unit_of_work
from jetbridge.inbox.unit_of_work import Duplicate, Failed, NotYet, Processed
from jetbridge.models import Inbox, Outbox
from testproject.orders.models import Order
from tests.db.work import message, work_for
from tests.waiting import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("shop", "handlers")]


def effect(event: jetbridge.Delivery) -> None:
    """A business write and an event."""
    Order.objects.create(number=str(event.event_id), total=1)
    jetbridge.publish("order.placed", {"id": 1})


def test_effect_event_and_inbox_row_are_committed_together():
    """The row is written in its final state."""
    assert unit_of_work.attempt(*work_for(effect)) == Processed(attempt=1)

    row = Inbox.objects.get()
    assert (row.handler, row.source, row.event_id) == ("t.handler", "billing", "e-1")
    assert (row.state, row.attempts, row.starts, row.duplicates) == ("processed", 1, 1, 0)
    assert (row.event_type, row.key, row.stream, row.sequence) == (
        "order.placed",
        "order:7",
        "jetbridge-billing",
        1,
    )
    assert row.finished_at is not None
    assert (Order.objects.count(), Outbox.objects.count()) == (1, 1)


def _wrapped() -> Callable[[jetbridge.Delivery], object]:
    async def handle(event: jetbridge.Delivery) -> None:
        await sync_to_async(effect)(event)

    return lambda event: handle(event)  # what many a decorator makes of a coroutine function


class _Callable:
    async def __call__(self, event: jetbridge.Delivery) -> None:
        await sync_to_async(effect)(event)


@pytest.mark.parametrize("function", [_wrapped(), _Callable()], ids=["wrapped", "object"])
def test_a_coroutine_that_nobody_saw_coming_is_run_all_the_same(function):
    """Red if only coroutine functions are awaited: processed and acked, and not a line of it has run."""
    assert unit_of_work.attempt(*work_for(function)) == Processed(attempt=1)

    assert (Order.objects.count(), Outbox.objects.count()) == (1, 1)


def _yields(event: jetbridge.Delivery) -> Iterator[None]:
    effect(event)
    yield


async def _yields_later(event: jetbridge.Delivery) -> AsyncIterator[None]:
    effect(event)
    yield


@pytest.mark.parametrize("function", [_yields, _yields_later])
def test_a_generator_is_a_failure(function):
    """Nothing of it runs when it is called. Red if what a handler returns is not looked at: a lost event."""
    failed = unit_of_work.attempt(*work_for(function))

    assert isinstance(failed, Failed)
    assert "yield" in str(failed.error)
    assert not Inbox.objects.exists()


def test_a_second_copy_does_not_run_and_is_counted():
    """(handler, source, event id) is the identity."""
    unit_of_work.attempt(*work_for(effect))

    assert unit_of_work.attempt(*work_for(effect)) == Duplicate()
    assert unit_of_work.attempt(*work_for(effect)) == Duplicate()
    assert (Order.objects.count(), Inbox.objects.get().duplicates) == (1, 2)


def test_another_handler_and_another_source_are_other_rows():
    """The same event for two handlers, and the same id of two apps."""
    unit_of_work.attempt(*work_for(effect))
    unit_of_work.attempt(*work_for(effect, name="t.other"))
    unit_of_work.attempt(*work_for(effect, received=message(source="depot")))

    assert Order.objects.count() == 3


def test_two_copies_at_once_never_both_commit():
    """P3, story 15: the second waits on the unique key and then finds the first's row."""
    started, go_on = threading.Event(), threading.Event()
    results: list[object] = []

    def slow(event: jetbridge.Delivery) -> None:
        started.set()
        assert go_on.wait(10)
        effect(event)

    first = work_for(slow)

    def run_first() -> None:
        try:
            results.append(unit_of_work.attempt(*first))
        finally:
            connections.close_all()

    thread = threading.Thread(target=run_first)
    thread.start()
    try:
        assert started.wait(10)
        if connection.vendor == "postgresql":
            blocked = unit_of_work.attempt(*work_for(effect))
            assert isinstance(blocked, Failed)  # in progress elsewhere: no attempt is spent for it
            assert isinstance(blocked.error, DatabaseError)
    finally:
        go_on.set()
        thread.join(20)
    assert results == [Processed(attempt=1)]
    assert unit_of_work.attempt(*work_for(effect)) == Duplicate()
    assert Order.objects.count() == 1


def test_the_attempt_counts_from_the_row():
    """A retry has number 2, and the row says so when it succeeds."""
    seen: list[int] = []

    def handler(event: jetbridge.Delivery) -> None:
        seen.append(event.attempt)
        if event.attempt == 1:
            raise ValueError("once")

    failed = unit_of_work.attempt(*work_for(handler))
    assert isinstance(failed, Failed)
    assert failed.attempt == 1
    assert store.record_failure(
        message(), "t.handler", attempt=1, spends=True, delay_s=0.0, error=failed.error, using="default"
    )
    row = Inbox.objects.get()
    assert (row.state, row.attempts, row.error_class, row.error) == ("retrying", 1, "ValueError", "once")

    assert eventually(lambda: unit_of_work.attempt(*work_for(handler))) == Processed(attempt=2)
    row = Inbox.objects.get()
    assert (row.state, row.attempts, row.error, row.next_attempt_at) == ("processed", 2, "", None)
    assert seen == [1, 2]


def test_an_attempt_before_its_time_does_not_run():
    """A redelivery must not shorten the back-off."""
    store.record_failure(
        message(), "t.handler", attempt=1, spends=True, delay_s=60.0, error=ValueError(), using="default"
    )

    result = unit_of_work.attempt(*work_for(effect))

    assert isinstance(result, NotYet)
    assert 50 < result.delay_s <= 60
    assert Order.objects.count() == 0


def test_a_snooze_is_recorded_without_spending():
    """``spends=False`` leaves the number of attempts as it was."""
    store.record_failure(
        message(), "t.handler", attempt=1, spends=False, delay_s=0.0, error=ValueError(), using="default"
    )

    row = Inbox.objects.get()
    assert (row.state, row.attempts) == ("retrying", 0)


def test_a_late_failure_does_not_undo_what_another_copy_did():
    """The other's word counts: its row is left alone."""
    unit_of_work.attempt(*work_for(effect))

    assert not store.record_failure(
        message(), "t.handler", attempt=1, spends=True, delay_s=0.0, error=ValueError(), using="default"
    )
    assert Inbox.objects.get().state == "processed"


@pytest.mark.parametrize(
    "error", [jetbridge.Retry(delay=30), jetbridge.Snooze(3600), jetbridge.Reject("why")]
)
def test_a_verdict_rolls_the_effect_back(error):
    """Whatever the handler decides about the event, what it wrote is gone."""

    def handler(event: jetbridge.Delivery) -> None:
        effect(event)
        raise error

    result = unit_of_work.attempt(*work_for(handler))

    assert isinstance(result, Failed)
    assert result.error is error
    assert (Order.objects.count(), Outbox.objects.count(), Inbox.objects.count()) == (0, 0, 0)


def test_a_transaction_that_is_marked_for_rollback_is_a_failure():
    """A database error caught outside a savepoint: Django's commit would roll back in silence."""

    def handler(event: jetbridge.Delivery) -> None:
        order = Order.objects.create(number="1", total=1)
        with suppress(DatabaseError):
            Order.objects.create(pk=order.pk, number="2", total=1)

    result = unit_of_work.attempt(*work_for(handler))

    assert isinstance(result, Failed)
    assert (Order.objects.count(), Inbox.objects.count()) == (0, 0)


@pytest.mark.parametrize(
    "statement", ["SELECT * FROM no_such_table", "SELECT 1 / 0", "SELECT pg_catalog.nothing()"]
)
def test_a_caught_error_of_a_raw_statement_never_loses_the_event(statement):
    """
    PostgreSQL answers the COMMIT of a broken transaction with ROLLBACK and no error. If the attempt counted
    as processed, the message would be acked and its effect nowhere.
    """

    def handler(event: jetbridge.Delivery) -> None:
        Order.objects.create(number="1", total=1)
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
        except DatabaseError:
            pass

    result = unit_of_work.attempt(*work_for(handler))

    committed = Order.objects.count()
    assert Inbox.objects.count() == committed
    assert isinstance(result, Processed if committed else Failed), result


@pytest.mark.postgres
def test_a_caught_lock_timeout_never_loses_the_event():
    """``select_for_update(nowait=True)`` and ``except DatabaseError``: the ordinary way into that trap."""
    order = Order.objects.create(number="1", total=1)
    locked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                Order.objects.select_for_update().get(pk=order.pk)
                locked.set()
                go_on.wait(10)
        finally:
            connections.close_all()

    def handler(event: jetbridge.Delivery) -> None:
        with suppress(DatabaseError):
            Order.objects.select_for_update(nowait=True).get(pk=order.pk)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert locked.wait(10)
        result = unit_of_work.attempt(*work_for(handler))
    finally:
        go_on.set()
        thread.join(10)

    assert isinstance(result, Failed), "acked, and the inbox row is rolled back"
    assert Inbox.objects.count() == 0


def test_a_savepoint_around_the_failing_part_is_the_cure():
    """What the error text advises works."""

    def handler(event: jetbridge.Delivery) -> None:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT * FROM no_such_table")
        except DatabaseError:
            pass
        effect(event)

    assert unit_of_work.attempt(*work_for(handler)) == Processed(attempt=1)
    assert Order.objects.count() == 1


def test_a_hook_that_raises_after_the_commit_is_no_failure(caplog):
    """The effect stands; running the handler again would double it."""

    def handler(event: jetbridge.Delivery) -> None:
        effect(event)

        def hook() -> None:
            raise ValueError("in the hook")

        transaction.on_commit(hook)

    assert unit_of_work.attempt(*work_for(handler)) == Processed(attempt=1)
    assert (Order.objects.count(), Inbox.objects.get().state) == (1, "processed")
    assert "after the commit" in caplog.text


def test_hooks_of_a_handler_that_failed_do_not_run():
    """``on_commit`` means on commit."""
    ran: list[int] = []

    def handler(event: jetbridge.Delivery) -> None:
        transaction.on_commit(lambda: ran.append(1))
        raise ValueError

    unit_of_work.attempt(*work_for(handler))

    assert ran == []


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_a_handler_on_another_alias_keeps_everything_there(settings):
    """Inbox, outbox and transaction of a handler live on its ``using``."""
    settings.JETBRIDGE = {"APP_NAME": "shop", "DESTINATIONS": ["billing"], "DATABASES": ["default", "other"]}

    def handler(event: jetbridge.Delivery) -> None:
        assert connections["other"].in_atomic_block
        jetbridge.publish("order.placed", {"id": 1})

    assert unit_of_work.attempt(*work_for(handler, using="other")) == Processed(attempt=1)
    assert (Inbox.objects.count(), Outbox.objects.count()) == (0, 0)
    assert (Inbox.objects.using("other").count(), Outbox.objects.using("other").count()) == (1, 1)


def test_a_handler_without_transaction_runs_outside_one_and_is_remembered():
    """``atomic=False``: at least once; what it wrote before an error stays."""

    def handler(event: jetbridge.Delivery) -> None:
        assert not connection.in_atomic_block
        Order.objects.create(number=str(event.event_id), total=1)
        if event.event_id == "bad":
            raise ValueError

    assert unit_of_work.attempt(*work_for(handler, atomic=False)) == Processed(attempt=1)
    assert unit_of_work.attempt(*work_for(handler, atomic=False)) == Duplicate()
    assert isinstance(unit_of_work.attempt(*work_for(handler, atomic=False, received=message("bad"))), Failed)
    assert sorted(Order.objects.values_list("number", flat=True)) == ["bad", "e-1"]
    assert [row.event_id for row in Inbox.objects.all()] == ["e-1"]


def test_require_atomic_is_satisfied_inside_a_handler(shop):
    """The handler's transaction is a user's transaction."""
    shop.JETBRIDGE = {**shop.JETBRIDGE, "REQUIRE_ATOMIC": True}

    assert unit_of_work.attempt(*work_for(effect)) == Processed(attempt=1)


def test_a_handler_whose_time_is_up_is_told():
    """``timeout=`` turns ``delivery.cancelled`` true."""
    seen: list[bool] = []

    def handler(event: jetbridge.Delivery) -> None:
        seen.append(event.cancelled)
        eventually(lambda: event.cancelled, 5)
        seen.append(event.cancelled)

    unit_of_work.attempt(*work_for(handler, timeout=0.2))

    assert seen == [False, True]

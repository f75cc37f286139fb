"""P2: a rolled-back publish is nowhere, in whatever form the rollback comes."""

from __future__ import annotations

import asyncio

import pytest
from asgiref.sync import sync_to_async
from django.db import IntegrityError, connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

import jetbridge
from jetbridge.inbox import unit_of_work
from jetbridge.inbox.unit_of_work import Failed, Processed
from jetbridge.models import Archive, DeadLetter, Deferred, Inbox, Outbox, Scheduled
from testproject.orders.models import Order
from tests.db.work import work_for

# ruff: noqa: PT012 - the block under test is the whole transaction
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("shop", "handlers")]


class Boom(Exception):
    """What goes wrong."""


def rows_anywhere() -> dict[str, int]:
    """Rows of every table an event could be in, and the business table; empty tables left out."""
    tables = (Outbox, Scheduled, Archive, Inbox, Deferred, DeadLetter, Order)
    return {table.__name__: count for table in tables if (count := table.objects.count())}


def place(number: str = "1") -> None:
    """A business write and its events: now, later and many."""
    Order.objects.create(number=number, total=1)
    jetbridge.publish("order.placed", {"id": number})
    jetbridge.publish("order.reminded", {"id": number}, delay=60)
    jetbridge.publish_many([jetbridge.Event("order.line", {"id": number}) for _ in range(150)])


def test_an_exception_leaves_nothing():
    """The common case: the block raises."""
    with pytest.raises(Boom), transaction.atomic():
        place()
        raise Boom

    assert rows_anywhere() == {}


def test_an_exception_in_a_nested_block_leaves_only_the_outer_part():
    """A savepoint that is rolled back takes its events along and no others."""
    with transaction.atomic():
        jetbridge.publish("order.placed", {"id": 1}, event_id="outer")
        with pytest.raises(Boom), transaction.atomic():
            place()
            raise Boom

    assert rows_anywhere() == {"Outbox": 1}
    assert Outbox.objects.get().event_id == "outer"


def test_the_outer_rollback_takes_the_nested_commit_along():
    """An inner block that ended well was never committed."""
    with pytest.raises(Boom), transaction.atomic():
        with transaction.atomic():
            place()
        raise Boom

    assert rows_anywhere() == {}


def test_a_nested_block_without_savepoint_leaves_nothing():
    """``savepoint=False`` marks the outer block, which rolls back at its end without raising."""
    with transaction.atomic():
        place()
        with pytest.raises(Boom), transaction.atomic(savepoint=False):
            place("2")
            raise Boom

    assert rows_anywhere() == {}


def test_a_savepoint_by_hand_leaves_nothing_behind_it():
    """``savepoint_rollback``."""
    with transaction.atomic():
        jetbridge.publish("order.placed", {"id": 1}, event_id="before")
        savepoint = transaction.savepoint()
        place()
        transaction.savepoint_rollback(savepoint)
        jetbridge.publish("order.placed", {"id": 1}, event_id="after")

    assert [row.event_id for row in Outbox.objects.order_by("id")] == ["before", "after"]


def test_set_rollback_leaves_nothing():
    """``set_rollback(True)``: no exception anywhere."""
    with transaction.atomic():
        place()
        transaction.set_rollback(True)

    assert rows_anywhere() == {}


def test_a_database_error_of_the_business_code_leaves_nothing():
    """An IntegrityError that ends the transaction."""
    with pytest.raises(IntegrityError), transaction.atomic():
        place()
        Order.objects.create(pk=Order.objects.get().pk, number="again", total=1)

    assert rows_anywhere() == {}


def test_a_transaction_by_hand_leaves_nothing():
    """``set_autocommit(False)`` and ``rollback()``."""
    transaction.set_autocommit(False)
    try:
        place()
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)

    assert rows_anywhere() == {}


def test_a_lost_connection_leaves_nothing():
    """The session ends before the commit."""
    with pytest.raises(Exception), transaction.atomic():  # noqa: B017 - which error depends on the database
        place()
        connection.close()
        Order.objects.count()

    connection.close()
    assert rows_anywhere() == {}


# --- ATOMIC_REQUESTS -----------------------------------------------------------------------------


def raising(request: HttpRequest) -> HttpResponse:
    place()
    raise Boom


def marking(request: HttpRequest) -> HttpResponse:
    place()
    transaction.set_rollback(True)
    return HttpResponse("fine")


def fine(request: HttpRequest) -> HttpResponse:
    jetbridge.publish("order.placed", {"id": 1})
    return HttpResponse("fine")


urlpatterns = [path("raising/", raising), path("marking/", marking), path("fine/", fine)]


@pytest.fixture
def client(settings):
    """A client of a site with ``ATOMIC_REQUESTS``."""
    settings.ROOT_URLCONF = __name__
    settings.ALLOWED_HOSTS = ["testserver"]
    before = connections.settings["default"]["ATOMIC_REQUESTS"]
    connections.settings["default"]["ATOMIC_REQUESTS"] = True
    yield Client(raise_request_exception=False)
    connections.settings["default"]["ATOMIC_REQUESTS"] = before


@pytest.mark.parametrize(("address", "status"), [("/raising/", 500), ("/marking/", 200)])
def test_a_view_under_atomic_requests_that_rolls_back_leaves_nothing(client, address, status):
    """The request's transaction decides."""
    assert client.get(address).status_code == status

    assert rows_anywhere() == {}


def test_a_view_under_atomic_requests_that_returns_has_published(client):
    """The counterpart, so that the tests above mean something."""
    assert client.get("/fine/").status_code == 200

    assert rows_anywhere() == {"Outbox": 1}


# --- handlers ------------------------------------------------------------------------------------


def test_a_handler_that_raises_leaves_nothing():
    """Its writes, its events and its inbox row go together."""

    def handler(event: jetbridge.Delivery) -> None:
        place()
        raise Boom

    assert isinstance(unit_of_work.attempt(*work_for(handler)), Failed)
    assert rows_anywhere() == {}


def test_an_async_handler_that_raises_leaves_nothing():
    """It runs on the worker's thread, inside the transaction: ``apublish`` joins it there."""

    async def handler(event: jetbridge.Delivery) -> None:
        await sync_to_async(place)()
        await jetbridge.apublish("order.placed", {"id": 1})
        await jetbridge.apublish_many([jetbridge.Event("order.placed", {"id": 1})])
        await Order.objects.acreate(number="2", total=1)
        await asyncio.sleep(0)
        raise Boom

    assert isinstance(unit_of_work.attempt(*work_for(handler)), Failed)
    assert rows_anywhere() == {}


def test_an_async_handler_that_returns_has_published():
    """The counterpart: one commit of effect, events and inbox row."""

    async def handler(event: jetbridge.Delivery) -> None:
        await jetbridge.apublish("order.placed", {"id": 1})
        await Order.objects.acreate(number="2", total=1)

    assert isinstance(unit_of_work.attempt(*work_for(handler)), Processed)
    assert rows_anywhere() == {"Outbox": 1, "Inbox": 1, "Order": 1}
    row = Outbox.objects.get()
    assert (row.causation_id, row.correlation_id) == ("e-1", "e-1")


def test_a_cancelled_async_handler_leaves_nothing():
    """``CancelledError`` is no ``Exception``."""

    async def handler(event: jetbridge.Delivery) -> None:
        await sync_to_async(place)()
        raise asyncio.CancelledError

    assert isinstance(unit_of_work.attempt(*work_for(handler)), Failed)
    assert rows_anywhere() == {}


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_handler_that_exits_leaves_nothing(error):
    """``sys.exit()`` in a handler is a failed attempt."""

    def handler(event: jetbridge.Delivery) -> None:
        place()
        raise error

    assert isinstance(unit_of_work.attempt(*work_for(handler)), Failed)
    assert rows_anywhere() == {}


def test_a_handler_that_marks_its_transaction_leaves_nothing_and_has_failed():
    """Django would roll back without raising; then the ack would stand for nothing."""

    def handler(event: jetbridge.Delivery) -> None:
        place()
        transaction.set_rollback(True)

    result = unit_of_work.attempt(*work_for(handler))

    assert isinstance(result, Failed)
    assert "marked for rollback" in str(result.error)
    assert rows_anywhere() == {}


def test_a_cause_of_one_handler_does_not_leak_into_the_next_publish():
    """Story 48: after a failed handler a publish of the same thread has no cause."""

    def handler(event: jetbridge.Delivery) -> None:
        raise Boom

    unit_of_work.attempt(*work_for(handler))
    jetbridge.publish("order.placed", {"id": 1})

    row = Outbox.objects.get()
    assert (row.causation_id, row.correlation_id) == ("", "")

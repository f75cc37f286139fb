"""``jetbridge.testing`` as a project uses it: in a Django TestCase, and with pytest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.test import TestCase, override_settings

import jetbridge
from jetbridge import Delivery, Event
from jetbridge.models import Archive, DeadLetter, Inbox, Outbox
from jetbridge.testing import NoHandler, assert_published, deliver, published
from testproject.billing.handlers import create_invoice
from testproject.billing.models import Invoice
from testproject.orders.services import place_order
from tests.worlds import no_handlers

ROOT = Path(__file__).resolve().parents[2]
ORDER: dict[str, Any] = {"id": 7, "number": "A-7", "total": "9.90"}


class OrdersTests(TestCase):
    """A user's TestCase: everything here is rolled back at the end of each test."""

    def test_what_was_published(self) -> None:
        order = place_order("A-1", Decimal("9.90"))

        [event] = assert_published("order.placed", to="billing", payload={"id": order.pk, "total": "9.90"})

        assert event.type == "order.placed"
        assert event.payload["number"] == "A-1"
        assert event.key == f"order:{order.pk}"
        assert (event.destination, event.subject) == ("billing", "orders.sync.billing")
        assert event.producer == "orders"

    def test_what_was_rolled_back_is_nowhere(self) -> None:
        with transaction.atomic():
            place_order("A-1", Decimal("9.90"))
            transaction.set_rollback(True)

        assert published() == []
        assert_published("order.>", times=0)


@override_settings(JETBRIDGE={"APP_NAME": "billing", "DESTINATIONS": ["orders"], "SOURCES": ["orders"]})
class BillingTests(TestCase):
    def test_a_handler_runs(self) -> None:
        outcomes = deliver(Event("order.placed", ORDER))

        assert [(one.handler, one.result) for one in outcomes] == [("billing.create_invoice", "handled")]
        assert Invoice.objects.get().total == Decimal("9.90")
        [answer] = published("invoice.created")
        assert answer.payload["order_id"] == 7

    def test_a_handler_that_fails_leaves_nothing(self) -> None:
        with self.assertRaisesMessage(ValueError, "it is marked as failing"):
            deliver(Event("order.placed", {**ORDER, "fails": True}), source="orders")

        assert (Invoice.objects.count(), Inbox.objects.count(), published()) == (0, 0, [])

    def test_what_a_handler_answers_carries_its_cause(self) -> None:
        deliver(Event("order.placed", ORDER, event_id="e-1", trace_id="t-1"), source="orders")

        [answer] = published()
        assert (answer.causation_id, answer.trace_id) == ("e-1", "t-1")

    def test_the_same_event_twice_has_one_effect(self) -> None:
        event = Event("order.placed", ORDER, event_id="e-1")

        results = [deliver(event, source="orders")[0].result for _ in range(2)]

        assert results == ["handled", "duplicate"]
        assert Invoice.objects.count() == 1

    def test_hooks_run_where_the_test_says_so(self) -> None:
        ran: list[str] = []
        with no_handlers():

            @jetbridge.handler("order.placed", name="hooked")
            def hooked(event: Event) -> None:
                transaction.on_commit(lambda: ran.append("hook"))

            with self.captureOnCommitCallbacks(execute=True):
                deliver(Event("order.placed", ORDER), source="orders")

        assert ran == ["hook"]


@pytest.fixture
def handlers() -> Iterator[None]:
    with no_handlers():
        yield


@pytest.mark.django_db
def test_from_one_service_to_the_other() -> None:
    """What one published can be delivered as it is; ``Delivery`` has what a broker would say."""
    place_order("A-1", Decimal("9.90"))
    seen: list[Delivery] = []
    with no_handlers():
        jetbridge.handler("order.*", name="spy")(seen.append)

        [outcome] = deliver(published()[0], source="orders")

    assert outcome.result == "handled"
    assert (seen[0].event_id, seen[0].source, seen[0].attempt) == (published()[0].event_id, "orders", 1)
    assert seen[0].payload["total"] == "9.90"
    assert seen[0].sequence > 0


@pytest.mark.django_db
def test_published_sees_what_is_planned_and_what_is_sent() -> None:
    jetbridge.publish("order.placed", {"id": 1})
    jetbridge.publish("order.reminded", {"id": 1}, delay=3_600)
    row = Outbox.objects.get()
    fields = {
        field.name: getattr(row, field.name)
        for field in Archive._meta.concrete_fields
        if hasattr(row, field.name)
    }
    Archive.objects.create(**fields, stream="s", sequence=1, duplicate=False)
    row.delete()

    assert [event.type for event in published()] == ["order.placed", "order.reminded"]
    assert [event.type for event in published("order.reminded")] == ["order.reminded"]
    assert published("order.reminded")[0].due_at is not None
    assert published(to="nobody") == []
    assert [event.type for event in published("order.>", to="billing")] == ["order.placed", "order.reminded"]


@pytest.mark.django_db
def test_dead_letter_notices_are_no_events_of_the_project(handlers: None) -> None:
    @jetbridge.handler("order.placed", name="picky")
    def picky(event: Event) -> None:
        raise jetbridge.Reject("no")

    [outcome] = deliver(Event("order.placed", ORDER), source="orders", raises=False)

    assert outcome.result == "dead"
    assert DeadLetter.objects.get().error == "no"
    assert published() == []


@pytest.mark.django_db
def test_failures_can_be_recorded_as_the_consumer_does(handlers: None) -> None:
    @jetbridge.handler("order.placed", name="flaky", max_attempts=2, backoff=[0])
    def flaky(event: Event) -> None:
        raise OSError("the printer is on fire")

    event = Event("order.placed", ORDER, event_id="e-1")
    results = [deliver(event, source="orders", raises=False)[0].result for _ in range(3)]

    assert results == ["retry", "dead", "duplicate"]
    assert Inbox.objects.get().attempts == 2


@pytest.mark.django_db
@pytest.mark.parametrize("verdict", [jetbridge.Retry(), jetbridge.Snooze(5), jetbridge.Reject("no")])
def test_a_verdict_is_what_a_test_can_ask_for(verdict: Exception, handlers: None) -> None:
    @jetbridge.handler("order.placed", name="judge")
    def judge(event: Event) -> None:
        raise verdict

    with pytest.raises(type(verdict)):
        deliver(Event("order.placed", ORDER), source="orders")


@pytest.mark.django_db
def test_one_handler_of_several(handlers: None) -> None:
    ran: list[str] = []

    @jetbridge.handler("order.placed", name="one")
    def one(event: Event) -> None:
        ran.append("one")

    @jetbridge.handler("order.placed", name="two")
    def two(event: Event) -> None:
        ran.append("two")

    deliver(Event("order.placed", ORDER), source="orders", handler=two)
    deliver(Event("order.placed", ORDER), source="orders", handler="one")
    deliver(Event("order.placed", ORDER), source="orders")

    assert ran == ["two", "one", "one", "two"]


@pytest.mark.django_db
def test_an_async_handler_runs_in_the_transaction(handlers: None) -> None:
    @jetbridge.handler("order.placed", name="async")
    async def handle(event: Event) -> None:
        await Invoice.objects.acreate(order_id=1, event_id="x", total=1)
        await jetbridge.apublish("invoice.created", {"id": 1}, to="billing")
        raise ValueError("after all")

    with pytest.raises(ValueError, match="after all"):
        deliver(Event("order.placed", ORDER), source="orders")

    assert (Invoice.objects.count(), published()) == (0, [])


@pytest.mark.django_db
def test_an_event_for_nobody_is_an_error_that_names_the_handlers() -> None:
    with pytest.raises(NoHandler) as raised:
        deliver(Event("order.lost", ORDER), source="orders")
    assert "No handler wants 'order.lost' from 'orders'" in str(raised.value)
    assert "billing.create_invoice: order.placed from orders" in str(raised.value)

    with pytest.raises(NoHandler, match=r"does not want 'invoice\.created'"):
        deliver(Event("invoice.created", {"order_id": 1}), handler=create_invoice)


@pytest.mark.django_db
def test_the_source_may_be_left_out_where_there_is_one(settings: Any, handlers: None) -> None:
    seen: list[Delivery] = []
    jetbridge.handler("x.happened", name="spy")(seen.append)

    deliver(Event("x.happened", {}))
    settings.JETBRIDGE = {**settings.JETBRIDGE, "SOURCES": ["billing", "mail"]}
    with pytest.raises(ValueError, match="'billing', 'mail'"):
        deliver(Event("x.happened", {}))
    deliver(seen[0], handler="spy")

    assert [one.source for one in seen] == ["billing"], "the second time it is a duplicate"


@pytest.mark.django_db
def test_what_the_wire_cannot_carry_shows_in_the_test(handlers: None) -> None:
    jetbridge.handler("x.happened", name="spy")(lambda event: None)

    with pytest.raises(jetbridge.InvalidEvent, match="JSON"):
        deliver(Event("x.happened", {"when": object()}))


@pytest.mark.django_db
def test_a_failed_assertion_shows_what_there_was() -> None:
    jetbridge.publish("order.placed", {"id": 1, "total": Decimal("9.90")})

    assert_published("order.placed", payload={"total": Decimal("9.90")}, key="order:1")
    with pytest.raises(AssertionError) as raised:
        assert_published("order.placed", payload={"id": 2}, to="billing")

    assert "Expected 1 of 'order.placed' with to='billing', payload={'id': 2}, found 0" in str(raised.value)
    assert "order.placed to billing, key 'order:1'" in str(raised.value)


@pytest.mark.django_db(databases=["default", "other"])
def test_another_database(settings: Any) -> None:
    settings.JETBRIDGE = {**settings.JETBRIDGE, "DATABASES": ["default", "other"]}
    jetbridge.publish("order.placed", {"id": 1}, using="other")

    assert published() == []
    assert len(published(using="other")) == 1


def test_it_needs_neither_pytest_nor_nats() -> None:
    program = (
        "import sys, django; django.setup(); import jetbridge.testing;"
        "print([m for m in sys.modules if m.split('.')[0] in ('nats', 'pytest', '_pytest')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"DJANGO_SETTINGS_MODULE": "testproject.settings.tests"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr

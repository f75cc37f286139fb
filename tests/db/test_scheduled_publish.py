"""``delay`` and ``at``: the event waits in the scheduled table and moves to the outbox when it is due."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from django.db import transaction

import jetbridge
from jetbridge.models import Outbox, Scheduled
from jetbridge.outbox import store
from tests.waiting import eventually
from tests.worlds import in_coroutine, outbox

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("shop")]


def promote(limit: int = 100) -> int:
    return store.promote_due(limit=limit, using="default")


@pytest.mark.parametrize("delay", [60, 60.0, timedelta(minutes=1)])
def test_a_delay_counts_from_now(delay):
    """Seconds or a timedelta."""
    before = datetime.now(UTC)
    event_id = jetbridge.publish("a.b", {"id": 1}, delay=delay)

    (row,) = Scheduled.objects.all()
    assert (row.event_id, row.message_id, row.subject) == (
        event_id,
        f"{event_id}:billing",
        "shop.sync.billing",
    )
    assert timedelta(seconds=59) < row.due_at - before < timedelta(seconds=70)
    assert row.name is None
    assert Outbox.objects.count() == 0


def test_an_instant_may_be_given_in_any_zone():
    """``at`` is an aware datetime."""
    at = datetime(2100, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))

    jetbridge.publish("a.b", {}, at=at)

    assert Scheduled.objects.get().due_at == at


@pytest.mark.parametrize(
    "when", [{"delay": 0}, {"delay": timedelta(0)}, {"at": datetime(2020, 1, 1, tzinfo=UTC)}]
)
def test_what_is_due_already_goes_at_once(when):
    """No detour through the scheduled table."""
    jetbridge.publish("a.b", {}, **when)

    assert (Outbox.objects.count(), Scheduled.objects.count()) == (1, 0)


def test_a_rollback_takes_scheduled_events_along():
    """P2 holds for them as well."""
    with transaction.atomic():
        jetbridge.publish("a.b", {}, delay=60)
        transaction.set_rollback(True)

    assert Scheduled.objects.count() == 0


def test_future_rows_stay():
    """Nothing moves before its time."""
    jetbridge.publish("a.b", {}, delay=3_600)

    assert promote() == 0
    assert not store.has_work(using="default")
    assert (Outbox.objects.count(), Scheduled.objects.count()) == (0, 1)


def test_due_rows_move_in_the_order_they_are_due_with_everything_they_have():
    """They get their outbox id, and so their place in the order of their key, when they are due."""
    base = datetime.now(UTC) + timedelta(milliseconds=300)
    for name, wait_ms in (("late", 40), ("early", 0), ("middle", 20)):
        jetbridge.publish(
            "a.b",
            {"id": 1, "name": name},
            at=base + timedelta(milliseconds=wait_ms),
            event_id=name,
            key="☃",
            headers={"X-Own": "1"},
        )
    direct = jetbridge.publish("a.b", {"id": 1}, key="☃")
    written = {row.event_id: row for row in Scheduled.objects.all()}
    eventually(lambda: datetime.now(UTC) > base + timedelta(milliseconds=60))

    assert promote() == 3
    rows = outbox()
    assert [row.event_id for row in rows] == [direct, "early", "middle", "late"]
    for row in rows[1:]:
        known = written[row.event_id]
        for column in store._CONTENT:
            assert getattr(row, column) == getattr(known, column), column
        assert (row.state, row.created_at) == ("ready", known.created_at)
    assert Scheduled.objects.count() == 0


def test_a_limit_takes_the_earliest_first():
    """A page at a time."""
    soon = datetime.now(UTC) + timedelta(milliseconds=100)
    for number in range(5):
        jetbridge.publish("a.b", {}, at=soon + timedelta(milliseconds=number), event_id=str(number))
    eventually(lambda: datetime.now(UTC) > soon + timedelta(milliseconds=20))

    assert promote(limit=2) == 2
    assert [row.event_id for row in outbox()] == ["0", "1"]
    assert promote(limit=100) == 3


def test_occurred_at_is_the_publish_and_not_the_departure():
    """The envelope is encoded once, when it is published."""
    jetbridge.publish("a.b", {}, delay=60)

    body = json.loads(bytes(Scheduled.objects.get().body))
    assert datetime.fromisoformat(body["occurred_at"]) - datetime.now(UTC) < timedelta(seconds=5)


def test_size_and_content_are_checked_when_it_is_published():
    """An error in an hour would be nobody's."""
    with pytest.raises(jetbridge.EventTooLarge):
        jetbridge.publish("a.b", {"x": "y" * 2_000_000}, delay=60)

    assert Scheduled.objects.count() == 0


def test_use_tz_false_means_local_time(settings):
    """A naive ``at`` under ``USE_TZ=False`` is local time, as Django has it."""
    settings.USE_TZ = False
    settings.TIME_ZONE = "Europe/Berlin"
    local = datetime(2100, 7, 1, 12, 0)  # noqa: DTZ001

    jetbridge.publish("a.b", {}, at=local, event_id="x")

    assert Scheduled.objects.filter(due_at=local).count() == 1


def test_a_delay_from_a_coroutine():
    """``apublish(delay=…)``."""
    in_coroutine(jetbridge.apublish("a.b", {}, delay=60))

    assert Scheduled.objects.count() == 1

"""``publish_many()``: all or none, ids in order, by COPY on PostgreSQL."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.test.utils import CaptureQueriesContext

import jetbridge
from jetbridge.models import Outbox, Scheduled
from jetbridge.outbox import drafts
from tests.worlds import in_coroutine, outbox

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("shop")]

UNSENDABLE: dict[str, Any] = {"x": object()}
SIZES = [1, 99, 100, 2_500]


@pytest.mark.parametrize("count", SIZES)
def test_ids_come_back_in_order_and_rows_keep_that_order(count):
    """The relay sends by row id, so rows must lie in the order of the events."""
    ids = jetbridge.publish_many([jetbridge.Event("a.b", {"id": 1, "n": n}) for n in range(count)])

    rows = Outbox.objects.order_by("id").values_list("event_id", "body")
    assert [event_id for event_id, _ in rows] == ids
    assert [json.loads(bytes(body))["payload"]["n"] for _, body in rows] == list(range(count))
    assert len(set(ids)) == count


@pytest.mark.parametrize("count", SIZES)
def test_rows_are_the_same_as_those_of_publish(count):
    """COPY and INSERT write the same columns and the same defaults."""
    fixed: dict[str, Any] = {
        "event_id": "x",
        "trace_id": "t",
        "occurred_at": datetime(2026, 1, 1, tzinfo=UTC),
        "headers": {"X-Own": 'tab, "quotes" \\ and {braces}'},
        "key": "tab\t, line\n, \\N, \\. and ☃",
    }
    payload: dict[str, Any] = {"id": 7, "text": "\\N \\. \t \n \r \x00 ☃ 'quotes\""}
    jetbridge.publish("a.b", payload, **fixed)
    jetbridge.publish_many([jetbridge.Event("a.b", payload, **fixed)] * count)

    columns = [
        field.attname
        for field in Outbox._meta.concrete_fields
        if field.attname not in ("id", "created_at", "state_at")
    ]
    rows = [
        tuple(bytes(value) if isinstance(value, (memoryview, bytes)) else value for value in row)
        for row in Outbox.objects.order_by("id").values_list(*columns)
    ]
    assert all(row == rows[0] for row in rows)
    assert len(rows) == count + 1
    assert Outbox.objects.filter(created_at__isnull=True).count() == 0


@pytest.mark.parametrize("count", SIZES)
def test_one_bad_event_means_none_is_written(count):
    """All or none, also outside a transaction: everything is checked before the first row."""
    events = [jetbridge.Event("a.b", {"n": n}) for n in range(count)]

    with pytest.raises(jetbridge.InvalidEvent):
        jetbridge.publish_many([*events, jetbridge.Event("a.b", UNSENDABLE)])

    assert Outbox.objects.count() == 0


def test_an_iterator_that_raises_means_none_is_written():
    """A generator may fail after a thousand events."""

    def events():
        for n in range(1_500):
            yield jetbridge.Event("a.b", {"n": n})
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        jetbridge.publish_many(events())

    assert Outbox.objects.count() == 0


@pytest.mark.parametrize("count", [50, 2_500])
def test_a_database_error_in_the_middle_means_none_is_written(count, monkeypatch):
    """Many statements or one COPY: one transaction, also in autocommit."""
    good = drafts.drafts

    def broken(event, *rest, **more):
        rows = good(event, *rest, **more)
        if event.payload["n"] != count - 1:
            return rows
        return [replace(row, bucket=None) for row in rows]  # type: ignore[arg-type]

    monkeypatch.setattr(drafts, "drafts", broken)
    with pytest.raises(DatabaseError):
        jetbridge.publish_many([jetbridge.Event("a.b", {"n": n}) for n in range(count)])

    connection.close()
    assert Outbox.objects.count() == 0


@pytest.mark.parametrize("count", SIZES)
def test_it_follows_the_callers_transaction(count):
    """No transaction of its own inside the caller's."""
    with transaction.atomic():
        jetbridge.publish_many([jetbridge.Event("a.b") for _ in range(count)])
        transaction.set_rollback(True)

    assert Outbox.objects.count() == 0


def test_no_events_are_no_statement():
    """An empty iterable writes nothing and returns an empty list."""
    with CaptureQueriesContext(connection) as queries:
        assert jetbridge.publish_many([]) == []
        assert jetbridge.publish_many(iter(())) == []

    assert len(queries) == 0


@pytest.mark.postgres
def test_many_events_are_one_copy_inside_atomic():
    """COPY costs one statement however many rows."""
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        jetbridge.publish_many([jetbridge.Event("a.b") for _ in range(5_000)])

    assert [query["sql"].split()[0] for query in queries] == ["COPY"]


def test_few_events_are_one_statement_inside_atomic():
    """One INSERT with several rows."""
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        jetbridge.publish_many([jetbridge.Event("a.b") for _ in range(20)])

    assert len(queries) == 1


def test_several_destinations_keep_the_order_of_the_events(settings):
    """One row for each event and destination, events in order within each."""
    settings.JETBRIDGE = {"APP_NAME": "shop", "DESTINATIONS": ["billing", "audit"]}

    ids = jetbridge.publish_many([jetbridge.Event("a.b") for _ in range(120)], to=["billing", "audit"])

    for name in ("billing", "audit"):
        assert [row.event_id for row in outbox(destination=name)] == ids


def test_own_ids_and_defaults_stand_side_by_side():
    """An event's own members win, one by one."""
    first, second = jetbridge.publish_many(
        [jetbridge.Event("a.b", {"id": 1}, event_id="own", key="k"), jetbridge.Event("a.b", {"id": 2})]
    )

    assert first == "own"
    assert [row.key for row in outbox()] == ["k", "a:2"]
    assert second != "own"


def test_what_only_a_received_event_has_is_filled_in_by_the_publisher():
    """``producer`` and ``schema_version`` of a given event are not the caller's to choose."""
    jetbridge.publish_many([jetbridge.Event("a.b", {}, producer="somebody", schema_version=9)])

    body = json.loads(bytes(outbox()[0].body))
    assert (body["producer"], body["schema_version"]) == ("shop", 1)


def test_a_cause_may_be_given():
    """``Event(causation_id=…, correlation_id=…)`` travels in the headers, percent-encoded where needed."""
    jetbridge.publish_many([jetbridge.Event("a.b", {}, causation_id="c 1", correlation_id="é")])

    (row,) = outbox()
    assert (row.causation_id, row.correlation_id) == ("c 1", "é")
    assert row.headers["Jetbridge-Causation-Id"] == "c%201"
    assert row.headers["Jetbridge-Correlation-Id"] == "%C3%A9"


def test_many_may_be_scheduled():
    """``delay`` holds for all of them."""
    ids = jetbridge.publish_many([jetbridge.Event("a.b") for _ in range(150)], delay=60)

    assert list(Scheduled.objects.order_by("id").values_list("event_id", flat=True)) == ids
    assert Outbox.objects.count() == 0


def test_many_from_a_coroutine():
    """``apublish_many``."""
    ids = in_coroutine(jetbridge.apublish_many([jetbridge.Event("a.b") for _ in range(3)]))

    assert [row.event_id for row in outbox()] == ids

"""``publish()`` is one INSERT in the caller's transaction; its arguments are checked before that."""

from __future__ import annotations

import collections
import json
import re
import types
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, transaction
from django.db.models.signals import post_save, pre_save
from django.test.utils import CaptureQueriesContext
from django.utils.translation import gettext_lazy

import jetbridge
from jetbridge.models import Outbox
from jetbridge.partition import bucket
from tests.worlds import in_coroutine, outbox

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("shop")]


def body_of(row: Outbox) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(bytes(row.body))
    return body


# --- what is written -----------------------------------------------------------------------------


def test_a_publish_is_one_ready_row_with_everything_the_relay_needs():
    """The envelope is encoded once, here; the relay copies bytes."""
    event_id = jetbridge.publish("order.placed", {"id": 7, "total": "9.90"}, to="billing")

    (row,) = outbox()
    assert (row.event_id, row.message_id) == (event_id, f"{event_id}:billing")
    assert (row.kind, row.state, row.event_type) == ("event", "ready", "order.placed")
    assert (row.destination, row.subject) == ("billing", "shop.sync.billing")
    assert (row.key, row.bucket) == ("order:7", bucket("order:7", event_id))
    assert row.headers == {"nats-msg-id": event_id}
    assert (row.causation_id, row.correlation_id) == ("", "")
    assert (row.error, row.error_code, row.attempts) == ("", "", 0)
    assert abs((datetime.now(UTC) - row.created_at).total_seconds()) < 60
    body = body_of(row)
    assert list(body) == [
        "event_id",
        "schema_version",
        "event_type",
        "producer",
        "resource_id",
        "occurred_at",
        "trace_id",
        "resource_type",
        "payload",
    ]
    assert (body["event_id"], body["schema_version"], body["producer"]) == (event_id, 1, "shop")
    assert (body["resource_id"], body["resource_type"]) == ("7", "order")
    assert body["payload"] == {"id": 7, "total": "9.90"}
    assert re.fullmatch(r"[0-9a-f]{16}", body["trace_id"])
    assert body["occurred_at"].endswith("Z")


def test_own_ids_are_uuid7_and_grow():
    """Index locality: ids of one process never go backwards."""
    found = [jetbridge.publish("a.b", {}) for _ in range(50)]

    assert found == sorted(found)
    assert {UUID(one).version for one in found} == {7}
    assert len(set(found)) == 50


@pytest.mark.parametrize(
    ("type_", "payload", "given", "expected"),
    [
        ("order.placed", {"id": 7}, {}, ("order", "7", "order:7")),
        ("order.line.added", {"id": "x"}, {}, ("order", "x", "order:x")),
        ("ping", {"id": 7}, {}, ("event", "7", "event:7")),
        ("order.placed", {}, {}, ("order", "", "")),
        ("order.placed", {"id": None}, {}, ("order", "", "")),
        ("order.placed", {"id": ""}, {}, ("order", "", "")),
        ("order.placed", {"id": [1]}, {}, ("order", "", "")),
        ("order.placed", {"id": 0}, {}, ("order", "0", "order:0")),
        ("order.placed", {"id": 7}, {"resource_id": ""}, ("order", "", "")),
        ("order.placed", {"id": 7}, {"resource_id": "9"}, ("order", "9", "order:9")),
        ("order.placed", {"id": 7}, {"resource_type": "sale"}, ("sale", "7", "sale:7")),
        ("order.placed", {"id": 7}, {"key": "customer 5"}, ("order", "7", "customer 5")),
        ("order.placed", {}, {"key": "customer 5"}, ("order", "", "customer 5")),
        (
            "order.placed",
            {"id": UUID(int=5)},
            {},
            ("order", str(UUID(int=5)), f"order:{UUID(int=5)}"),
        ),
    ],
)
def test_defaults_of_resource_and_key(type_, payload, given, expected):
    """Type up to its first dot (else "event"), ``payload["id"]`` (else ""), ``<type>:<id>`` (else no key)."""
    jetbridge.publish(type_, payload, **given)

    (row,) = outbox()
    body = body_of(row)
    assert (body["resource_type"], body["resource_id"], row.key) == expected


def test_events_without_a_key_are_spread_over_the_buckets_by_event_id():
    """No key = unordered: nothing is ever held behind another."""
    jetbridge.publish("a.b", {}, event_id="e-1")

    assert outbox()[0].bucket == bucket("", "e-1")


def test_what_djangos_encoder_knows_may_stand_in_a_payload():
    """Dates, Decimals, UUIDs and lazy strings are as in JsonResponse."""
    payload: dict[str, Any] = {
        "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "on": date(2026, 1, 2),
        "total": Decimal("9.90"),
        "uuid": UUID(int=1),
        "for": timedelta(hours=1),
        "lazy": gettext_lazy("text"),
    }

    jetbridge.publish("a.b", payload)

    assert body_of(outbox()[0])["payload"] == {
        "at": "2026-01-02T03:04:05Z",
        "on": "2026-01-02",
        "total": "9.90",
        "uuid": str(UUID(int=1)),
        "for": "P0DT01H00M00S",
        "lazy": "text",
    }


@pytest.mark.parametrize(
    "make",
    [types.MappingProxyType, collections.UserDict, collections.OrderedDict],
    ids=lambda one: one.__name__,
)
def test_any_mapping_is_a_payload(make):
    """``payload`` is a ``Mapping``, at the top and inside."""
    jetbridge.publish("a.b", make({"id": 7, "inner": make({"x": (1, 2)})}))

    assert body_of(outbox()[0])["payload"] == {"id": 7, "inner": {"x": [1, 2]}}


def test_text_in_a_payload_is_raw_utf8_and_nul_is_escaped():
    """The gem writes raw UTF-8; a NUL in JSON is six ASCII characters and no harm."""
    jetbridge.publish("a.b", {"text": "é☃\u2028<&", "nul": "a\x00b"})

    raw = bytes(outbox()[0].body)
    assert "é☃\u2028<&".encode() in raw
    assert rb"a\u0000b" in raw
    assert body_of(outbox()[0])["payload"]["nul"] == "a\x00b"


def test_occurred_at_is_utc_on_the_wire():
    """Any zone in, ``Z`` out."""
    there = timezone(timedelta(hours=2))

    jetbridge.publish("a.b", {}, occurred_at=datetime(2026, 5, 6, 7, 8, 9, tzinfo=there))

    assert body_of(outbox()[0])["occurred_at"] == "2026-05-06T05:08:09Z"


def test_headers_of_the_caller_are_kept_and_the_trace_id_is_theirs():
    """ASCII headers travel; ``trace_id`` stands in the body."""
    jetbridge.publish(
        "a.b", {}, headers={"traceparent": "00-1-2-01", "X-Own": "~"}, trace_id="t-1", event_id="e"
    )

    (row,) = outbox()
    assert row.headers == {"nats-msg-id": "e", "traceparent": "00-1-2-01", "X-Own": "~"}
    assert body_of(row)["trace_id"] == "t-1"


def test_no_signal_of_the_model_is_sent():
    """Rows are inserted without model signals: a project's audit receivers see nothing."""
    called: list[object] = []

    def receiver(sender: object, **_: object) -> None:
        called.append(sender)

    pre_save.connect(receiver, sender=Outbox)
    post_save.connect(receiver, sender=Outbox)
    try:
        jetbridge.publish("a.b", {})
    finally:
        pre_save.disconnect(receiver, sender=Outbox)
        post_save.disconnect(receiver, sender=Outbox)

    assert called == []


def test_the_same_event_id_twice_is_legal():
    """Two rows, one effect at the other end."""
    jetbridge.publish("a.b", {}, event_id="x")
    jetbridge.publish("a.b", {}, event_id="x")

    assert [row.event_id for row in outbox()] == ["x", "x"]


def test_one_event_to_several_destinations_is_one_row_each_with_one_id(settings):
    """Message ids differ, or the stream would drop the second; the body is the same."""
    settings.JETBRIDGE = {"APP_NAME": "shop", "DESTINATIONS": ["billing", "audit"]}
    jetbridge.publish("a.b", {}, to=["billing", "audit", "billing"], event_id="x")

    rows = outbox()
    assert [(row.subject, row.message_id) for row in rows] == [
        ("shop.sync.billing", "x:billing"),
        ("shop.sync.audit", "x:audit"),
    ]
    assert bytes(rows[0].body) == bytes(rows[1].body)


def test_a_destination_without_message_ids_has_none(settings):
    """For a gem peer without inbox, which would copy the header and lose its dead letters."""
    settings.JETBRIDGE = {"APP_NAME": "shop", "DESTINATIONS": {"billing": {"message_id": False}}}
    jetbridge.publish("a.b", {}, event_id="x")

    (row,) = outbox()
    assert (row.message_id, row.headers) == ("", {"nats-msg-id": "x"})


def test_an_own_subject_of_the_own_stream_may_be_given():
    """``subject=`` instead of ``to=``."""
    jetbridge.publish("a.b", {}, subject="shop.sync.reports.daily", event_id="x")

    (row,) = outbox()
    assert (row.subject, row.message_id) == ("shop.sync.reports.daily", "x:reports.daily")


def test_publishing_from_a_coroutine_writes_and_commits_by_itself():
    """``apublish`` outside a handler has no transaction to join."""
    event_id = in_coroutine(jetbridge.apublish("a.b", {"id": 1}, key="k"))

    (row,) = outbox()
    assert (row.event_id, row.key) == (event_id, "k")


# --- statements ----------------------------------------------------------------------------------


def test_inside_atomic_a_publish_adds_exactly_one_statement():
    """No savepoint, no SELECT, no second write."""
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        jetbridge.publish("a.b", {"id": 1})

    assert len(queries) == 1, queries.captured_queries
    assert queries[0]["sql"].startswith("INSERT")


def test_inside_atomic_several_destinations_add_one_statement(settings):
    """One INSERT with several rows."""
    names = [f"d{number}" for number in range(30)]
    settings.JETBRIDGE = {"APP_NAME": "shop", "DESTINATIONS": names}
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        jetbridge.publish("a.b", {"id": 1}, to=names)

    assert len(queries) == 1, queries.captured_queries
    assert Outbox.objects.count() == 30


def test_outside_atomic_a_publish_is_the_insert_between_begin_and_commit():
    """A publish in autocommit costs one statement beside BEGIN and COMMIT."""
    with CaptureQueriesContext(connection) as queries:
        jetbridge.publish("a.b", {"id": 1})

    words = [query["sql"].split()[0].upper() for query in queries]
    assert [word for word in words if word not in ("BEGIN", "COMMIT")] == ["INSERT"], queries.captured_queries


def test_inside_atomic_a_delayed_publish_adds_exactly_one_statement():
    """The same for the scheduled table."""
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        jetbridge.publish("a.b", {"id": 1}, delay=60)

    assert len(queries) == 1, queries.captured_queries


def test_at_most_one_commit_hook_per_transaction():
    """A thousand publishes must not run a thousand hooks at the commit."""
    with transaction.atomic():
        for _ in range(20):
            jetbridge.publish("a.b", {})
        assert len(connection.run_on_commit) <= 1


def test_an_empty_key_is_no_key_given():
    """A handler that forwards ``key=event.key`` must not fail on the events that have none."""
    jetbridge.publish("order.placed", {"id": 7}, key="")
    jetbridge.publish("order.placed", {}, key="")

    assert [row.key for row in Outbox.objects.order_by("id")] == ["order:7", ""]

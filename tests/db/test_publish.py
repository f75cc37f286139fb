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
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.db.models.signals import post_save, pre_save
from django.test.utils import CaptureQueriesContext
from django.utils.translation import gettext_lazy

import jetbridge
from jetbridge.models import Archive, Outbox, Scheduled
from jetbridge.partition import bucket
from tests.worlds import in_coroutine, outbox

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("shop")]


def body_of(row: Outbox) -> dict[str, Any]:
    return json.loads(bytes(row.body))


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
    payload = {
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
    "make", [types.MappingProxyType, collections.UserDict, collections.OrderedDict], ids=lambda one: one.__name__
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
    jetbridge.publish("a.b", {}, headers={"traceparent": "00-1-2-01", "X-Own": "~"}, trace_id="t-1", event_id="e")

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


def test_a_refused_publish_costs_no_statement():
    """Everything is checked before the INSERT."""
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        with pytest.raises(jetbridge.InvalidEvent):
            jetbridge.publish("a.b", {"x": object()})
        with pytest.raises(jetbridge.EventTooLarge):
            jetbridge.publish("a.b", {"x": "y" * 2_000_000})

    assert len(queries) == 0


def test_at_most_one_commit_hook_per_transaction():
    """A thousand publishes must not run a thousand hooks at the commit."""
    with transaction.atomic():
        for _ in range(20):
            jetbridge.publish("a.b", {})
        assert len(connection.run_on_commit) <= 1


# --- bad input -----------------------------------------------------------------------------------

NAIVE = datetime(2026, 1, 1)
FAR_WEST = timezone(timedelta(hours=-14))
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], list[str]]] = [
    ("an empty type", ("", {}), {}, ["type", "non-empty", "''"]),
    ("no string as type", (5, {}), {}, ["type", "string", "5"]),
    ("a wildcard in the type", ("order.*", {}), {}, ["type", "order.*"]),
    ("blanks in the type", ("order placed", {}), {}, ["type", "order placed"]),
    ("an empty token in the type", ("order..placed", {}), {}, ["type", "order..placed"]),
    ("a type of 10,000 characters", ("a" * 10_000, {}), {}, ["type", "255", "10000"]),
    ("NUL in the type", ("a\x00b", {}), {}, ["type", "NUL", r"a\x00b"]),
    ("a lone surrogate in the type", ("a\ud800", {}), {}, ["type", "surrogate", r"\ud800"]),
    ("a list as payload", ("a.b", [1]), {}, ["payload", "mapping", "list"]),
    ("no payload", ("a.b", None), {}, ["payload", "mapping", "NoneType"]),
    ("a string as payload", ("a.b", "{}"), {}, ["payload", "mapping", "str"]),
    ("an object in the payload", ("a.b", {"x": object()}), {}, ["payload", "object"]),
    ("a set in the payload", ("a.b", {"x": {1}}), {}, ["payload", "set"]),
    ("NaN in the payload", ("a.b", {"x": float("nan")}), {}, ["payload", "float values"]),
    ("infinity in the payload", ("a.b", {"x": float("inf")}), {}, ["payload", "float values"]),
    ("a lone surrogate in the payload", ("a.b", {"x": "\ud800"}), {}, ["payload", "surrogate"]),
    ("a tuple as a key of the payload", ("a.b", {(1, 2): 1}), {}, ["payload", "tuple"]),
    ("bytes in the payload", ("a.b", {"x": b"1"}), {}, ["payload", "bytes"]),
    ("a payload of 2 MB", ("a.b", {"x": "y" * 2_000_000}), {}, ["2,000,", "1,000,000", "MAX_PAYLOAD_BYTES"]),
    ("an id of 10,000 characters", ("a.b", {}), {"event_id": "i" * 10_000}, ["event_id", "128", "10000"]),
    ("an id of 129 characters", ("a.b", {}), {"event_id": "i" * 129}, ["event_id", "128"]),
    ("an empty id", ("a.b", {}), {"event_id": ""}, ["event_id", "128", "''"]),
    ("a blank in the id", ("a.b", {}), {"event_id": "a b"}, ["event_id", "visible ASCII", "a b"]),
    ("a line break in the id", ("a.b", {}), {"event_id": "a\r\nb"}, ["event_id", "visible ASCII"]),
    ("a snowman in the id", ("a.b", {}), {"event_id": "☃"}, ["event_id", "visible ASCII", "☃"]),
    ("a number as id", ("a.b", {}), {"event_id": 5}, ["event_id", "5"]),
    ("a key of 10,000 characters", ("a.b", {}), {"key": "k" * 10_000}, ["key", "255", "10000"]),
    ("an empty key", ("a.b", {}), {"key": ""}, ["key", "resource_id=''"]),
    ("NUL in the key", ("a.b", {}), {"key": "\x00"}, ["key", "NUL"]),
    ("a lone surrogate in the key", ("a.b", {}), {"key": "\udfff"}, ["key", "surrogate"]),
    ("a number as key", ("a.b", {}), {"key": 5}, ["key", "string", "5"]),
    ("a resource id of 10,000", ("a.b", {"id": "r" * 10_000}), {}, ["resource_id", "255", "10000"]),
    ("NUL in the resource id", ("a.b", {"id": "\x00"}), {}, ["resource_id", "NUL"]),
    ("a list as resource id", ("a.b", {}), {"resource_id": [1]}, ["resource_id", "string", "[1]"]),
    ("a default key too long", ("a.b", {"id": "r" * 255}), {}, ["key", "255", "257"]),
    ("a long trace id", ("a.b", {}), {"trace_id": "t" * 10_000}, ["trace_id", "255", "10000"]),
    ("NUL in the trace id", ("a.b", {}), {"trace_id": "\x00"}, ["trace_id", "NUL"]),
    ("a naive time", ("a.b", {}), {"occurred_at": NAIVE}, ["occurred_at", "aware", "2026-01-01"]),
    ("a string as time", ("a.b", {}), {"occurred_at": "now"}, ["occurred_at", "datetime", "now"]),
    ("a time after the last", ("a.b", {}), {"occurred_at": datetime.max.replace(tzinfo=FAR_WEST)}, ["occurred_at"]),
    ("a list as headers", ("a.b", {}), {"headers": [("a", "b")]}, ["headers", "mapping", "list"]),
    ("a number as header", ("a.b", {}), {"headers": {"X": 1}}, ["X", "string", "1"]),
    ("a line break in a header", ("a.b", {}), {"headers": {"X": "a\r\nNats-Rollup: all"}}, ["X", "printable"]),
    ("a non-ASCII header", ("a.b", {}), {"headers": {"X": "ä"}}, ["X", "ASCII", "ä"]),
    ("a blank in a header's name", ("a.b", {}), {"headers": {"X Y": "1"}}, ["header name", "X Y"]),
    ("a colon in a header's name", ("a.b", {}), {"headers": {"X:": "1"}}, ["header name", "X:"]),
    ("an empty header name", ("a.b", {}), {"headers": {"": "1"}}, ["header name"]),
    ("a reserved header", ("a.b", {}), {"headers": {"Nats-Rollup": "all"}}, ["Nats-Rollup", "reserved"]),
    ("a reserved header in lower case", ("a.b", {}), {"headers": {"nats-msg-id": "x"}}, ["nats-msg-id", "reserved"]),
    ("a header of jetbridge", ("a.b", {}), {"headers": {"JETBRIDGE-KEY": "x"}}, ["JETBRIDGE-KEY", "reserved"]),
    ("a header of dead letters", ("a.b", {}), {"headers": {"X-DLQ-Reason": "x"}}, ["X-DLQ-Reason", "reserved"]),
    ("an unknown destination", ("a.b", {}), {"to": "biling"}, ["'biling'", "'billing'", "DESTINATIONS"]),
    ("a destination of another type", ("a.b", {}), {"to": 5}, ["5", "'billing'"]),
    ("a list with a list", ("a.b", {}), {"to": [["billing"]]}, ["'billing'"]),
    ("no destination", ("a.b", {}), {"to": []}, ["to=", "'billing'"]),
    ("a foreign subject", ("a.b", {}), {"subject": "other.sync.billing"}, ["subject", "shop.sync.", "other.sync"]),
    ("a wildcard subject", ("a.b", {}), {"subject": "shop.sync.>"}, ["subject", "shop.sync.>"]),
    ("an empty token in a subject", ("a.b", {}), {"subject": "shop.sync..x"}, ["subject", "shop.sync..x"]),
    ("a subject of 10,000", ("a.b", {}), {"subject": "shop.sync." + "x." * 5_000 + "x"}, ["subject", "255"]),
    ("a number as subject", ("a.b", {}), {"subject": 5}, ["subject", "5"]),
    ("a delay and a time", ("a.b", {}), {"delay": 1, "at": datetime.now(UTC)}, ["delay", "at"]),
    ("a negative delay", ("a.b", {}), {"delay": -1}, ["delay", "-1"]),
    ("a negative span", ("a.b", {}), {"delay": timedelta(seconds=-1)}, ["delay", "negative"]),
    ("no number as delay", ("a.b", {}), {"delay": float("nan")}, ["delay", "nan"]),
    ("text as delay", ("a.b", {}), {"delay": "5"}, ["delay", "'5'"]),
    ("an endless span", ("a.b", {}), {"delay": timedelta.max}, ["delay"]),
    ("a naive due time", ("a.b", {}), {"at": NAIVE}, ["at", "aware", "2026-01-01"]),
    ("text as due time", ("a.b", {}), {"at": "tomorrow"}, ["at", "datetime", "tomorrow"]),
    ("a due time after the last", ("a.b", {}), {"at": datetime.max.replace(tzinfo=FAR_WEST)}, ["at"]),
    ("an unknown alias", ("a.b", {}), {"using": "nowhere"}, ["using", "'nowhere'", "'default'", "DATABASES"]),
]


@pytest.mark.django_db  # many cases, and nothing is ever committed
@pytest.mark.parametrize(("arguments", "keywords", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_refused_and_the_text_says_found_and_expected(arguments, keywords, words):
    """``InvalidEvent`` names the argument, what was found and what was expected; nothing is written."""
    with pytest.raises(jetbridge.InvalidEvent) as caught:
        jetbridge.publish(*arguments, **keywords)

    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert len(text) < 1_000
    assert (Outbox.objects.count(), Scheduled.objects.count()) == (0, 0)


@pytest.mark.django_db
@pytest.mark.parametrize("events", ["ab", [{"type": "a.b"}], [None], jetbridge.Event("a.b"), None, 5])
def test_publish_many_takes_events_and_nothing_else(events):
    """The text says what was found instead."""
    with pytest.raises(jetbridge.InvalidEvent, match=r"Event"):
        jetbridge.publish_many(events)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("causation_id", "c" * 10_000),
        ("causation_id", "\x00"),
        ("correlation_id", "c" * 10_000),
        ("correlation_id", "\ud800"),
        ("correlation_id", 5),
    ],
)
def test_causes_given_by_the_caller_are_checked_like_the_rest(member, value):
    """``Event(causation_id=…)``: an error here, not one of the database at a later place."""
    with pytest.raises(jetbridge.InvalidEvent, match=member):
        jetbridge.publish_many([jetbridge.Event("a.b", {}, **{member: value})])


def test_a_missing_destination_lists_the_choices(settings):
    """``to=None`` only with exactly one destination."""
    settings.JETBRIDGE = {"APP_NAME": "shop", "DESTINATIONS": ["billing", "audit"]}
    with pytest.raises(jetbridge.UnknownDestination) as caught:
        jetbridge.publish("a.b", {})

    assert "'billing', 'audit'" in str(caught.value)
    settings.JETBRIDGE = {"APP_NAME": "shop"}
    with pytest.raises(jetbridge.UnknownDestination, match=r"none"):
        jetbridge.publish("a.b", {})


def test_too_large_is_an_error_inside_the_transaction_which_can_go_on():
    """Story 49: 2 MB raise before the commit, and the caller may still commit the rest."""
    with transaction.atomic():
        jetbridge.publish("a.b", {"id": 1}, event_id="small")
        with pytest.raises(jetbridge.EventTooLarge):
            jetbridge.publish("a.b", {"id": 2, "blob": "x" * 2_000_000})

    assert [row.event_id for row in outbox()] == ["small"]


def test_the_size_counts_the_headers_and_the_limit_itself_is_allowed(settings):
    """``MAX_PAYLOAD_BYTES`` is what NATS counts: headers plus body."""
    settings.JETBRIDGE = {"APP_NAME": "shop", "DESTINATIONS": ["billing"], "MAX_PAYLOAD_BYTES": 2_000}
    fixed = {"event_id": "e", "trace_id": "t", "occurred_at": datetime(2026, 1, 1, tzinfo=UTC)}
    jetbridge.publish("a.b", {"x": ""}, **fixed)
    (row,) = outbox()
    block = "NATS/1.0\r\nNats-Msg-Id: e:billing\r\nnats-msg-id: e\r\n\r\n"
    room = 2_000 - len(bytes(row.body)) - len(block)

    jetbridge.publish("a.b", {"x": "y" * room}, **fixed)
    with pytest.raises(jetbridge.EventTooLarge, match=r"2,001.*2,000"):
        jetbridge.publish("a.b", {"x": "y" * (room + 1)}, **fixed)


def test_naive_datetimes_are_local_time_without_use_tz(settings):
    """Under ``USE_TZ=False`` a naive datetime means what Django means by it."""
    settings.USE_TZ = False
    settings.TIME_ZONE = "Europe/Berlin"

    jetbridge.publish("a.b", {}, occurred_at=datetime(2026, 7, 1, 12, 0))

    body = json.loads(bytes(Outbox.objects.values_list("body", flat=True).get()))
    assert body["occurred_at"] == "2026-07-01T10:00:00Z"


def test_faulty_settings_are_named_by_publish(settings):
    """``publish()`` raises ``ImproperlyConfigured`` with every fault."""
    settings.JETBRIDGE = {"APP_NAME": "no app", "DESTINATION": ["x"], "LEASE_S": "soon"}
    with pytest.raises(ImproperlyConfigured) as caught:
        jetbridge.publish("a.b", {})

    text = str(caught.value)
    assert [word for word in ("no app", "DESTINATIONS", "LEASE_S", "soon") if word not in text] == []


def test_an_own_event_id_of_128_visible_characters_is_kept():
    """The borders of the rule."""
    for event_id in ("!", "~" * 128, "a:b/c%20"):
        assert jetbridge.publish("a.b", {}, event_id=event_id) == event_id
    assert Archive.objects.count() == 0

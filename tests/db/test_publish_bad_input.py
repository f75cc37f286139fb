"""Bad input to ``publish()``: the text says what was found and what was expected, and nothing is written."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

import jetbridge
from jetbridge.models import Archive, Outbox, Scheduled
from tests.worlds import outbox

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("shop")]

NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001
UNSENDABLE: dict[str, Any] = {"x": object()}
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
    ("NUL in the key", ("a.b", {}), {"key": "\x00"}, ["key", "NUL"]),
    ("a lone surrogate in the key", ("a.b", {}), {"key": "\udfff"}, ["key", "surrogate"]),
    ("a fraction as key", ("a.b", {}), {"key": 5.5}, ["key", "string", "5.5"]),
    ("a resource id of 10,000", ("a.b", {"id": "r" * 10_000}), {}, ["resource_id", "255", "10000"]),
    ("NUL in the resource id", ("a.b", {"id": "\x00"}), {}, ["resource_id", "NUL"]),
    ("a list as resource id", ("a.b", {}), {"resource_id": [1]}, ["resource_id", "string", "[1]"]),
    ("a default key too long", ("a.b", {"id": "r" * 255}), {}, ["key", "255", "257"]),
    ("a long trace id", ("a.b", {}), {"trace_id": "t" * 10_000}, ["trace_id", "255", "10000"]),
    ("NUL in the trace id", ("a.b", {}), {"trace_id": "\x00"}, ["trace_id", "NUL"]),
    ("a naive time", ("a.b", {}), {"occurred_at": NAIVE}, ["occurred_at", "aware", "2026-01-01"]),
    ("a string as time", ("a.b", {}), {"occurred_at": "now"}, ["occurred_at", "datetime", "now"]),
    (
        "a time after the last",
        ("a.b", {}),
        {"occurred_at": datetime.max.replace(tzinfo=FAR_WEST)},
        ["occurred_at"],
    ),
    ("a list as headers", ("a.b", {}), {"headers": [("a", "b")]}, ["headers", "mapping", "list"]),
    ("a number as header", ("a.b", {}), {"headers": {"X": 1}}, ["X", "string", "1"]),
    (
        "a line break in a header",
        ("a.b", {}),
        {"headers": {"X": "a\r\nNats-Rollup: all"}},
        ["X", "printable"],
    ),
    ("a non-ASCII header", ("a.b", {}), {"headers": {"X": "ä"}}, ["X", "ASCII", "ä"]),
    ("a blank in a header's name", ("a.b", {}), {"headers": {"X Y": "1"}}, ["header name", "X Y"]),
    ("a colon in a header's name", ("a.b", {}), {"headers": {"X:": "1"}}, ["header name", "X:"]),
    ("an empty header name", ("a.b", {}), {"headers": {"": "1"}}, ["header name"]),
    ("a reserved header", ("a.b", {}), {"headers": {"Nats-Rollup": "all"}}, ["Nats-Rollup", "reserved"]),
    (
        "a reserved header in lower case",
        ("a.b", {}),
        {"headers": {"nats-msg-id": "x"}},
        ["nats-msg-id", "reserved"],
    ),
    (
        "a header of jetbridge",
        ("a.b", {}),
        {"headers": {"JETBRIDGE-KEY": "x"}},
        ["JETBRIDGE-KEY", "reserved"],
    ),
    (
        "a header of dead letters",
        ("a.b", {}),
        {"headers": {"X-DLQ-Reason": "x"}},
        ["X-DLQ-Reason", "reserved"],
    ),
    ("an unknown destination", ("a.b", {}), {"to": "biling"}, ["'biling'", "'billing'", "DESTINATIONS"]),
    ("a destination of another type", ("a.b", {}), {"to": 5}, ["5", "'billing'"]),
    ("a list with a list", ("a.b", {}), {"to": [["billing"]]}, ["'billing'"]),
    ("no destination", ("a.b", {}), {"to": []}, ["to=", "'billing'"]),
    (
        "a foreign subject",
        ("a.b", {}),
        {"subject": "other.sync.billing"},
        ["subject", "shop.sync.", "other.sync"],
    ),
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
@pytest.mark.parametrize(
    ("arguments", "keywords", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
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
    fixed: dict[str, Any] = {
        "event_id": "e",
        "trace_id": "t",
        "occurred_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
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

    jetbridge.publish("a.b", {}, occurred_at=NAIVE.replace(month=7, hour=12))

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


def test_a_refused_publish_costs_no_statement():
    """Everything is checked before the INSERT."""
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        with pytest.raises(jetbridge.InvalidEvent):
            jetbridge.publish("a.b", UNSENDABLE)
        with pytest.raises(jetbridge.EventTooLarge):
            jetbridge.publish("a.b", {"x": "y" * 2_000_000})

    assert len(queries) == 0

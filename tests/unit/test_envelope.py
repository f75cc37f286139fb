"""Body and headers of the wire contract, both ways. What foreign messages look like is in the scenarios."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetbridge import envelope
from jetbridge.envelope import Position
from jetbridge.errors import MalformedMessage
from jetbridge.event import Event

PLACE = Position(subject="shop.sync.billing", stream="jetbridge-shop", sequence=17, stored_ns=123)
text = st.text(st.characters(codec="utf-8"), max_size=30)
name = text.filter(bool)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


def read(
    body: bytes | Mapping[str, object], headers: dict[str, str] | None = None, app: str = "billing"
) -> Event:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return envelope.decode(data, headers or {}, PLACE, app=app)


@given(
    type_=st.lists(st.text("abcxyz019_-é", min_size=1, max_size=8), min_size=2, max_size=4).map(".".join),
    payload=st.dictionaries(text, json_values, max_size=4),
    resource_id=text,
    key=name,
    occurred_at=st.datetimes(timezones=st.just(UTC)),
    causation_id=text.filter(lambda value: "\x00" not in value),
)
def test_what_is_written_can_be_read(type_, payload, resource_id, key, occurred_at, causation_id):
    """Event → message → event, for every event that publish() makes."""
    event = Event(
        type=type_,
        payload=payload,
        resource_type=type_.split(".")[0],
        resource_id=resource_id,
        key=key,
        event_id="e-1",
        occurred_at=occurred_at,
        trace_id="t",
        producer="shop",
        causation_id=causation_id,
    )
    headers = envelope.wire_headers("e-1:billing", envelope.event_headers(event))
    assert all(value.isascii() and value.isprintable() for value in headers.values())

    found = envelope.decode(envelope.encode(event), headers, PLACE, app="billing")

    for member in (
        "type",
        "payload",
        "resource_type",
        "resource_id",
        "key",
        "event_id",
        "occurred_at",
        "causation_id",
    ):
        assert getattr(found, member) == getattr(event, member), member


def test_the_members_of_a_body_and_their_order():
    """The order is the contract; no blanks, raw UTF-8."""
    event = Event(
        "a.b",
        {"ü": 1},
        resource_type="a",
        resource_id="1",
        event_id="e",
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
        trace_id="t",
        producer="p",
    )

    assert envelope.encode(event).decode() == (
        '{"event_id":"e","schema_version":1,"event_type":"a.b","producer":"p","resource_id":"1",'
        '"occurred_at":"2026-01-01T00:00:00Z","trace_id":"t","resource_type":"a","payload":{"ü":1}}'
    )


def test_the_order_of_the_headers_is_the_contract_whatever_the_order_of_the_row():
    """PostgreSQL's jsonb forgets an order, so it is made when the message is sent."""
    given_ = {
        "zz": "9",
        "Content-Type": "c",
        "tracestate": "s",
        "traceparent": "p",
        "Jetbridge-Correlation-Id": "co",
        "Jetbridge-Causation-Id": "ca",
        "Jetbridge-Key": "k",
        "nats-msg-id": "e",
        "aa": "1",
    }

    assert list(envelope.wire_headers("m", given_)) == [
        "Nats-Msg-Id",
        "nats-msg-id",
        "Jetbridge-Key",
        "Jetbridge-Causation-Id",
        "Jetbridge-Correlation-Id",
        "traceparent",
        "tracestate",
        "Content-Type",
        "aa",
        "zz",
    ]
    assert "Nats-Msg-Id" not in envelope.wire_headers("", given_)


@pytest.mark.parametrize(
    ("event_type", "resource_type", "expected"),
    [
        ("user.created", "user", ("user.created", "user")),
        ("created", "user", ("user.created", "user")),
        ("user.created", "", ("user.created", "user")),
        ("user.created", "account", ("user.created", "account")),
        ("ping", "event", ("ping", "event")),
        ("ping", "", ("ping", "event")),
        ("created", None, ("created", "event")),
    ],
)
def test_both_styles_of_a_type(event_type, resource_type, expected):
    """``created`` with the resource type ``user`` is ``user.created``."""
    event = read({"event_type": event_type, "resource_type": resource_type, "payload": {}})

    assert (event.type, event.resource_type) == expected


@pytest.mark.parametrize(
    ("members", "headers", "expected"),
    [
        ({"event_id": "b"}, {"nats-msg-id": "h", "Nats-Msg-Id": "m:billing"}, "b"),
        ({"event_id": ""}, {"nats-msg-id": "h", "Nats-Msg-Id": "m:billing"}, "h"),
        ({"event_id": None}, {"Nats-Msg-Id": "m:billing"}, "m"),
        ({}, {"Nats-Msg-Id": "m:other"}, "m:other"),
        ({}, {"Nats-Msg-Id": "m:billing:billing"}, "m:billing"),
        ({}, {"NATS-MSG-ID": "m"}, "m"),
        ({}, {"nats-msg-id": ""}, "jetbridge-shop:17:123"),
        ({}, {}, "jetbridge-shop:17:123"),
        ({}, {"Nats-Msg-Id": ":billing"}, "jetbridge-shop:17:123"),
        ({"event_id": 5}, {}, "5"),
    ],
)
def test_the_identity_of_an_event(members, headers, expected):
    """Body, ``nats-msg-id``, ``Nats-Msg-Id`` less ``:<dest>``, else the place."""
    assert read({"event_type": "a.b", "payload": {}, **members}, headers).event_id == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.5Z", datetime(2026, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC)),
        ("2026-01-02T03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05-0330", datetime(2026, 1, 2, 6, 34, 5, tzinfo=UTC)),
        ("2026-01-02 03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("", None),
        ("soon", None),
        (5, None),
        (None, None),
    ],
)
def test_instants(written, expected):
    """Any offset; what cannot be read is ``None`` and no reason to refuse the event."""
    assert read({"event_type": "a.b", "payload": {}, "occurred_at": written}).occurred_at == expected


def test_produced_at_is_read_where_occurred_at_is_missing():
    """An older name of the same member."""
    event = read({"event_type": "a.b", "payload": {}, "produced_at": "2026-01-02T03:04:05Z"})

    assert event.occurred_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_fractions_of_a_second_only_where_there_are_any():
    """``Z``, and the gem's whole seconds."""
    zone = timezone(timedelta(hours=-5))

    assert envelope.format_instant(datetime(2026, 1, 1, 20, tzinfo=zone)) == "2026-01-02T01:00:00Z"
    assert (
        envelope.format_instant(datetime(2026, 1, 1, 0, 0, 0, 10, tzinfo=UTC))
        == "2026-01-01T00:00:00.000010Z"
    )


def test_a_copy_has_no_header_of_nats():
    """In any case of its name."""
    kept = {"X": "1", "Jetbridge-Key": "k", "natsy": "2"}

    assert envelope.copied_headers({**kept, "Nats-Batch-Id": "b", "nats-ttl": "1", "NATS-X": "y"}) == kept


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"\xff", b'{"event_type":"a.b","payload":{"a":NaN}}', b"[" * 10_000]
)
def test_a_malformed_body_says_why(body):
    """UTF-8, JSON, an object: the text names the step that failed."""
    with pytest.raises(MalformedMessage, match="The body"):
        read(body)


def test_a_key_of_the_wire_wins_over_the_default():
    """Percent-encoded UTF-8, read whatever the case of the header."""
    members = {"event_type": "order.placed", "resource_id": 7, "payload": {}}

    assert read(members).key == "order:7"
    assert read(members, {"jetbridge-key": "a%20%C3%BC"}).key == "a ü"
    assert read({**members, "resource_id": ""}).key == ""


def test_the_first_of_a_chain_is_its_own_correlation():
    """So that every event has one."""
    members = {"event_id": "e", "event_type": "a.b", "payload": {}}

    assert read(members).correlation_id == "e"
    assert read(members, {"Jetbridge-Correlation-Id": "r"}).correlation_id == "r"

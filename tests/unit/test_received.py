"""Making sense of a message never fails, whatever is in it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetbridge import received, text
from jetbridge.envelope import Position
from jetbridge.errors import MalformedMessage
from jetbridge.received import Received
from tests.worlds import body

PLACE = Position(subject="shop.sync.billing", stream="jetbridge-shop", sequence=17, stored_ns=123)
MEMBERS = (
    "event_id",
    "event_type",
    "payload",
    "producer",
    "resource_id",
    "resource_type",
    "occurred_at",
    "trace_id",
)

any_text = st.text(st.characters(codec=None), max_size=20) | st.text(
    "ab\x00\ud800", min_size=250, max_size=300
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
bodies = (
    st.binary(max_size=100)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(MEMBERS), json_values).map(
        lambda some: json.dumps({"event_type": "a.b", "payload": {}, **some}).encode()
    )
)
headers = st.dictionaries(
    st.sampled_from(["nats-msg-id", "Nats-Msg-Id", "Jetbridge-Key", "JETBRIDGE-CORRELATION-ID"]) | any_text,
    any_text | st.from_regex(r"(%[0-9a-f]{2}){1,5}", fullmatch=True),
    max_size=4,
)


@given(bodies, headers)
def test_reading_never_raises_and_its_facts_can_always_be_stored(data, given_headers):
    """Either an event or a fault that says why; id, type and key fit into their columns on every database."""
    message = received.read(data, given_headers, PLACE, app="billing")

    assert (message.event is None) == bool(message.fault)
    for value, limit in ((message.event_id, 255), (message.event_type, 255), (message.key, 255)):
        assert len(value) <= limit
        assert text.is_storable(value)
    assert message.event_id
    assert message.source == "shop"
    assert message.body == data
    if message.event is None:
        with pytest.raises(MalformedMessage):
            message.delivery(attempt=1, deadline=None)
    else:
        delivery = message.delivery(attempt=2, deadline=None)
        assert (delivery.attempt, delivery.source, delivery.sequence) == (2, "shop", 17)
        assert delivery.event_id == message.event_id


def read(data: bytes, **given_headers: str) -> Received:
    return received.read(data, given_headers, PLACE, app="billing")


def test_a_delivery_has_everything_of_the_event():
    """And where it came from."""
    message = read(body("e-1"), traceparent="00-1-2-01")
    delivery = message.delivery(attempt=1, deadline=None)

    assert message.event is not None
    for member in message.event.__slots__:
        assert getattr(delivery, member) == getattr(message.event, member), member
    assert (delivery.subject, delivery.stream, delivery.sequence) == (
        "shop.sync.billing",
        "jetbridge-shop",
        17,
    )


@pytest.mark.parametrize(
    ("data", "event_id"),
    [
        (b'{"event_id":"known"}', "known"),
        (b'{"event_id":["x"]}', "jetbridge-shop:17:123"),
        (b"broken", "jetbridge-shop:17:123"),
    ],
)
def test_a_malformed_message_is_identified_where_possible(data, event_id):
    """Its sender looks for the id it knows."""
    assert read(data).event_id == event_id
    assert read(b"broken", **{"nats-msg-id": "h"}).event_id == "h"


def test_the_source_cannot_be_forged():
    """Neither body nor header name it."""
    message = received.read(body("1", producer="other"), {"producer": "other"}, PLACE, app="billing")

    assert message.source == "shop"

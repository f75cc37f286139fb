"""From arguments to rows; the long table of bad input is in ``tests/db/test_publish.py``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetbridge import envelope
from jetbridge.conf import Settings
from jetbridge.context import Handling
from jetbridge.errors import EventTooLarge, InvalidEvent, UnknownDestination
from jetbridge.event import Delivery, Event
from jetbridge.outbox import drafts
from tests.broker.provisioning import settings_of

SHOP: Settings = settings_of(
    "shop", "nats://localhost", DESTINATIONS={"billing": {}, "gem": {"message_id": False}}
)


def one(event: Event, to: str = "billing", cause: Handling | None = None) -> drafts.Draft:
    full = drafts.complete(event, SHOP, cause)
    (row,) = drafts.drafts(full, drafts.targets(SHOP, to, None), SHOP)
    return row


@given(
    st.dictionaries(st.text(max_size=5), st.text(st.characters(codec=None), max_size=20), max_size=3),
    st.text(st.characters(codec=None), max_size=300),
)
def test_whatever_is_given_is_a_storable_row_or_an_invalid_event(payload, key):
    """Nothing else ever comes out: no other exception, no row that a database refuses."""
    try:
        row = one(Event("a.b", payload, key=key))
    except InvalidEvent:
        return
    assert "\x00" not in row.key
    assert len(row.key) <= 255
    assert json.loads(row.body)["payload"] == payload
    assert all(value.isascii() for value in row.headers.values())


@given(st.text("ab☃", max_size=200), st.text("ab", max_size=20))
def test_the_size_is_what_nats_counts(blob, key_end):
    """Header block plus body, to the byte."""
    row = one(Event("a.b", {"x": blob}, key="k" + key_end))
    headers = envelope.wire_headers(row.message_id, row.headers)
    block = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"

    assert drafts.header_bytes(headers) == len(block.encode())


def test_targets_of_names():
    """In the order given, each once; the option of a destination goes along."""
    found = drafts.targets(SHOP, ["gem", "billing", "gem"], None)

    assert [(target.subject, target.message_id) for target in found] == [
        ("shop.sync.gem", False),
        ("shop.sync.billing", True),
    ]
    assert [target.destination for target in drafts.targets(SHOP, ("billing",), None)] == ["billing"]


def test_a_subject_takes_the_option_of_its_destination():
    """``to=`` beside ``subject=`` names whose option holds."""
    (target,) = drafts.targets(SHOP, "gem", "shop.sync.gem.special")

    assert (target.subject, target.message_id) == ("shop.sync.gem.special", False)
    with pytest.raises(InvalidEvent, match="exactly one"):
        drafts.targets(SHOP, ["gem", "billing"], "shop.sync.x")


def test_unknown_destinations_list_the_choices():
    """So that the cure is in the text."""
    choices: list[Any] = ["nobody", "", None, []]
    for to in choices:
        with pytest.raises(UnknownDestination, match="'billing', 'gem'"):
            drafts.targets(SHOP, to, None)


def test_what_a_handler_publishes_inherits_cause_correlation_and_trace():
    """Unless the caller says otherwise."""
    delivery = Delivery("x.y", {}, event_id="cause", correlation_id="root", trace_id="trace")
    cause = Handling(delivery=delivery, using="default")

    inherited = drafts.complete(Event("a.b"), SHOP, cause)
    assert (inherited.causation_id, inherited.correlation_id, inherited.trace_id) == (
        "cause",
        "root",
        "trace",
    )
    own = drafts.complete(Event("a.b", causation_id="c", correlation_id="r", trace_id="t"), SHOP, cause)
    assert (own.causation_id, own.correlation_id, own.trace_id) == ("c", "r", "t")


@given(*[st.text(st.characters(codec=None), max_size=400)] * 2)
def test_whatever_a_handled_event_carries_its_handler_can_publish(correlation_id, trace_id):
    """What is inherited is foreign text: it is made storable, never refused."""
    delivery = Delivery("x.y", {}, event_id="cause", correlation_id=correlation_id, trace_id=trace_id)

    row = one(Event("a.b"), cause=Handling(delivery=delivery, using="default"))

    assert len(row.correlation_id) <= 255
    assert "\x00" not in row.correlation_id
    row.correlation_id.encode()


def test_two_destinations_share_one_encoding():
    """Encoded once."""
    full = drafts.complete(Event("a.b", occurred_at=datetime(2026, 1, 1, tzinfo=UTC)), SHOP, None)
    first, second = drafts.drafts(full, drafts.targets(SHOP, ["billing", "gem"], None), SHOP)

    assert first.body is second.body
    assert (first.message_id, second.message_id) == (f"{full.event_id}:billing", "")


def test_headers_count_towards_the_limit():
    """A small body with large headers is refused as well."""
    event = Event("a.b", headers={"X": "y" * SHOP.max_payload_bytes})

    with pytest.raises(EventTooLarge, match="MAX_PAYLOAD_BYTES"):
        one(event)

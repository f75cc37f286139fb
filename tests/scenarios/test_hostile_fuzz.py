"""What hypothesis sends: any body with any header is handled or dead-lettered with a reason."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import jetbridge
from jetbridge.models import Deferred
from jetbridge.registry import registry
from testproject.billing.models import Invoice
from tests.worlds import World, body, dead_letters, outbox

OBJECT = {"event_type": "order.placed", "payload": {}}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
MEMBERS = (
    "event_id",
    "event_type",
    "payload",
    "producer",
    "resource_id",
    "resource_type",
    "occurred_at",
    "produced_at",
    "trace_id",
    "schema_version",
)


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


@st.composite
def cut_bodies(draw: st.DrawFn) -> bytes:
    """A valid body with some bytes replaced, inserted or cut."""
    data = bytearray(body("x"))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data)


bodies = (
    st.binary(max_size=60)
    | json_values.map(encoded)
    | st.dictionaries(st.sampled_from(MEMBERS), json_values).map(lambda some: encoded({**OBJECT, **some}))
    | cut_bodies()
)
header_values = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=30
)
header_blocks = st.dictionaries(
    st.sampled_from(
        [
            "nats-msg-id",
            "Jetbridge-Key",
            "Jetbridge-Causation-Id",
            "Jetbridge-Correlation-Id",
            "traceparent",
            "nats-ttl",
            "x-dlq-context",
            "Content-Type",
        ]
    )
    | st.text(st.characters(codec="utf-8", exclude_characters="\r\n:"), max_size=8).filter(
        lambda name: not name.lower().startswith("nats-")
    ),
    header_values,
    max_size=4,
).map(lambda some: "\r\n".join(["NATS/1.0", *(f"{k}: {v}" for k, v in some.items()), "", ""]).encode())


# No shrinking: each example goes through servers.
@settings(max_examples=10, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(messages=st.lists(st.tuples(header_blocks, bodies), min_size=5, max_size=40))
def test_whatever_comes_is_handled_or_dead_lettered_with_a_reason(
    transactional_db: None, nats_server, handlers: None, messages: Sequence[tuple[bytes, bytes]]
):
    """
    Any body with any header: handled, dead-lettered with a reason, or a copy of one of these; the notices can
    be sent; and a good message that comes last is handled.
    """
    world = world_of(nats_server.url)
    handled: list[str] = []

    @jetbridge.handler(">", name="t.watch")
    def watch(event: jetbridge.Delivery) -> None:
        handled.append(str(event.event_id))
        Invoice.objects.create(order_id=1, event_id="x", total=1)
        jetbridge.publish("answer.given", {"id": 1})

    try:
        known = len(dead_letters())
        world.send_raw(*messages)
        good = uuid.uuid4().hex
        world.send(body(good))
        report = world.consume()

        totals = report.totals
        assert totals.handled + totals.dead + totals.duplicates == len(messages) + 1
        assert good in handled
        assert totals.handled == len(handled)
        letters = dead_letters()[known:]
        assert len(letters) == totals.dead
        assert all(letter.reason == "malformed_json" and letter.error for letter in letters)
        relayed = world.relay_of_billing()
        assert relayed.totals.refused == 0, [(row.headers, row.error) for row in outbox()]
        assert (world.stored(), Deferred.objects.count()) == ([], 0)
    finally:
        registry.remove("t.watch")


_worlds: dict[str, World] = {}


def world_of(url: str) -> World:
    """One world for all examples: provisioning would be most of their time."""
    if url not in _worlds:
        _worlds[url] = World(url, MAX_ATTEMPTS=1).provision()
    return _worlds[url]

"""
Copies of one event, however they come about: at once, past the duplicate window, by the thousand, after a lost ack.

The stream's window is a convenience; the inbox is what makes them one effect.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from typing import Any

import pytest
from django.db import connection, connections

import jetbridge
from jetbridge import signals
from jetbridge.conf import get_settings
from jetbridge.consumer import consumer, routing
from jetbridge.consumer.execute import Settled, execute
from jetbridge.jetstream import acks
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.incoming import Incoming
from jetbridge.models import Archive, InboxState
from jetbridge.registry import registry
from testproject.billing.models import Invoice
from tests.running import Processes, consuming, durable
from tests.servers import NatsServer
from tests.waiting import eventually
from tests.worlds import World, body, inbox, outbox

POSTGRES = connection.vendor == "postgresql"
WINDOW_S = 0.3
COPIES = int(os.environ.get("JETBRIDGE_TEST_COPIES") or 400)

DIES_AFTER_THE_ACK = """\
import os
import signal

from jetbridge import signals


def die(**_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


signals.publish_acked.connect(die, weak=False)
"""


def invoice(event: jetbridge.Delivery) -> None:
    """An effect that a test can count, and an answer."""
    Invoice.objects.create(order_id=1, event_id=str(event.event_id), total=0)
    jetbridge.publish("order.invoiced", {"id": 1})


def effects() -> Counter[str]:
    return Counter(Invoice.objects.values_list("event_id", flat=True))


def one_effect_of(world: World, *event_ids: str) -> None:
    """And one answer, by the first attempt, and nothing left in the stream."""
    assert effects() == dict.fromkeys(event_ids, 1)
    assert Counter(row.causation_id for row in outbox()) == dict.fromkeys(event_ids, 1)
    for row in inbox():
        assert (row.state, row.attempts, row.starts) == (InboxState.PROCESSED, 1, 1)
    assert eventually(
        lambda: [durable(world)[count] for count in ("num_pending", "num_ack_pending")] == [0, 0], 20
    )


def window_passes() -> None:
    begun = time.monotonic()
    eventually(lambda: time.monotonic() - begun > 2 * WINDOW_S, what="the duplicate window is over")


@pytest.fixture
def short(transactional_db: None, nats_server: NatsServer, handlers: None) -> World:
    """A stream that forgets message ids soon."""
    return World(nats_server.url, DUPLICATE_WINDOW_S=WINDOW_S).provision()


# --- at once -------------------------------------------------------------------------------------


def test_eight_copies_in_the_hands_of_two_consumers_at_once(world):
    """
    Story 15, without lanes and leases between them: eight threads meet at the unique key. Red (several runs) if a
    claim that inserted nothing counts as one.
    """
    runs: list[int] = []
    meeting = threading.Barrier(8)
    said: list[str] = []

    @jetbridge.handler(">", name="t.once")
    def handle(event: jetbridge.Delivery) -> None:
        runs.append(event.attempt)
        invoice(event)

    def copy(number: int) -> None:
        incoming = Incoming(
            subject=f"{world.shop}.sync.{world.billing}",
            reply="",
            headers={},
            body=body("same"),
            stream=f"jetbridge-{world.shop}",
            consumer="",
            sequence=number + 1,
            consumer_sequence=1,
            delivered=1,
            stored_ns=number,
            pending=0,
        )
        [job] = routing.jobs_of(incoming, registry, get_settings())
        try:
            meeting.wait(20)
            while not isinstance(settled := execute(job, get_settings(), owner=f"p{number % 2}"), Settled):
                pass
            said.append(settled.how)
        finally:
            connections.close_all()

    with world.as_billing(LOCK_TIMEOUT_S=5):
        threads = [threading.Thread(target=copy, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

    assert Counter(said) == {"handled": 1, "duplicate": 7}
    assert runs == [1]
    assert inbox()[0].duplicates == 7
    one_effect_of(world, "same")


def test_a_storm_of_copies_among_others(world):
    """
    Every copy is counted, the others are not starved, nothing deadlocks. Red (the counter) if a duplicate is counted
    by reading and writing instead of in one statement. JETBRIDGE_TEST_COPIES=2000 for a larger one.
    """

    @jetbridge.handler(">", name="t.once")
    def handle(event: jetbridge.Delivery) -> None:
        invoice(event)

    storm = [body("storm", resource_id="", payload={}) for _ in range(COPIES)]
    for n in range(100):  # one other event for every so many copies
        storm.insert(n * (COPIES // 100), body(f"e{n}", resource_id=str(n)))
    world.send(*storm)
    with connection.cursor() as cursor:
        before = deadlocks(cursor)
        report = world.consume(CONCURRENCY=8, timeout_s=90)
        after = deadlocks(cursor)

    assert report.totals.handled == 101
    assert report.totals.duplicates == COPIES - 1
    assert {row.event_id: row.duplicates for row in inbox() if row.duplicates} == {"storm": COPIES - 1}
    assert after == before
    one_effect_of(world, "storm", *(f"e{n}" for n in range(100)))


def deadlocks(cursor: Any) -> int:
    if not POSTGRES:
        return 0
    cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return int(cursor.fetchone()[0])


# --- past the window -----------------------------------------------------------------------------


def test_a_relay_that_dies_before_it_settles_and_comes_back_after_the_window(short, processes: Processes):
    """
    Story 7: the stream has every event twice. Red (two effects of each) if a claim that inserted nothing counts as one.
    """

    @jetbridge.handler(">", name="t.once")
    def handle(event: jetbridge.Delivery) -> None:
        invoice(event)

    with short.as_shop():
        ids = [jetbridge.publish("order.placed", {"id": n}) for n in range(20)]
    relay = processes.start("jetbridge_relay", keys=short.publisher, handlers=DIES_AFTER_THE_ACK)
    assert relay.wait(60) == -signal.SIGKILL, relay.log
    assert [row.event_id for row in outbox()] == ids
    assert len(short.stored()) == 20
    window_passes()

    short.relay()

    assert len(short.stored()) == 40
    assert Archive.objects.filter(duplicate=False).count() == 20
    report = short.consume()
    assert (report.totals.handled, report.totals.duplicates) == (20, 20)
    one_effect_of(short, *ids)


def test_one_id_passes_every_window(short):
    """Story 9: published again after each of five windows, before and after it is handled."""

    @jetbridge.handler(">", name="t.once")
    def handle(event: jetbridge.Delivery) -> None:
        invoice(event)

    for number in range(5):
        with short.as_shop():
            jetbridge.publish("order.placed", {"id": 1}, event_id="same")
        short.relay()
        if number in (1, 3):
            short.consume()
        window_passes()
    short.consume()

    assert Archive.objects.filter(duplicate=False).count() == 5
    assert inbox()[0].duplicates == 4
    one_effect_of(short, "same")


# --- acks that get lost --------------------------------------------------------------------------


def test_acks_that_get_lost_cost_a_redelivery_and_nothing_else(
    transactional_db, handlers, nats_server, monkeypatch
):
    """
    The first ack of each message goes nowhere, as on a broken line. Story 17 among them: a message without any id is
    named after its place, which a redelivery does not change. Red if its id were made up at each delivery.
    """
    world = World(nats_server.url, LEASE_S=2, ACK_WAIT_S=1, PUBLISH_TIMEOUT_S=1).provision()
    seen: Counter[str] = Counter()

    async def ack(connection: Connection, reply: str) -> bool:
        sequence = reply.split(".")[-4]
        seen[sequence] += 1
        return seen[sequence] > 1 and await acks.ack(connection, reply)

    class Dropping:
        nak, in_progress = staticmethod(acks.nak), staticmethod(acks.in_progress)

    Dropping.ack = staticmethod(ack)  # type: ignore[attr-defined]
    monkeypatch.setattr(consumer, "acks", Dropping)

    @jetbridge.handler(">", name="t.once")
    def handle(event: jetbridge.Delivery) -> None:
        invoice(event)

    world.send(*(body(None, resource_id=str(n)) for n in range(5)), *(body(f"e{n}") for n in range(5)))
    with consuming(world):
        eventually(lambda: len(seen) == 10 and min(seen.values()) == 2, 30, what="each is acked twice")

    assert [row.duplicates for row in inbox()] == [1] * 10
    one_effect_of(world, *(row.event_id for row in inbox()))


def test_a_broker_that_dies_between_commit_and_ack(transactional_db, handlers, make_nats_server):
    """Its effect stands, its ack is lost or late: no second effect, and it is acked in the end."""
    server: NatsServer = make_nats_server()
    world = World(server.url, LEASE_S=4, ACK_WAIT_S=1, PUBLISH_TIMEOUT_S=1).provision()
    committed: list[str] = []
    killed = threading.Event()

    def kill(delivery: jetbridge.Delivery, **_: object) -> None:
        committed.append(str(delivery.event_id))
        if len(committed) == 3:
            server.kill()
            killed.set()

    @jetbridge.handler(">", name="t.once")
    def handle(event: jetbridge.Delivery) -> None:
        invoice(event)

    world.send(*(body(f"e{n}", resource_id=str(n)) for n in range(10)))
    signals.handler_committed.connect(kill)
    try:
        with consuming(world):
            assert killed.wait(30)
            server.start()
            eventually(lambda: len(effects()) == 10, 30)
            one_effect_of(world, *(f"e{n}" for n in range(10)))
    finally:
        signals.handler_committed.disconnect(kill)
    assert max(row.duplicates for row in inbox()) <= 2

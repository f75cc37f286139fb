"""
Nothing hangs in silence: a call that never comes back is an outage with an end, or is seen from outside.

Each call of a loop's tick is made to hang, once. Where it runs on a thread, its deadline ends it and the loop goes
on. Where it waits on the event loop, or blocks it, the process says that it is stuck and gives its leases away.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection, connections, transaction

import jetbridge
from jetbridge import signals
from jetbridge.deferred import store as deferred
from jetbridge.jetstream.publisher import WindowPublisher
from jetbridge.jetstream.puller import Puller
from jetbridge.leases import heartbeat
from jetbridge.leases import store as leases
from jetbridge.models import Archive, Inbox, Outbox, Worker
from jetbridge.outbox import store
from jetbridge.relay import process
from jetbridge.runtime import loops, service, sessions, threads
from testproject.billing.models import Invoice
from tests.hanging import Hanging, frozen
from tests.proxy import Proxy
from tests.running import consuming, numbers, relaying
from tests.waiting import eventually
from tests.worlds import World, body

# 20 s by hand: JETBRIDGE_FREEZE_S=20 pytest tests/scenarios/test_watchdogs.py -k frozen
FREEZE_S = float(os.environ.get("JETBRIDGE_FREEZE_S") or 5)
SHORT = {"LEASE_S": 1.5, "ACK_WAIT_S": 1, "PUBLISH_TIMEOUT_S": 0.5, "DATABASE_TIMEOUT_S": 0.5}
SIGNALS = (
    signals.publish_acked,
    signals.outbox_settled,
    signals.handler_started,
    signals.handler_committed,
    signals.delivery_acked,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "BACKOFF_S", (0.05, 0.1))
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.5)
    if connection.vendor == "sqlite":  # its own time-out is the least there is, and 20 s are long
        monkeypatch.setattr(sessions, "deadline_s", lambda wanted_s, _aliases: wanted_s)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    made = Hanging(monkeypatch, for_s=60.0)
    monkeypatch.setattr(threads, "LOST_AT_MOST", 50)
    yield made
    made.go.set()


def publish(*ns: int, key: str = "k") -> None:
    for n in ns:
        jetbridge.publish("order.placed", {"n": n}, key=key)


def send(world: World, *ns: int, key: str = "k") -> None:
    world.send(*((body(f"e{n}", payload={"n": n}), {"Jetbridge-Key": key}) for n in ns))


def handle(**options: Any) -> None:
    @jetbridge.handler(">", name="t.invoice", **options)
    def _(event: jetbridge.Event) -> None:
        Invoice.objects.create(order_id=event.payload["n"], event_id=str(event.event_id), total=0)


@contextmanager
def hanging_handler() -> Iterator[tuple[threading.Event, threading.Event]]:
    """A handler of all events that does not return from the first one: (it has begun, let it return)."""
    started, go = threading.Event(), threading.Event()

    @jetbridge.handler(">", name="t.hangs", timeout=0.2, atomic=False)
    def _(event: jetbridge.Event) -> None:
        if event.payload["n"] == 1:
            started.set()
            go.wait(60)

    try:
        yield started, go
    finally:
        go.set()


def effects() -> list[int]:
    return list(Invoice.objects.order_by("id").values_list("order_id", flat=True))


def told(role: str, what: str) -> list[str]:
    """What a running process says of itself in its row."""
    row = Worker.objects.filter(role=role).order_by("-beat_at").first()
    return [] if row is None else list(row.info.get(what, []))


def archived() -> list[Archive]:
    """What was sent, in the order of the stream."""
    return list(Archive.objects.order_by("sequence"))


def held() -> int:
    """Leases that have an owner and have not run out."""
    return len(leases.held(using="default"))


# --- calls on threads ----------------------------------------------------------------------------


def test_every_statement_of_a_relay_may_hang_once(world, hanging):
    """Each is cut at its deadline, and the relay goes on. Red without deadline_s in its pools."""
    hanging.every_function_of(store)
    hanging.every_function_of(leases)
    with relaying(world, **SHORT):
        publish(1, 2, 3)
        eventually(lambda: numbers(world) == [1, 2, 3] and Outbox.objects.count() == 0, 60)
        eventually(lambda: "jetbridge.leases.store.beat" in hanging.hung)
        eventually(lambda: held() == 64 and told("relay", "stuck") == [], 30)

    assert {"jetbridge.outbox.store.page", "jetbridge.outbox.store.settle"} < set(hanging.hung)
    assert "jetbridge.leases.store.renew" in hanging.hung


def test_every_statement_of_a_consumer_may_hang_once(world, hanging):
    """Of those that are not the handlers'. Red without deadline_s in its pools."""
    handle()
    hanging.every_function_of(deferred)
    hanging.every_function_of(leases)
    with consuming(world, **SHORT):
        eventually(lambda: "jetbridge.leases.store.renew" in hanging.hung, 30)
        send(world, 1, 2, 3)
        eventually(lambda: effects() == [1, 2, 3], 60)
        eventually(
            lambda: {"jetbridge.leases.store.beat", "jetbridge.deferred.store.due"} < set(hanging.hung)
        )


# --- calls on the loop ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "stuck"),
    [(WindowPublisher, "publish", "relay"), (heartbeat.Heartbeat, "tick", "relay heartbeat")],
)
def test_a_relay_that_waits_for_ever_says_so_and_another_takes_over(
    world, monkeypatch, caplog, owner, name, stuck
):
    """Red without is_alive() in the holder's ``working``: only a relay's own tick would be missed."""
    monkeypatch.setattr(process, "END_S", 1.0)  # at its end it waits for what hangs
    hanging = Hanging(monkeypatch)
    hanging.at(owner, name)
    with relaying(world, **SHORT):
        publish(1)
        eventually(lambda: f"Stuck: {stuck}, overdue" in caplog.text, 30)
        eventually(lambda: held() == 0, 30)
        publish(2)
        world.relay(timeout_s=30)

    assert hanging.hung
    assert numbers(world) == [1, 2]


def test_a_receiver_that_blocks_the_event_loop_is_found_and_survived(world, monkeypatch, caplog):
    """``delivery_acked`` is sent on the loop. Red without the watchdog's thread: not a word of it anywhere."""
    monkeypatch.setattr(loops, "EVENT_LOOP_LIMIT_S", 0.5)
    blocked, go = threading.Event(), threading.Event()

    def receiver_that_blocks(**_: object) -> None:
        blocked.set()
        go.wait(60)

    handle()
    signals.delivery_acked.connect(receiver_that_blocks)
    try:
        with consuming(world, **SHORT), caplog.at_level(logging.WARNING, "jetbridge.runtime"):
            send(world, 1, 2, 3)
            assert blocked.wait(20)
            eventually(lambda: "Stuck: event loop" in caplog.text, 20)
            # What the database knows of this process runs out by itself, so another may take over.
            eventually(lambda: held() == 0, 20)
            go.set()
            eventually(lambda: effects() == [1, 2, 3], 30)
            eventually(lambda: "Not stuck any more: event loop" in caplog.text, 20)
            eventually(lambda: told("consumer", "stuck") == [], 20)
    finally:
        signals.delivery_acked.disconnect(receiver_that_blocks)
    assert "in receiver_that_blocks" in caplog.text


def test_a_pull_loop_that_ends_by_itself_is_begun_anew(world, monkeypatch, caplog):
    """Red without _check_pulling(): its durable would not be read any more, and nothing would say so."""
    real, raised = Puller._ask, list[bool]()

    def ask(puller: Puller) -> None:
        if not raised:
            raised.append(True)
            raise RuntimeError("a fault of ours")
        real(puller)

    handle()
    monkeypatch.setattr(Puller, "_ask", ask)
    with consuming(world, **SHORT):
        send(world, 1)
        eventually(lambda: effects() == [1], 20)

    assert "a fault of ours" in caplog.text


# --- callbacks -----------------------------------------------------------------------------------


def test_handlers_that_never_return_leave_the_process_stuck_until_one_does(world, monkeypatch, caplog):
    """Its thread cannot be stopped; with the last one taken the leases go to another. Red without is_choked()."""
    with hanging_handler() as (started, go), consuming(world, **SHORT, CONCURRENCY=1):
        send(world, 1, 2)
        assert started.wait(20)
        eventually(lambda: told("consumer", "stuck") == ["handlers"], 30)
        assert told("consumer", "overdue") == [f"t.hangs {world.shop}/e1"]
        eventually(lambda: held() == 0, 20)
        go.set()
        eventually(lambda: told("consumer", "stuck") == [] and held() == 1, 30)
    assert "It keeps its thread and its key until it returns" in caplog.text


@pytest.mark.postgres
def test_one_that_never_returns_while_another_must_run_alone_leaves_the_process_stuck(world):
    """
    Whoever must run alone waits for every thread, and nobody overtakes it: one hanging handler stops them all.
    Red if only the threads that are taken are counted: three are free, and no event ever gets one.
    """
    died = {"handler": "t.hangs", "source": world.shop, "event_id": "e2", "stream": "", "sequence": 2}
    Inbox.objects.create(**died, state="running", starts=1, claimed_by="somebody who died of it")
    with hanging_handler() as (started, go), consuming(world, **SHORT, CONCURRENCY=4):
        send(world, 1, key="a")
        assert started.wait(20)
        send(world, 2, key="b")
        send(world, 3, key="c")
        eventually(lambda: told("consumer", "stuck") == ["handlers"], 20)
        eventually(lambda: held() == 0, 20)
        go.set()
        eventually(lambda: Inbox.objects.filter(state="processed").count() == 3, 30)
        eventually(lambda: told("consumer", "stuck") == [] and held() == 1, 30)


def test_callbacks_that_raise_stop_nothing(world):
    """Receivers at every point, a hook of the commit, a log handler. Red without the guards of each."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("the log server is away")

    def receiver(**_: object) -> None:
        raise SystemExit("a receiver that exits")

    def hook() -> None:
        raise RuntimeError("a hook that fails")

    @jetbridge.handler(">", name="t.hooked")
    def _(event: jetbridge.Event) -> None:
        Invoice.objects.create(order_id=event.payload["n"], event_id=str(event.event_id), total=0)
        transaction.on_commit(hook)

    broken = Broken()
    logging.getLogger("jetbridge").addHandler(broken)
    for signal in SIGNALS:
        signal.connect(receiver)
    try:
        with consuming(world, **SHORT), relaying(world, **SHORT):
            publish(1, 2, 3)
            eventually(lambda: effects() == [1, 2, 3] and Outbox.objects.count() == 0, 40)
            eventually(lambda: Worker.objects.count() == 2)
            assert told("relay", "stuck") == told("consumer", "stuck") == []
    finally:
        logging.getLogger("jetbridge").removeHandler(broken)
        for signal in SIGNALS:
            signal.disconnect(receiver)


# --- the database --------------------------------------------------------------------------------


@pytest.mark.postgres
def test_sessions_that_hear_nothing_any_more_are_left(world, monkeypatch, postgres_server):
    """
    A pooler that hangs, a backend that is stuck: every byte is acknowledged, none is answered, and new sessions
    work. Red without deadline_s: the relay would wait in the old ones for ever.
    """
    connection.ensure_connection()  # the test's own goes straight to the server
    with Proxy(postgres_server.port) as proxy:
        monkeypatch.setitem(connections.settings["default"], "PORT", str(proxy.port))
        with relaying(world, **SHORT):
            publish(1)
            eventually(lambda: Outbox.objects.count() == 0, 20)
            proxy.strand()
            publish(2, 3)
            eventually(lambda: Outbox.objects.count() == 0, 40)
            eventually(lambda: held() == 64 and told("relay", "stuck") == [], 30)
    assert numbers(world) == [1, 2, 3]


@pytest.mark.postgres
def test_a_frozen_postgres_leaves_nothing_dead_and_no_lease_is_acted_on_too_long(
    world, monkeypatch, postgres_server, caplog
):
    """
    Every process of the server is stopped, so nothing answers and nothing breaks: its kernel acknowledges. Who asks
    is told so meanwhile, which is red without deadlines, and goes on when the server does.
    """
    late: list[float] = []
    real = WindowPublisher.publish

    async def publish_page(publisher: WindowPublisher, messages: Any, *, deadline_s: float) -> Any:
        begun = time.monotonic()
        results = await real(publisher, messages, deadline_s=deadline_s)
        if frozen_at and begun - frozen_at[0] > SHORT["LEASE_S"] and len(thawed) == 0:
            late.append(begun - frozen_at[0])
        return results

    handle()
    frozen_at, thawed = list[float](), list[float]()
    monkeypatch.setattr(WindowPublisher, "publish", publish_page)
    with consuming(world, **SHORT), relaying(world, **SHORT), relaying(world, **SHORT):
        publish(*range(20))
        eventually(lambda: len(effects()) == 20, 30)
        publish(*range(20, 60))
        with frozen(postgres_server):
            frozen_at.append(time.monotonic())
            threading.Event().wait(FREEZE_S)
            assert "relay: the database does not answer" in caplog.text
            assert "consumer leases: the database does not answer" in caplog.text
            thawed.append(time.monotonic())
        publish(*range(60, 80))
        eventually(lambda: len(effects()) == 80 and Outbox.objects.count() == 0, 40)
        took_s = time.monotonic() - thawed[0]
        eventually(lambda: told("relay", "stuck") == told("consumer", "stuck") == [], 20)

    assert late == []
    # Each once; in order as far as the stream. Behind a lost lease the consumer does not keep it yet.
    assert sorted(effects()) == list(range(80))
    assert [json.loads(bytes(row.body))["payload"]["n"] for row in archived()] == list(range(80))
    assert took_s < 30

"""A consumer through crashes, outages and takeovers: no effect doubled or lost, no attempt spent on another's fault."""

from __future__ import annotations

import logging
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection

import jetbridge
from jetbridge.models import DeadLetter, InboxState, Lease
from jetbridge.models.clock import WallClock
from testproject.billing.models import Invoice
from testproject.postgres import Postgres
from tests.running import Processes, consuming, databases_of_tests, durable
from tests.servers import NatsServer
from tests.waiting import eventually
from tests.worlds import World, body, dead_letters, inbox

SHORT = {"LEASE_S": 2, "ACK_WAIT_S": 1, "PUBLISH_TIMEOUT_S": 1}

# A handler that says when it runs and goes on when the test says so.
GATED = """\
import os
import threading
from pathlib import Path

import jetbridge
from testproject.billing.models import Invoice

LAB = Path(os.environ["LAB_DIR"])


@jetbridge.handler(">", name="t.gated")
def handle(event: jetbridge.Delivery) -> None:
    Invoice.objects.create(order_id=event.payload["n"], event_id=event.event_id, total=0)
    (LAB / f"started-{event.payload['n']}").touch()
    while event.payload["n"] == 0 and not (LAB / "go").exists():
        threading.Event().wait(0.01)
"""


def send(world: World, *ns: int, key: str = "k") -> None:
    world.send(*((body(f"e{n}", payload={"n": n}), {"Jetbridge-Key": key}) for n in ns))


def number(event: jetbridge.Event) -> int:
    return int(str(event.payload["n"]))


def effects() -> list[int]:
    return list(Invoice.objects.order_by("id").values_list("order_id", flat=True))


@pytest.fixture
def lab(processes: Processes) -> Path:
    """Where gated handlers leave their signs."""
    processes.folder.mkdir(parents=True, exist_ok=True)
    return processes.folder


def started(lab: Path, n: int) -> None:
    eventually(lambda: (lab / f"started-{n}").exists(), 20, what=f"the handler of {n} runs")


# --- the end of a process ------------------------------------------------------------------------


def test_sigterm_finishes_what_runs_and_gives_back_what_waits(world, processes, lab):
    """Exit code 0; the running event is settled, those that wait are with the next consumer at once."""
    send(world, *range(10))
    consumer = processes.consumer(world, GATED, LEASE_S=60)  # one pull of 20 s: no moment without one
    started(lab, 0)
    consumer.send(signal.SIGTERM)
    consumer.says("SIGTERM: draining.")
    eventually(lambda: durable(world)["num_waiting"] == 0)
    (lab / "go").touch()

    assert consumer.wait() == 0
    assert Lease.objects.exclude(owner="").count() == 0
    done = effects()
    assert 0 in done
    assert len(done) < 10

    second = processes.consumer(world, GATED, "--until-empty", "--timeout", "20")
    assert second.wait() == 0, second.log
    assert sorted(effects()) == list(range(10))
    assert second.last_line["duplicates"] == 0
    assert durable(world)["num_ack_pending"] == 0


def test_a_handler_that_hangs_does_not_keep_a_drained_process(world, processes, lab):
    """
    SHUTDOWN_TIMEOUT_S is kept, exit code 1 says that it was not enough, and what waited behind the hanging
    one stays behind it. Red with threads that the interpreter waits for; and if followers of a running item
    are given back.
    """
    send(world, 0, 1, key="a")
    send(world, 2, 3, key="b")
    consumer = processes.consumer(world, GATED, CONCURRENCY=1, SHUTDOWN_TIMEOUT_S=0.5)
    started(lab, 0)
    asked = time.monotonic()

    assert consumer.terminate() == 1, consumer.log
    # On SQLite it holds the write lock, and handing the lease back and signing off fail after 5 s each.
    assert time.monotonic() - asked < 15
    assert "1 attempts were still running" in consumer.log
    assert effects() == []

    (lab / "go").touch()
    second = processes.consumer(world, GATED, "--until-empty", "--timeout", "20")
    assert second.wait() == 0, second.log
    order = effects()
    assert sorted(order) == [0, 1, 2, 3]
    assert order.index(0) < order.index(1)


def test_a_second_signal_ends_at_once_with_143(world, processes, lab):
    """And the event is whole at the next one: its transaction is rolled back by the database."""
    send(world, 0)
    consumer = processes.consumer(world, GATED)
    started(lab, 0)
    consumer.send(signal.SIGTERM)
    consumer.says("SIGTERM: draining.")
    consumer.send(signal.SIGTERM)

    assert consumer.wait(5) == 143
    eventually(lambda: effects() == [])


def test_a_kill_in_the_middle_of_a_handler_leaves_one_effect(world, processes, lab):
    """SIGKILL between the effect and its commit: rolled back, redelivered, done once, and a standby does it."""
    send(world, 0, 1)
    first = processes.consumer(world, GATED, **SHORT)
    started(lab, 0)
    second = processes.consumer(world, GATED, **SHORT).says("Connected to")

    first.kill()
    (lab / "go").touch()

    eventually(lambda: effects() == [0, 1], 15)
    second.says("Pulling")
    eventually(lambda: durable(world)["num_ack_pending"] == 0)
    assert second.terminate() == 0
    assert [(row.state, row.attempts) for row in inbox()] == [(InboxState.PROCESSED, 1)] * 2


def test_only_one_of_two_consumers_pulls(world, processes):
    """The standby says nothing to the stream until the lease is free; then it takes over without a restart."""
    first = processes.consumer(world, GATED, **SHORT).says("Pulling")
    second = processes.consumer(world, GATED, **SHORT).says("Connected to")
    eventually(lambda: Lease.objects.filter(owner__contains=f":{first.pid}:").count() == 1)

    assert first.terminate() == 0
    handed = time.monotonic()
    second.says("Pulling")

    assert time.monotonic() - handed < 5
    send(world, 5)
    eventually(lambda: effects() == [5])
    assert second.terminate() == 0


def test_a_lost_lease_stops_pulling_and_acking(world, caplog):
    """
    Another took the lease while a handler ran: its effect stands, its ack is not sent, what waited is not
    run here. Red if abandon() does nothing: the waiting event would run at both.
    """
    begun, go = threading.Event(), threading.Event()
    ran: list[int] = []

    @jetbridge.handler(">", name="t.lost", atomic=False)  # SQLite's one write lock is for the thief
    def handle(event: jetbridge.Event) -> None:
        ran.append(number(event))
        begun.set()
        assert go.wait(20)

    send(world, 0, 1)
    with consuming(world, **SHORT):
        assert begun.wait(10)
        eventually(lambda: durable(world)["num_ack_pending"] == 2)
        Lease.objects.update(owner="thief", expires_at=WallClock(60))
        eventually(lambda: "is lost; its messages are another's now" in caplog.text)
        go.set()
        eventually(lambda: len(inbox()) == 1)
        assert durable(world)["num_ack_pending"] == 2
        eventually(lambda: durable(world)["num_waiting"] == 0, what="it pulls no more")
    assert ran == [0]

    Lease.objects.update(owner="", expires_at=WallClock())
    world.consume()
    assert ran == [0, 1]
    assert [row.duplicates for row in inbox()] == [1, 0]


# --- NATS is away --------------------------------------------------------------------------------


def test_a_consumer_waits_for_its_server_and_then_for_its_durable(
    transactional_db, handlers, make_nats_server, caplog
):
    """Started first, it needs neither a restart nor an order; the log names what is missing and what to run."""
    server: NatsServer = make_nats_server()
    server.stop()
    world = World(server.url)
    seen: list[int] = []

    @jetbridge.handler(">", name="t.late")
    def handle(event: jetbridge.Event) -> None:
        seen.append(number(event))

    with consuming(world), caplog.at_level(logging.WARNING, "jetbridge"):
        server.start()
        words = f"The durable {world.billing}-workers does not exist in the stream jetbridge-{world.shop}"
        eventually(lambda: words in caplog.text)
        assert "manage.py jetbridge_provision" in caplog.text
        world.provision()
        with world.as_billing():
            send(world, 1)
            eventually(lambda: seen == [1])


def test_a_restarted_broker_is_met_without_a_word(transactional_db, handlers, make_nats_server):
    """A handler runs through the outage; its event is settled once, and the next ones follow by themselves."""
    server: NatsServer = make_nats_server()
    world = World(server.url).provision()
    begun, go = threading.Event(), threading.Event()

    @jetbridge.handler(">", name="t.through")
    def handle(event: jetbridge.Event) -> None:
        if number(event) == 0:
            begun.set()
            assert go.wait(20)
        Invoice.objects.create(order_id=number(event), event_id="x", total=0)

    send(world, 0, 1)
    with consuming(world):
        assert begun.wait(10)
        server.restart(hard=True)
        go.set()
        eventually(lambda: effects() == [0, 1], 15)
        send(world, 2)
        eventually(lambda: effects() == [0, 1, 2], 15)
        eventually(lambda: durable(world)["num_ack_pending"] == 0, 15)
    assert DeadLetter.objects.count() == 0


# --- the database is away ------------------------------------------------------------------------


@pytest.mark.sqlite
def test_a_locked_database_spends_no_attempt(world, processes):
    """Another process holds the write lock for longer than the driver waits. Red if "locked" is a failure."""
    name = connection.settings_dict["NAME"]
    handlers = GATED.replace("event.payload['n'] == 0", "False").replace('event.payload["n"] == 0', "False")
    consumer = processes.start(
        "jetbridge_consume",
        keys={**world.consumer, "MAX_ATTEMPTS": 1},
        handlers=handlers,
        databases=databases_of_tests(timeout=0.2),
    )
    consumer.says("Pulling")
    with sqlite3.connect(name, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        send(world, 1, 2)
        consumer.says("Handlers wait: the database 'default' does not answer")
        assert "locked" in consumer.log
        other.execute("COMMIT")
    other.close()
    unlocked = time.monotonic()
    eventually(lambda: effects() == [1, 2])
    assert time.monotonic() - unlocked < 4
    assert [(row.state, row.attempts) for row in inbox()] == [(InboxState.PROCESSED, 1)] * 2
    assert DeadLetter.objects.count() == 0
    assert consumer.terminate() == 0


@pytest.fixture
def own_postgres(server_dir: Path, request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A PostgreSQL to stop and start."""
    with Postgres(server_dir / f"own-{time.monotonic_ns()}", fsync=False) as server:
        yield server


@pytest.mark.postgres
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restarted_database_spends_no_attempt(nats_server, own_postgres, processes, lab, mode):
    """
    Stopped in the middle of a handler and started again: the event runs once more as attempt 1, with
    MAX_ATTEMPTS=1 to show it, and those behind it follow by themselves.
    """
    world = World(nats_server.url, MAX_ATTEMPTS=1, LEASE_S=3, ACK_WAIT_S=1, PUBLISH_TIMEOUT_S=1).provision()
    url = own_postgres.create_database("lab")
    databases = databases_of_tests()
    databases = {"default": {**databases["default"], "NAME": "lab", "PORT": str(own_postgres.port)}}
    migrated = processes.start("migrate", "-v", "0", keys=world.consumer, databases=databases)
    assert migrated.wait(60) == 0, migrated.log
    send(world, 0, 1)
    consumer = processes.start("jetbridge_consume", keys=world.consumer, handlers=GATED, databases=databases)
    started(lab, 0)

    own_postgres.stop(mode)
    (lab / "go").touch()
    consumer.says("waits 1.0 s: ")
    own_postgres.start()
    back = time.monotonic()

    def rows(statement: str) -> list[Any]:
        with psycopg.connect(url) as session:
            return session.execute(statement).fetchall()

    eventually(lambda: rows("SELECT order_id FROM billing_invoice ORDER BY id") == [(0,), (1,)], 20)
    assert time.monotonic() - back < 10
    assert rows("SELECT state, attempts FROM jetbridge_inbox ORDER BY id") == [("processed", 1)] * 2
    assert rows("SELECT count(*) FROM jetbridge_dead_letter") == [(0,)]
    eventually(lambda: durable(world)["num_ack_pending"] == 0)
    assert consumer.terminate() == 0


# --- what is in the way --------------------------------------------------------------------------


def test_a_handler_that_is_gone_does_not_stop_the_others(world):
    """An unknown event is a dead letter that names it; the consumer goes on."""

    @jetbridge.handler("order.known", name="t.known")
    def handle(event: jetbridge.Event) -> None:
        Invoice.objects.create(order_id=number(event), event_id="x", total=0)

    world.send(body("u1", "order.unknown", payload={"n": 1}), body("k1", "order.known", payload={"n": 2}))
    report = world.consume()

    assert (effects(), report.totals.dead) == ([2], 1)
    assert dead_letters()[0].reason == "unknown_event"
    assert "No handler wants 'order.unknown'" in dead_letters()[0].error

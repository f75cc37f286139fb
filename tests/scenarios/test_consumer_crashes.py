"""Handlers that kill their process are held against their events; ends of a process through nobody's fault are not."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import call_command

import jetbridge
from jetbridge.models import DeadLetter, Inbox, InboxState, Worker
from testproject.billing.models import Invoice
from testproject.postgres import Postgres
from tests.running import Process, Processes, consuming, databases_of_tests, durable
from tests.servers import NatsServer
from tests.waiting import eventually
from tests.worlds import World, body, dead_letters, inbox

SHORT: dict[str, Any] = {"LEASE_S": 1, "ACK_WAIT_S": 0.5, "PUBLISH_TIMEOUT_S": 0.5}
ONE_SHOT = ("--until-empty", "--timeout", "60")

# What to do stands in the payload. Every start leaves a line; all of a process's threads are busy when it dies.
DEADLY = """\
import os
import signal
import threading
from pathlib import Path

import jetbridge
from testproject.billing.models import Invoice

LAB = Path(os.environ["LAB_DIR"])


@jetbridge.handler(">", name="t.deadly")
def handle(event: jetbridge.Delivery) -> None:
    n, end = event.payload["n"], event.payload.get("end")
    with (LAB / "starts").open("a") as file:
        file.write(f"{n}\\n")
    Invoice.objects.create(order_id=n, event_id=event.event_id, total=0)
    if end == "hang":
        while not (LAB / "go").exists():
            threading.Event().wait(0.01)
    elif end and not (LAB / "cured").exists():
        threading.Event().wait(0.05)
        if end == "exit":
            os._exit(1)
        os.kill(os.getpid(), getattr(signal, end))
        threading.Event().wait(60)  # it is the main thread's to die of, and this one could commit meanwhile
    threading.Event().wait(0.02 if os.environ.get("JETBRIDGE_TEST_DB") == "postgres" else 0.001)
"""


def send(world: World, *ns: int, **ends: str) -> None:
    """Events, each with a key of its own; ``ends={"_7": "exit"}`` makes 7 a deadly one."""
    world.send(
        *((body(f"e{n}", payload={"n": n, "end": ends.get(f"_{n}")}), {"Jetbridge-Key": f"k{n}"}) for n in ns)
    )


@pytest.fixture
def world(transactional_db: None, nats_server: NatsServer, handlers: None) -> World:
    """As everywhere, but what a dead process had in hand comes back at once: the durable is made so."""
    return World(nats_server.url, **SHORT).provision()


@pytest.fixture
def lab(processes: Processes) -> Path:
    processes.folder.mkdir(parents=True, exist_ok=True)
    return processes.folder


def starts(lab: Path) -> list[int]:
    """Numbers of the events whose handler was started, in order."""
    file = lab / "starts"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def consume(world: World, processes: Processes, **keys: Any) -> list[int]:
    """Start the consumer again whenever it dies, until everything is done; the exit codes of those that died."""
    died: list[int] = []
    while True:
        consumer = processes.consumer(world, DEADLY, *ONE_SHOT, **keys)
        code = consumer.wait(90)
        if code in (0, 3):  # 3: there are dead letters
            return died
        assert code in (1, -signal.SIGSEGV, -signal.SIGKILL), consumer.log
        died.append(code)
        assert len(died) < 15, "it goes on for ever"


def effects() -> list[int]:
    return sorted(Invoice.objects.values_list("order_id", flat=True))


def redrive(world: World) -> None:
    with world.as_billing():
        call_command("jetbridge_dlq", "redrive", "--all", verbosity=0)


def test_a_deadly_message_among_200_dies_alone(world, processes, lab):
    """
    Eight threads die with it, twice; then it dies alone. Red without the start in a commit of its own: it never
    ends. Red if blamed events run side by side: neighbours gather deaths.
    """
    send(world, *range(201), _100="exit")

    died = consume(world, processes, CONCURRENCY=8)

    # A first delivery is not on record, the next three are. On a busy machine it came again before its turn.
    assert died in ([1] * 3, [1] * 4)
    assert starts(lab).count(100) == len(died)
    assert effects() == [n for n in range(201) if n != 100]
    (letter,) = dead_letters()
    assert (letter.event_id, letter.reason, letter.starts, letter.attempts) == ("e100", "crashed", 3, 0)
    good = inbox(state=InboxState.PROCESSED)
    assert len(good) == 200
    assert {row.attempts for row in good} == {1}
    assert max(row.starts for row in good) <= 2, "an innocent is blamed once at most"
    assert (durable(world)["num_ack_pending"], durable(world)["num_pending"]) == (0, 0)


def test_two_deadly_messages_of_other_kinds(world, processes, lab):
    """A segmentation fault and the out-of-memory killer; neither is let go for the other's deaths."""
    send(world, *range(20), _5="SIGSEGV", _12="SIGKILL")

    died = consume(world, processes)

    assert set(died) == {-signal.SIGSEGV, -signal.SIGKILL}
    assert effects() == [n for n in range(20) if n not in (5, 12)]
    assert [(letter.event_id, letter.reason, letter.starts) for letter in dead_letters()] == [
        ("e5", "crashed", 3),
        ("e12", "crashed", 3),
    ]
    assert durable(world)["num_ack_pending"] == 0


def test_a_redriven_deadly_message_dies_again_and_is_handled_once_it_is_cured(world, processes, lab):
    """Nothing counts the deliveries of a stored message, so its start is always on record. Fresh starts each time."""
    send(world, 0, _0="exit")
    assert len(consume(world, processes, MAX_STARTS=1)) == 2
    redrive(world)
    assert len(consume(world, processes, MAX_STARTS=1)) == 1
    (letter,) = dead_letters()
    assert (letter.reason, letter.state, letter.redrives, letter.starts) == ("crashed", "open", 1, 1)

    (lab / "cured").touch()
    redrive(world)
    assert consume(world, processes, MAX_STARTS=1) == []

    assert effects() == [0]
    assert [(row.state, row.attempts, row.starts) for row in inbox()] == [(InboxState.PROCESSED, 1, 1)]
    assert dead_letters()[0].state == "redriven"


def started(lab: Path, times: int, consumer: Process) -> None:
    eventually(lambda: len(starts(lab)) >= times, 20, what=f"start {times}; its log:\n{consumer.log[-2000:]}")


def test_rolling_restarts_in_the_middle_of_a_handler_blame_nobody(world, processes, lab):
    """
    Ten times SIGTERM, ten times the handler outlasts SHUTDOWN_TIMEOUT_S. Red if what still runs is left to its
    thread: its row is locked, and each end would count as a death.
    """
    send(world, 0, _0="hang")
    for number in range(1, 11):
        consumer = processes.consumer(world, DEADLY, SHUTDOWN_TIMEOUT_S=0.2)
        started(lab, number, consumer)
        asked = time.monotonic()
        assert consumer.terminate() == 1, consumer.log
        assert time.monotonic() - asked < 5, consumer.log
        # Of the first delivery there is no start to give back.
        assert [(row.state, row.attempts, row.starts) for row in inbox()] == (
            [] if number == 1 else [(InboxState.RETRYING, 0, 0)]
        ), consumer.log
    assert effects() == []

    (lab / "go").touch()
    assert consume(world, processes) == []
    assert effects() == [0]
    assert [(row.state, row.attempts, row.starts) for row in inbox()] == [(InboxState.PROCESSED, 1, 1)]
    assert DeadLetter.objects.count() == 0


def test_a_forced_end_blames_nobody(world, processes, lab):
    """A second SIGTERM in the middle of a suspect's handler. Red without the last act before the exit."""
    send(world, 0, _0="hang")
    first = processes.consumer(world, DEADLY)
    started(lab, 1, first)
    first.kill()  # of this start there is no record
    second = processes.consumer(world, DEADLY)
    started(lab, 2, second)

    second.send(signal.SIGTERM)
    second.says("SIGTERM: draining.")
    second.send(signal.SIGTERM)

    assert second.wait(20) == 128 + signal.SIGTERM
    assert [(row.state, row.attempts, row.starts) for row in inbox()] == [(InboxState.RETRYING, 0, 0)]


@pytest.mark.postgres
def test_deployments_without_patience_blame_nobody(world, processes, lab):
    """
    SIGTERM, and SIGKILL before SHUTDOWN_TIMEOUT_S is over, three times in the middle of one event's handler, of
    which one death would be too many. Red if a process that drains does not say so, or nobody asks.
    """
    send(world, 0, _0="hang")
    for number in range(1, 5):
        consumer = processes.consumer(world, DEADLY, MAX_STARTS=1)
        started(lab, number, consumer)
        consumer.send(signal.SIGTERM)
        pid = consumer.pid
        eventually(lambda: Worker.objects.filter(pid=pid, info__draining=True).exists(), 20)  # noqa: B023
        consumer.kill()

    (lab / "go").touch()
    assert consume(world, processes, MAX_STARTS=1) == []
    assert effects() == [0]
    assert [(row.state, row.attempts, row.starts) for row in inbox()] == [(InboxState.PROCESSED, 1, 1)]
    assert DeadLetter.objects.count() == 0


def test_draining_while_an_event_waits_to_be_alone(world):
    """It waits for a handler that runs, and gives up waiting when that has ended; the next consumer handles it."""
    begun, go = threading.Event(), threading.Event()
    ran: list[str] = []

    @jetbridge.handler(">", name="t.alone")
    def handle(event: jetbridge.Delivery) -> None:
        ran.append(str(event.event_id))
        if event.event_id == "e0":
            begun.set()
            assert go.wait(20)

    Inbox.objects.create(
        handler="t.alone",
        source=world.shop,
        event_id="e1",
        event_type="order.placed",
        stream="s",
        sequence=1,
        state=InboxState.RUNNING,
        starts=1,
        claimed_by="gone",
    )
    with consuming(world) as consumer:
        send(world, 0)
        assert begun.wait(10)
        send(world, 1, 2)
        eventually(lambda: durable(world)["num_ack_pending"] == 3)
        consumer.ask_to_stop()
        eventually(lambda: durable(world)["num_waiting"] == 0)
        go.set()
    assert "e1" not in ran

    world.consume()
    assert sorted(ran) == ["e0", "e1", "e2"]
    assert [(row.state, row.attempts, row.starts) for row in inbox(event_id="e1")] == [
        (InboxState.PROCESSED, 1, 2)
    ]


@pytest.fixture
def own_postgres(server_dir: Path) -> Iterator[Postgres]:
    """A PostgreSQL to stop and start."""
    with Postgres(server_dir / f"own-{time.monotonic_ns()}", fsync=False) as server:
        yield server


@pytest.mark.postgres
def test_an_outage_of_the_database_is_not_held_against_a_suspect(
    nats_server: NatsServer, own_postgres: Postgres, processes: Processes, lab: Path
) -> None:
    """
    Three outages in the middle of the handler of a redelivered event; a single start that counted would kill
    it. Red if a process takes its own unfinished start for a dead one's.
    """
    world = World(nats_server.url, MAX_ATTEMPTS=1, MAX_STARTS=1, **SHORT).provision()
    url = own_postgres.create_database("lab")
    databases = databases_of_tests()
    databases = {"default": {**databases["default"], "NAME": "lab", "PORT": str(own_postgres.port)}}
    migrated = processes.start("migrate", "-v", "0", keys=world.consumer, databases=databases)
    assert migrated.wait(60) == 0, migrated.log

    def consumer() -> Process:
        return processes.start(
            "jetbridge_consume", "-v", "2", keys=world.consumer, handlers=DEADLY, databases=databases
        )

    def row() -> tuple[Any, ...]:
        with psycopg.connect(url) as session:
            found = session.execute("SELECT state, attempts, starts FROM jetbridge_inbox").fetchall()
            return found[0] if found else ()

    send(world, 0, _0="hang")
    first = consumer()
    started(lab, 1, first)
    first.kill()
    second = consumer()
    for number in (2, 3, 4):
        started(lab, number, second)
        assert row() == ("running", 0, 1)
        said = second.log.count("waits 1.0 s: ")
        own_postgres.stop("immediate")
        (lab / "go").touch()
        eventually(lambda: second.log.count("waits 1.0 s: ") > said, 20)  # noqa: B023
        (lab / "go").unlink()
        own_postgres.start()
    started(lab, 5, second)
    (lab / "go").touch()

    eventually(lambda: row() == ("processed", 1, 1), 20, what=second.log[-2000:])
    eventually(lambda: durable(world)["num_ack_pending"] == 0)
    assert second.terminate() == 0

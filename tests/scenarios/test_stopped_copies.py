"""
A consumer that is stopped (SIGSTOP, a frozen virtual machine, a line that went dead) while it handles an event: its
key is free again within the configured time, and what it does when it comes back has no second effect.

The configured time, after which another consumer has handled the event: LEASE_S until it pulls, ACK_WAIT_S until the
event comes again, one and a half HANDLER_TIMEOUT_S (at most thirty seconds more than it) until the database ends the
stopped one's transaction. They run side by side; the longest counts.

With JETBRIDGE_TEST_STOPPED_S=60 each stop lasts a minute, under terms that are near the defaults, and what was seen is
printed (pytest -s --timeout 0).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

import jetbridge
from jetbridge.models import DeadLetter, Lease
from jetbridge.models.clock import WallClock
from testproject.billing.models import Invoice
from tests.running import Process, Processes, consuming, databases_of_tests, durable
from tests.servers import NatsServer
from tests.waiting import eventually
from tests.worlds import World, body, dead_letters, inbox

TERMS: dict[str, Any] = {
    "LEASE_S": 2,
    "ACK_WAIT_S": 1,
    "PUBLISH_TIMEOUT_S": 1,
    "HANDLER_TIMEOUT_S": 2,
    "LOCK_TIMEOUT_S": 0.3,
    "MAX_ATTEMPTS": 1,
}
WITHIN_S = 30.0  # three seconds by those terms; the rest is for a busy machine
STOPPED_S = float(os.environ.get("JETBRIDGE_TEST_STOPPED_S", "0"))
if STOPPED_S:
    TERMS |= {"LEASE_S": 15, "ACK_WAIT_S": 10, "PUBLISH_TIMEOUT_S": 5, "HANDLER_TIMEOUT_S": 20}
    WITHIN_S = 1.5 * TERMS["HANDLER_TIMEOUT_S"] + 5

# The first process to come to the point named in the file stops itself there. The signal goes to the thread, which
# stops as it returns from the call; os.kill lets another thread take it, and this one write its row meanwhile.
STOPPING = """\
import os
import signal
import threading
from pathlib import Path

import jetbridge
from jetbridge import signals
from testproject.billing.models import Invoice

LAB = Path(os.environ["LAB_DIR"])


def point(name):
    try:
        (LAB / name).rename(LAB / "stopped")
    except FileNotFoundError:
        return
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def claimed(**facts):
    point("claimed")


def committed(**facts):
    point("committed")


signals.handler_started.connect(claimed)
signals.handler_committed.connect(committed)


@jetbridge.handler("order.placed", name="t.stops")
@jetbridge.handler("order.paid", name="t.stops-without", atomic=False)
def handle(event):
    Invoice.objects.create(order_id=event.payload["n"], event_id=event.event_id, total=0)
    point("written")
"""


def send(world: World, *ns: int, event_type: str = "order.placed") -> None:
    """Events of one key."""
    world.send(*((body(f"e{n}", event_type, payload={"n": n}), {"Jetbridge-Key": "k"}) for n in ns))


def effects() -> list[int]:
    return list(Invoice.objects.order_by("id").values_list("order_id", flat=True))


@pytest.fixture
def world(transactional_db: None, nats_server: NatsServer, handlers: None) -> World:
    return World(nats_server.url, **TERMS).provision()


@pytest.fixture
def lab(processes: Processes) -> Path:
    processes.folder.mkdir(parents=True, exist_ok=True)
    return processes.folder


def is_stopped(process: Process) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


LOST = "is lost; its messages are another's now"
# Where it is stopped, what with, and how often that has an effect.
STOPS = (
    ("claimed", "order.placed", 1),
    ("written", "order.placed", 1),
    ("committed", "order.placed", 1),
    ("written", "order.paid", 2),
)


@pytest.mark.postgres
def test_a_stopped_consumer_frees_its_key_and_comes_back_without_a_second_effect(world, processes, lab):
    """
    Two consumers take turns: one is stopped, the other takes over, and is the next. After the claim, before the
    commit, before the ack; and without a transaction, which is at least once and says so. Red at the first two
    without the limit on idle transactions: the key stays taken for as long as the process is stopped.
    """
    active = processes.consumer(world, STOPPING).says("Pulling")
    standby = processes.consumer(world, STOPPING).says("Connected to")
    wanted: list[int] = []
    for number, (point, event_type, times) in enumerate(STOPS):
        first, behind = 2 * number, 2 * number + 1
        (lab / point).touch()
        send(world, first, behind, event_type=event_type)
        eventually(lambda: is_stopped(active), 20, what=point)  # noqa: B023
        stopped = time.monotonic()

        wanted += [first] * times + [behind]
        eventually(lambda: effects() == wanted, 60, what=point)  # noqa: B023
        free_s = time.monotonic() - stopped
        assert free_s < WITHIN_S
        eventually(lambda: time.monotonic() - stopped >= STOPPED_S, STOPPED_S + 10)  # noqa: B023
        print(f"{point}, {event_type}: its key was free after {free_s:.1f} s, stopped for {STOPPED_S:g} s")
        before = active.log.count(LOST)
        active.send(signal.SIGCONT)
        eventually(lambda: active.log.count(LOST) > before, 30, what=point)  # noqa: B023
        active, standby = standby, active

    assert active.terminate() == 0, active.log
    send(world, 8)  # the one that was stopped last is whole, and takes over again
    eventually(lambda: effects() == [*wanted, 8], 30, what=standby.log[-3000:])
    assert standby.terminate() == 0, standby.log
    assert [(row.state, row.attempts) for row in inbox()] == [("processed", 1)] * 9
    assert DeadLetter.objects.count() == 0
    eventually(lambda: durable(world)["num_ack_pending"] == 0)


class Line:
    """A way to the database that can go dead: bytes stay in it, and neither end hears of the other."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._dead = threading.Event()
        self._sockets: list[socket.socket] = []
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._door.accept()
                there = socket.create_connection(self._target)
                self._sockets += [here, there]
                for source, sink in ((here, there), (there, here)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self._dead.is_set():
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        self._dead.set()

    def close(self) -> None:
        for one in (self._door, *self._sockets):
            with suppress(OSError):  # a thread that reads from it keeps it open otherwise
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line(int(connection.settings_dict["PORT"]))
    yield made
    made.close()


@pytest.mark.postgres
def test_a_consumer_behind_a_dead_line_frees_its_key(world, processes, lab, line):
    """
    No reset and no end of file reach the database, as when a machine loses its power or its network. Its other
    sessions go on from a second consumer with a line of its own.
    """
    databases = {"default": {**databases_of_tests()["default"], "PORT": str(line.port)}}
    gated = STOPPING.replace(
        "signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)", "threading.Event().wait(3600)"
    )
    (lab / "written").touch()
    first = processes.start("jetbridge_consume", keys=world.consumer, handlers=gated, databases=databases)
    first.says("Pulling")
    second = processes.consumer(world, gated).says("Connected to")
    send(world, 0, 1)
    eventually((lab / "stopped").exists, 20)

    line.cut()

    eventually(lambda: effects() == [0, 1], WITHIN_S, what=second.log[-3000:])
    assert second.terminate() == 0
    assert [(row.state, row.attempts) for row in inbox()] == [("processed", 1)] * 2


def test_a_lease_stolen_in_the_middle_of_a_handler_takes_the_verdict_with_it(world, caplog):
    """
    Story 40. The handler fails, at its only attempt, when the event is another's: no dead letter, no attempt.
    Red if a failure is recorded without a look at the lease.
    """
    caplog.set_level("INFO", logger="jetbridge.consumer")
    begun, go = threading.Event(), threading.Event()

    @jetbridge.handler(">", name="t.stolen", atomic=False)  # SQLite's one write lock is for the thief
    def handle(event: jetbridge.Delivery) -> None:
        if not go.is_set():
            begun.set()
            assert go.wait(20)
            raise ValueError("too late")
        Invoice.objects.create(order_id=0, event_id="x", total=0)

    send(world, 0)
    with consuming(world):
        assert begun.wait(10)
        Lease.objects.update(owner="thief", expires_at=WallClock(60))
        eventually(lambda: "is lost; its messages are another's now" in caplog.text)
        go.set()
        eventually(lambda: "which is another's by now" in caplog.text)
    assert (inbox(), dead_letters()) == ([], [])

    Lease.objects.update(owner="", expires_at=WallClock())
    world.consume()
    assert effects() == [0]
    assert [(row.state, row.attempts) for row in inbox()] == [("processed", 1)]

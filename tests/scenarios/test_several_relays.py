"""
Several relays on one outbox: fair parts, takeover, and through any death, pause or cut of one of them each event
archived once and each key in order.

What the stream took is read from the archive: a row's sequence is the place of its first copy, also when it was
sent twice.
"""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

import jetbridge
from jetbridge.leases.shares import share
from jetbridge.models import Archive, Lease, Outbox, Scheduled, Worker
from jetbridge.models.clock import WallClock
from jetbridge.partition import bucket
from tests.proxy import Proxy
from tests.running import Process, Processes, api, databases_of_tests
from tests.waiting import eventually
from tests.worlds import World

LEASE_S = 3.0
PAGE = 50
KEYS = {"LEASE_S": LEASE_S, "ACK_WAIT_S": 2, "PUBLISH_TIMEOUT_S": 2, "PAGE_SIZE": PAGE, "PARK_RETRY_S": 0.1}
WAIT_S = 40.0


@pytest.fixture
def world(world: World) -> World:
    world.publisher |= KEYS
    return world


@pytest.fixture(autouse=True)
def _shop(world: World) -> Iterator[None]:
    with world.as_shop():
        yield


def publish(ns: Sequence[int], keys: int) -> None:
    """One event each in one transaction, its key one of ``keys``."""
    jetbridge.publish_many([jetbridge.Event("order.placed", {"n": n}, key=f"k{n % keys}") for n in ns])


def key_in(number: int) -> str:
    """A key of this bucket."""
    return next(f"k{n}" for n in range(10_000) if bucket(f"k{n}", "") == number)


def parts() -> dict[int, int]:
    """Process id → buckets that it owns by the table."""
    held = Lease.objects.filter(expires_at__gt=WallClock()).exclude(owner="")
    return dict(Counter(int(owner.split(":")[1]) for owner in held.values_list("owner", flat=True)))


def fair(*relays: Process) -> bool:
    names = [str(number) for number in range(len(relays))]
    expected = sorted(share(name, names, 64) for name in names)
    return parts().keys() == {relay.pid for relay in relays} and sorted(parts().values()) == expected


def shared(*relays: Process) -> None:
    """Wait until the buckets are with these relays, fairly."""
    eventually(lambda: fair(*relays), WAIT_S, what=f"fair parts of {[relay.pid for relay in relays]}")


def all_sent(count: int) -> None:
    eventually(lambda: Archive.objects.count() == count and not Outbox.objects.exists(), WAIT_S)


def in_order(count: int, world: World) -> None:
    """Each event once in the archive and once in the stream, each key in the order of publishing."""
    seen = defaultdict[str, list[int]](list)
    rows = Archive.objects.order_by("sequence").values_list("key", "body", "sequence")
    for key, body, _ in rows:
        seen[key].append(json.loads(bytes(body))["payload"]["n"])
    assert {key: ns for key, ns in seen.items() if ns != sorted(ns)} == {}
    assert sum(map(len, seen.values())) == count
    assert len({sequence for *_, sequence in rows}) == count
    assert api(world, f"STREAM.INFO.jetbridge-{world.shop}")["state"]["last_seq"] == count, "stored twice"


# --- parts ---------------------------------------------------------------------------------------


def test_parts_follow_those_who_come_die_and_end(world, processes):
    """
    One has all; each newcomer gets its part; a killed one's part is taken when its leases run out, that of an
    orderly one at once. Red if the first relay keeps all that it has.
    """
    first = processes.relay(world)
    shared(first)
    others = [processes.relay(world) for _ in range(2)]
    shared(first, *others)
    described = {row.pid: row.info for row in Worker.objects.all()}
    assert sorted(info["share"] for info in described.values()) == [21, 21, 22]

    publish(range(50), keys=50)
    all_sent(50)
    others[0].kill()
    killed = time.monotonic()
    shared(first, others[1])
    assert time.monotonic() - killed < LEASE_S + 5  # promised: the term and a second, on an idle machine

    assert others[1].terminate() == 0
    ended = time.monotonic()
    shared(first)
    assert time.monotonic() - ended < LEASE_S
    publish(range(50, 100), keys=50)
    all_sent(100)
    in_order(100, world)


def test_a_rolling_restart_repeats_nothing(world, processes):
    """
    A new relay comes, an old one goes, twice, under traffic over a slow line, so that a page is always under way.
    A bucket changes hands between two pages: no event is sent twice. Red two times of three if a surplus is
    handed back at once; ``test_lease_shares.py`` has the sure test of it.
    """
    # Long terms, because a page that waits for the processor is no fault. A page lasts longer than a look.
    world.publisher |= {"LEASE_S": 15, "PUBLISH_TIMEOUT_S": 10, "PAGE_SIZE": 200}
    keys = [key_in(number) for number in range(7, 64, 8)]
    sent = 0
    with world.as_shop(), Proxy(int(world.url.rpartition(":")[2])) as line:
        line.delay_s = 0.04
        start = partial(processes.relay, world, NATS_URLS=[f"nats://127.0.0.1:{line.port}"])
        relays, ended = [start()], list[Process]()
        shared(*relays)
        for _ in range(2):
            relays.append(start())
            while not fair(*relays):
                if Outbox.objects.count() < 300:
                    rows = [(n, keys[n % len(keys)]) for n in range(sent, sent + 40)]
                    jetbridge.publish_many(
                        [jetbridge.Event("order.placed", {"n": n}, key=key) for n, key in rows]
                    )
                    sent += len(rows)
            ended.append(relays.pop(0))
            assert ended[-1].terminate() == 0
        all_sent(sent)
        assert relays[0].terminate() == 0

    in_order(sent, world)
    # Whoever comes second settles nothing, so the archive would not tell.
    totals = [re.search(r"Stopped after (\d+) published", relay.said) for relay in (*ended, *relays)]
    assert sum(int(found[1]) for found in totals if found) == sent


# --- faults --------------------------------------------------------------------------------------


class Chaos:
    """Faults for four relays, drawn from a seed, while a reader makes room in a stream that is too small."""

    def __init__(self, world: World, processes: Processes, link: Proxy, seed: int) -> None:
        self.world, self.processes, self.link, self.dice = world, processes, link, random.Random(seed)
        self.relays = [self.start() for _ in range(4)]
        self.faults = 0

    def publish(self, ns: Sequence[int]) -> None:
        """One of 1,000 keys each, a few of them often."""
        keys = [f"k{int(1_000 * self.dice.random() ** 4)}" for _ in ns]
        jetbridge.publish_many(
            [jetbridge.Event("order.placed", {"n": n}, key=key) for n, key in zip(ns, keys, strict=True)]
        )

    def start(self) -> Process:
        return self.processes.relay(self.world, NATS_URLS=[f"nats://127.0.0.1:{self.link.port}"])

    def fault(self, kind: str) -> None:
        self.faults += 1
        victim = self.dice.randrange(len(self.relays))
        match kind:
            case "kill":
                self.relays[victim].kill()
                self.relays[victim] = self.start()
            case "cut":
                self.link.cut()
            case "pause":
                self.relays[victim].send(signal.SIGSTOP)
                until = time.monotonic() + LEASE_S * self.dice.uniform(0.3, 1.6)
                eventually(lambda: time.monotonic() > until, LEASE_S * 5)
                self.relays[victim].send(signal.SIGCONT)
            case "steal":  # what a leap of the database's clock can do: two act on one bucket
                owners = list(Lease.objects.exclude(owner="").values_list("owner", flat=True).distinct())
                for name in Lease.objects.values_list("name", flat=True):
                    owner = self.dice.choice(owners)
                    Lease.objects.filter(name=name).update(owner=owner, expires_at=WallClock(LEASE_S))

    def read(self) -> None:
        """What the consumer of a small stream does."""
        api(self.world, f"STREAM.PURGE.jetbridge-{self.world.shop}")


def test_four_relays_through_faults_of_all_kinds(world, processes, nats_server):
    """
    1,000 keys, some of them busy; a subject that is full again and again, killed and paused relays, cut links,
    buckets that two believe to own. Each key in order, each event archived once, and sent twice at most as often
    as a page was interrupted. Red if sort() lets newer rows of a parked subject go on.
    """
    sent, due = 0, 60
    world.publisher["MAX_MESSAGES_PER_SUBJECT"] = 60
    world.provision()
    with world.as_shop(), Proxy(int(world.url.rpartition(":")[2])) as link:
        chaos = Chaos(world, processes, link, seed=7)
        shared(*chaos.relays)
        for n in range(due):  # their numbers go on after all others
            jetbridge.publish("order.placed", {"n": 10_000 + n}, key=f"due{n % 3}", delay=4 + n * 0.1)
        for kind in ("cut", "steal", "pause", "kill", "steal", "pause", "cut", "steal"):
            for _ in range(4):
                chaos.publish(range(sent, sent + 100))
                sent += 100
                chaos.read()
            chaos.fault(kind)

        def done() -> bool:
            chaos.read()
            return Archive.objects.count() == sent + due and not Outbox.objects.exists()

        eventually(done, WAIT_S)
        shared(*chaos.relays)

    in_order(sent + due, world)
    assert Scheduled.objects.count() == 0
    repeated = Archive.objects.filter(duplicate=True).count()
    assert repeated <= chaos.faults * len(chaos.relays) * 2 * PAGE


ZOMBIE = """\
import os, pathlib, signal, threading
from jetbridge import signals

FILE = pathlib.Path(os.environ["LAB_DIR"]) / "{name}"

def stop(**_):
    if FILE.exists():
        FILE.unlink()
        {what}

signals.publish_acked.connect(stop, weak=False)
"""


def relay_that(processes: Processes, world: World, what: str) -> tuple[Process, Path]:
    """A relay that does something between an ack and its settling, once the file exists."""
    file = processes.folder / "now"
    text = ZOMBIE.format(name=file.name, what=what)
    return processes.start("jetbridge_relay", keys=world.publisher, handlers=text), file


@pytest.mark.postgres  # on SQLite a stopped process may hold the lock on everything
def test_a_relay_stopped_between_ack_and_settle_is_replaced_and_harmless(world, processes):
    """
    SIGSTOP for longer than the lease with a page stored and not settled; another relay sends it again and goes
    on. Awake, the first one settles what is archived already, owns nothing, and takes its part again.
    """
    # The signal goes to the process, and this thread may run on for a moment.
    stop = "os.kill(os.getpid(), signal.SIGSTOP); threading.Event().wait(1)"
    zombie, file = relay_that(processes, world, stop)
    shared(zombie)
    other = processes.relay(world)
    shared(zombie, other)
    for round_ in range(2):
        file.touch()
        first = round_ * 1_000
        publish(range(first, first + 500), keys=100)
        eventually(lambda: not file.exists(), WAIT_S)
        publish(range(first + 500, first + 1_000), keys=100)
        all_sent(first + 1_000)
        assert parts().get(zombie.pid) is None

        zombie.send(signal.SIGCONT)
        shared(zombie, other)
    in_order(2_000, world)
    assert 0 < Archive.objects.filter(duplicate=True).count() <= 2 * PAGE
    assert zombie.terminate() == 0


def test_a_relay_whose_loop_is_stuck_does_not_renew_for_ever(world, processes):
    """Its process lives, beats and sees its database: only its page never ends. Red without Relay.progress."""
    stuck, file = relay_that(processes, world, "threading.Event().wait(3600)")
    shared(stuck)
    file.touch()
    publish(range(20), keys=20)
    eventually(lambda: not file.exists(), WAIT_S)
    other = processes.relay(world)
    shared(other)
    all_sent(20)
    publish(range(20, 40), keys=20)
    all_sent(40)
    in_order(40, world)


# --- cut off -------------------------------------------------------------------------------------


def test_a_relay_cut_off_from_nats_only_hands_its_part_over(world, processes):
    """
    Its connection looks alive: nothing arrives, and nobody is told. Red if only the state of the connection
    counts, which notices after half a minute.
    """
    with Proxy(int(world.url.rpartition(":")[2])) as link:
        cut_off = processes.relay(world, NATS_URLS=[f"nats://127.0.0.1:{link.port}"])
        other = processes.relay(world)
        shared(cut_off, other)
        link.stall()
        stalled = time.monotonic()
        publish(range(300), keys=100)
        shared(other)
        all_sent(300)
        assert time.monotonic() - stalled < 20

        link.resume()
        shared(cut_off, other)
        publish(range(300, 600), keys=100)
        all_sent(600)
        in_order(600, world)
        assert cut_off.terminate() == 0


def stored_at(world: World) -> list[datetime]:
    """When the stream took each message."""
    stream = f"jetbridge-{world.shop}"
    count = api(world, f"STREAM.INFO.{stream}")["state"]["last_seq"]
    found = [api(world, f"STREAM.MSG.GET.{stream}", {"seq": n + 1})["message"]["time"] for n in range(count)]
    return [datetime.fromisoformat(f"{text[:19]}+00:00") + _fraction(text) for text in found]


def _fraction(text: str) -> timedelta:
    return timedelta(seconds=float(f"0{text[19:].rstrip('Z') or '.0'}"))


@pytest.mark.postgres
def test_a_relay_cut_off_from_its_database_stops_at_two_thirds(world, processes):
    """
    It is in the middle of a long page, and its broker takes more. It stops a third of the term before anybody
    else can have the bucket. Red if the deadline of a page does not fit the lease.
    """
    world.publisher |= {"LEASE_S": 6, "PUBLISH_TIMEOUT_S": 4, "ACK_WAIT_S": 4}
    database = databases_of_tests()
    with Proxy(int(database["default"]["PORT"])) as link, Proxy(int(world.url.rpartition(":")[2])) as slow:
        database["default"]["PORT"] = str(link.port)
        slow.delay_s = 0.1
        keys = {**world.publisher, "NATS_URLS": [f"nats://127.0.0.1:{slow.port}"]}
        cut_off = processes.start("jetbridge_relay", keys=keys, databases=database)
        shared(cut_off)
        other = processes.relay(world)
        shared(cut_off, other)
        lease = Lease.objects.filter(owner__contains=f":{cut_off.pid}:")[0]
        key = key_in(int(lease.name[-2:]))
        jetbridge.publish_many([jetbridge.Event("order.placed", {"n": n}, key=key) for n in range(200)])
        eventually(lambda: len(stored_at(world)) > 5, WAIT_S)
        link.stall()
        ends: list[datetime] = []

        def taken_over() -> bool:
            now = Lease.objects.get(name=lease.name)
            if now.owner == lease.owner:
                ends.append(now.expires_at)
            return now.owner != lease.owner

        eventually(taken_over, WAIT_S)
        all_sent(200)
        last_third = [at for at in stored_at(world) if ends[-1] - timedelta(seconds=1.2) < at < ends[-1]]
        assert last_third == []

        link.resume()
        shared(cut_off, other)
        in_order(200, world)
        assert cut_off.terminate() == 0

"""
PostgreSQL goes away in every way it can, under a relay, a consumer and a writer that keep running.

All tests of this file share the three processes: they are never restarted. An attempt that was spent would be
a dead letter, with MAX_ATTEMPTS=1. Handlers do what handlers do with errors: a third lets them through, a third
wraps them in one of its own, a third swallows them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from testproject.postgres import Postgres
from tests.running import Process, Processes, databases_of_tests
from tests.servers import NatsServer
from tests.waiting import eventually
from tests.worlds import World

pytestmark = pytest.mark.postgres

KEYS: dict[str, Any] = {
    "MAX_ATTEMPTS": 1,
    "LEASE_S": 4,
    "ACK_WAIT_S": 2,
    "PUBLISH_TIMEOUT_S": 2,
    "LOCK_TIMEOUT_S": 0.5,
}
# On a machine with nothing else to do it is one second; the tests of a whole run leave less.
FIRST_EVENT_S = 15.0

HANDLERS = """\
import jetbridge
from django.db import DatabaseError
from testproject.billing.models import Invoice


@jetbridge.handler("order.placed", name="t.invoice")
def invoice(event):
    n = event.payload["n"]
    try:
        Invoice.objects.create(order_id=n, event_id=event.event_id, total=0)
    except DatabaseError:
        if n % 3 == 0:
            raise
        if n % 3 == 1:
            raise RuntimeError("could not write the invoice")
"""

# Whether a transaction whose COMMIT got no answer has happened, only the table of orders knows.
WRITER = """\
import os, time
from pathlib import Path
import jetbridge
from django.db import connection, transaction
from testproject.orders.models import Order

lab, n = Path(os.environ["LAB_DIR"]), 0
while not (lab / "stop").exists():
    n += 1
    try:
        with transaction.atomic():
            Order.objects.create(number=str(n), total=0)
            jetbridge.publish("order.placed", {"n": n}, resource_id=n % 5)
    except Exception:
        connection.close()
        time.sleep(0.1)
    time.sleep(0.03)
"""


class Lab:
    """A server and what runs on it."""

    def __init__(self, server: Postgres, world: World, processes: Processes) -> None:
        self.server, self.world, self.folder = server, world, processes.folder
        self.url = server.create_database("lab")
        found = databases_of_tests()["default"]
        databases = {"default": {**found, "NAME": "lab", "PORT": str(server.port)}}
        migrated = processes.start("migrate", "-v", "0", keys=world.consumer, databases=databases)
        assert migrated.wait(60) == 0, migrated.log
        self.writer = processes.start("shell", "-c", WRITER, keys=world.publisher, databases=databases)
        self.relay = processes.start("jetbridge_relay", keys=world.publisher, databases=databases)
        self.consumer = processes.start(
            "jetbridge_consume", keys=world.consumer, handlers=HANDLERS, databases=databases
        )
        eventually(lambda: self.effects() > 10, 60, what=self.consumer.log[-2000:])

    def rows(self, statement: str) -> list[Any]:
        try:
            with psycopg.connect(self.url, autocommit=True) as session:
                return session.execute(statement).fetchall()
        except psycopg.OperationalError as error:  # not yet, or not any more
            raise AssertionError(str(error)) from error

    def act(self, *statements: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as session:
            for statement in statements:
                session.execute(statement)

    def effects(self) -> int:
        return int(self.rows("SELECT count(*) FROM billing_invoice")[0][0])

    def lines(self) -> Counter[Process]:
        return Counter({one: one.log.count("\n") for one in (self.relay, self.consumer)})

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The block begins and ends an outage; then work resumes by itself, nothing was spent, little was said."""
        before = self.lines()
        yield
        back = time.monotonic()
        known = eventually(lambda: [self.effects()], 30)[0]
        eventually(lambda: self.effects() > known, 60, what=f"work goes on\n{self.consumer.log[-3000:]}")
        took = time.monotonic() - back
        assert took < FIRST_EVENT_S, f"{took:.1f} s\n{self.consumer.log[-3000:]}"
        assert self.rows("SELECT error FROM jetbridge_dead_letter") == []
        spent = "SELECT * FROM jetbridge_inbox WHERE attempts > 1 OR attempts = 1 AND state <> 'processed'"
        assert self.rows(spent) == []
        said = self.lines() - before
        assert max(said.values(), default=0) < 60, self.consumer.log[-6000:] + self.relay.log[-3000:]

    def consumer_waits(self, times: int) -> None:
        """Wait until an attempt has met the outage, for the ``times``-th time."""
        eventually(
            lambda: self.consumer.log.count("Handlers wait") >= times, 30, what=self.consumer.log[-2000:]
        )

    @property
    def waits(self) -> int:
        return self.consumer.log.count("Handlers wait")


@pytest.fixture(scope="module")
def lab(server_dir: Path, nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    processes = Processes(tmp_path_factory.mktemp("outages"))
    settings = {"max_connections": "30", "restart_after_crash": "on"}
    server = Postgres(server_dir / "outages", fsync=False, settings=settings)
    with server:
        made = Lab(server, World(nats_server.url, **KEYS).provision(), processes)
        yield made
        processes.end()
        made.server.stop("immediate")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_under_load(lab, mode):
    """Uncommitted work is lost and done again, nothing is done twice."""
    with lab.outage():
        lab.server.stop(mode)
        eventually(lambda: "does not answer" in lab.consumer.log, 30)
        lab.server.start()


def test_the_crash_of_one_backend(lab):
    """SIGKILL to one of them makes the server end every session and recover."""
    with lab.outage():
        eventually(lambda: _kill_a_backend(lab), 20)


def _kill_a_backend(lab: Lab) -> bool:
    found = lab.rows(
        "SELECT pid FROM pg_stat_activity WHERE query LIKE '%jetbridge%' AND pid <> pg_backend_pid()"
    )
    for (pid,) in found[:1]:
        os.kill(pid, signal.SIGKILL)
    return bool(found)


def test_read_only(lab):
    """As during a switch-over, or when the provider's disk quota is used up. Red if 25006 spends an attempt."""
    with lab.outage():
        waits = lab.waits
        lab.act("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        lab.consumer_waits(waits + 1)
        lab.act(
            "SET default_transaction_read_only = off",
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        )


def test_out_of_connections(lab):
    """Every session is ended, and others take the places before relay and consumer come back."""
    others: list[psycopg.Connection[Any]] = []
    with lab.outage():
        try:
            eventually(lambda: _take_every_place(lab, others), 30)
            time_is_up = time.monotonic() + 2
            eventually(lambda: time.monotonic() > time_is_up)
        finally:
            for session in others:
                session.close()


def _take_every_place(lab: Lab, others: list[psycopg.Connection[Any]]) -> bool:
    mine = [session.info.backend_pid for session in others]
    if others:
        others[0].execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> ALL(%s)",
            [mine],
        )
    with suppress(psycopg.OperationalError):
        while len(others) < 40:
            others.append(psycopg.connect(lab.url, autocommit=True))
    places = others[0].execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
    return bool(places.fetchall()[0][0] == len(others))


def test_a_locked_inbox(lab):
    """A migration holds the table: the threads wait for it, and go on."""
    blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND now() - query_start > '2s'"
    with lab.outage(), psycopg.connect(lab.url) as session:
        session.execute("LOCK TABLE jetbridge_inbox IN ACCESS EXCLUSIVE MODE")
        eventually(lambda: lab.rows(blocked), 30)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted, which takes root")
def test_a_full_disk(lab, server_dir):
    """Inbox and invoices lie on it: first the one, then the other finds no room (53100)."""
    small = server_dir / "small"
    small.mkdir()
    owner = lab.server.data_dir.stat()
    options = f"size=8m,mode=700,uid={owner.st_uid},gid={owner.st_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", small], check=True)
    tables = ("billing_invoice", "jetbridge_inbox")
    try:
        lab.act(f"CREATE TABLESPACE small LOCATION '{small}'")
        lab.act(*(f"ALTER TABLE {table} SET TABLESPACE small" for table in tables))
        with lab.outage():
            lab.act("CREATE TABLE filler (what text) TABLESPACE small")
            fill = (
                "INSERT INTO filler SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 200)"
            )
            with pytest.raises(psycopg.errors.DiskFull):
                lab.act(*[fill] * 3000)
            eventually(lambda: "No space left" in lab.consumer.log, 30)
            lab.act("DROP TABLE filler")
        lab.act(*(f"ALTER TABLE {table} SET TABLESPACE pg_default" for table in tables))
        lab.act("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


def test_a_switch_over_to_a_standby(lab, server_dir):
    """
    The server is replaced by its streaming standby, which at first takes no writes, and then is promoted. A fast
    stop waits for the standby; after a crash an asynchronous one lacks the last commits, and nobody can help that.
    """
    port = lab.server.port
    with lab.outage():
        lab.server.stop("fast")
        copied = server_dir / "standby"
        subprocess.run(["cp", "-a", lab.server.data_dir.resolve(), copied], check=True)
        lab.server.start()
    (copied / "standby.signal").touch()
    with (copied / "postgresql.auto.conf").open("a") as file:
        file.write(f"primary_conninfo = 'host=127.0.0.1 port={port} user=postgres'\n")
    for name in ("standby.signal", "postgresql.auto.conf"):
        shutil.chown(copied / name, copied.owner(), copied.group())
    standby = Postgres(copied, fsync=False, settings={"max_connections": "30"}).start()
    eventually(lambda: lab.rows("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"), 30)
    with lab.outage():
        lab.server.stop("fast")
        standby.stop("fast")
        lab.server = standby = Postgres(copied, fsync=False, settings={"max_connections": "30"}, port=port)
        waits = lab.waits
        standby.start()
        lab.consumer_waits(max(1, waits))
        assert lab.rows("SELECT pg_is_in_recovery()") == [(True,)]
        lab.rows("SELECT pg_promote()")


def test_after_all_of_them_every_order_has_one_invoice(lab):
    """No process was restarted; what was committed was carried and handled once."""
    (lab.folder / "stop").touch()
    assert lab.writer.wait(30) == 0, lab.writer.log

    def settled() -> bool:
        orders = Counter(int(number) for (number,) in lab.rows("SELECT number FROM orders_order"))
        invoices = Counter(n for (n,) in lab.rows("SELECT order_id FROM billing_invoice"))
        assert orders == invoices
        return True

    eventually(settled, 30, interval_s=0.2)
    assert lab.rows("SELECT * FROM jetbridge_dead_letter") == []
    assert lab.rows("SELECT DISTINCT state, attempts FROM jetbridge_inbox") == [("processed", 1)]
    assert lab.relay.terminate() == 0, lab.relay.log
    assert lab.consumer.terminate() == 0, lab.consumer.log

"""The demo tells the truth: its verdict is recounted here from its databases, and forged ones are found out."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from testproject.demo import counting, verdict
from testproject.demo.orders import Way, orders_of, plan
from testproject.demo.story import Faults, Hit
from testproject.postgres import Postgres

ROOT = Path(__file__).resolve().parents[2]
VENDOR = os.environ.get("JETBRIDGE_TEST_DB") or "sqlite"
ORDERS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    exit_code: int
    output: str
    document: dict[str, Any]

    @contextmanager
    def books(self) -> Iterator[dict[str, Any]]:
        """A plain DB-API connection to each service's database; what is changed is rolled back."""
        opened = {name: self._open(url) for name, url in self.document["databases"].items()}
        try:
            yield opened
        finally:
            for connection in opened.values():
                connection.rollback()
                connection.close()

    def _open(self, database: str) -> Any:
        if self.document["db"] == "sqlite":
            return sqlite3.connect(database)
        import psycopg

        return psycopg.connect(database)


@pytest.fixture(scope="module")
def demo(server_dir: Path) -> Iterator[Demo]:
    """One run of the real demo; its servers are stopped by then, PostgreSQL is started again to look inside."""
    folder, result = server_dir / "demo", server_dir / "demo.json"
    command = [
        sys.executable,
        "-m",
        "testproject.demo",
        "--db",
        VENDOR,
        "--orders",
        str(ORDERS),
        "--seed",
        "7",
    ]
    done = subprocess.run(
        [*command, "--dir", folder, "--json", result, "--timeout", "100"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.exists(), done.stdout
    ran = Demo(exit_code=done.returncode, output=done.stdout, document=json.loads(result.read_text()))
    if VENDOR == "sqlite":
        yield ran
        return
    with Postgres(folder / "postgres", port=urlsplit(ran.document["databases"]["orders"]).port):
        yield ran


def rows(connection: Any, sql: str) -> list[tuple[Any, ...]]:
    with closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def change(connection: Any, sql: str) -> None:
    with closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        assert cursor.rowcount == 1, sql


def test_every_promise_holds(demo: Demo) -> None:
    broken = [check for check in demo.document["checks"] if not check["ok"]]

    assert (demo.exit_code, demo.document["ok"], broken) == (0, True, []), demo.output


def test_it_says_where_to_recount_and_what_may_be_deleted(demo: Demo) -> None:
    folder = demo.document["dir"]

    assert f"Streams and logs: {folder}; " in demo.output
    assert " MB, delete " in demo.output
    again = f" -m testproject.postgres {folder}/postgres --port "
    assert (again in demo.output) == (VENDOR == "postgres")


def test_the_document_has_the_agreed_keys(demo: Demo) -> None:
    shape = {name: sorted(value) for name, value in demo.document.items() if isinstance(value, dict)}

    keys = [
        "schema",
        "ok",
        "db",
        "seed",
        "duration_s",
        "dir",
        "databases",
        "nats",
        "orders",
        "events",
        "faults",
        "checks",
    ]
    flow = [
        "committed",
        "delivered",
        "effects",
        "duplicates_suppressed",
        "dead_letters",
        "lost",
        "doubled",
        "ghosts",
    ]

    assert list(demo.document) == keys
    assert shape == {
        "databases": ["billing", "orders"],
        "nats": ["store", "url"],
        "orders": ["committed", "placed", "published_twice", "rolled_back"],
        "events": sorted(flow),
        "faults": ["broker_restarts", "consumer_kills"],
    }
    assert all(sorted(check) == ["expected", "id", "ok", "seen"] for check in demo.document["checks"])
    assert Path(demo.document["nats"]["store"]).is_dir()


def test_the_numbers_are_those_of_the_databases(demo: Demo) -> None:
    with demo.books() as books:
        orders = rows(books["orders"], "SELECT id, number, fails, invoiced FROM orders_order")
        invoices = rows(books["billing"], "SELECT order_id, event_id FROM billing_invoice")
        dead = rows(books["billing"], "SELECT event_id, state FROM jetbridge_dead_letter")
        sent = rows(books["orders"], "SELECT event_id FROM jetbridge_archive WHERE kind = 'event'")
        waiting = sum(rows(book, "SELECT count(*) FROM jetbridge_outbox")[0][0] for book in books.values())
        suppressed = sum(
            rows(book, "SELECT count(*) FROM jetbridge_archive WHERE duplicate")[0][0]
            + rows(book, "SELECT coalesce(sum(duplicates), 0) FROM jetbridge_inbox")[0][0]
            for book in books.values()
        )
    good = {order for order, _, fails, _ in orders if not fails}
    events = {event for (event,) in sent}

    assert sorted(order for order, _ in invoices) == sorted(good), (
        "one invoice for each order that can have one"
    )
    assert {order for order, _, _, invoiced in orders if invoiced} == good
    assert {event for _, event in invoices} | {event for event, _ in dead} == events
    assert waiting == 0
    assert demo.document["orders"] == {
        "placed": ORDERS,
        "committed": len(orders),
        "rolled_back": ORDERS - len(orders),
        "published_twice": len(sent) - len(events),
    }
    assert demo.document["events"] == {
        "committed": len(events),
        "delivered": len(invoices) + len(dead),
        "effects": len(invoices),
        "duplicates_suppressed": suppressed,
        "dead_letters": len(dead),
        "lost": 0,
        "doubled": 0,
        "ghosts": 0,
    }


def test_what_was_meant_to_be_there_is_there_and_nothing_else(demo: Demo) -> None:
    planned = orders_of(plan(ORDERS, 7))
    with demo.books() as books:
        numbers = {number for (number,) in rows(books["orders"], "SELECT number FROM orders_order")}

    assert numbers == {order.number for order in planned if order.is_kept}
    assert {order.way for order in planned} == set(Way)


def test_the_faults_happened_in_the_middle(demo: Demo) -> None:
    checks = {check["id"]: check for check in demo.document["checks"]}
    log = Path(demo.document["dir"], "logs", "billing-consumer.log").read_text()

    assert demo.document["faults"]["consumer_kills"] >= 1
    assert demo.document["faults"]["broker_restarts"] >= 1
    assert checks["consumer_killed_in_the_middle"]["ok"]
    assert checks["broker_restarted_in_the_middle"]["ok"]
    assert log.count("Pulling billing-workers") >= 2, "a second consumer has taken over"


def count(demo: Demo, forge: Callable[[Any, Any], None]) -> counting.Counts:
    """Count after ``forge(orders, billing)`` has changed the databases behind everybody's back."""
    with demo.books() as books:
        forge(books["orders"], books["billing"])
        return counting.count(
            *(lambda sql, book=books[name]: rows(book, sql) for name in ("orders", "billing"))
        )


def accidents(counts: counting.Counts) -> tuple[int, int, int]:
    return counts.lost, counts.doubled, counts.ghosts


SOME_INVOICED = "SELECT min(number) FROM orders_order WHERE invoiced"
COPY_INVOICE = """
INSERT INTO billing_invoice (order_id, event_id, total, created_at)
SELECT {order}, {event}, total, created_at FROM billing_invoice WHERE id = (SELECT min(id) FROM billing_invoice)
"""


def test_a_deleted_invoice_is_a_lost_event(demo: Demo) -> None:
    def forge(orders: Any, billing: Any) -> None:
        change(billing, "DELETE FROM billing_invoice WHERE id = (SELECT min(id) FROM billing_invoice)")

    assert accidents(count(demo, forge)) == (1, 0, 0)


def test_an_unmarked_order_is_a_lost_answer(demo: Demo) -> None:
    def forge(orders: Any, billing: Any) -> None:
        change(orders, "UPDATE orders_order SET invoiced = false WHERE number = (" + SOME_INVOICED + ")")

    assert accidents(count(demo, forge)) == (1, 0, 0)


def test_a_deleted_dead_letter_is_a_lost_event(demo: Demo) -> None:
    def forge(orders: Any, billing: Any) -> None:
        change(billing, "DELETE FROM jetbridge_dead_letter")

    assert accidents(count(demo, forge)) == (1, 0, 0)


def test_a_second_invoice_is_a_doubled_effect(demo: Demo) -> None:
    def forge(orders: Any, billing: Any) -> None:
        change(billing, COPY_INVOICE.format(order="order_id", event="event_id"))

    assert accidents(count(demo, forge)) == (0, 1, 0)


def test_an_invoice_for_a_failed_order_is_a_doubled_outcome(demo: Demo) -> None:
    def forge(orders: Any, billing: Any) -> None:
        ((failed,),) = rows(orders, "SELECT id FROM orders_order WHERE fails")
        ((event,),) = rows(billing, "SELECT event_id FROM jetbridge_dead_letter")
        change(billing, COPY_INVOICE.format(order=failed, event=f"'{event}'"))
        change(orders, f"UPDATE orders_order SET invoiced = true WHERE id = {failed}")

    assert accidents(count(demo, forge)) == (0, 1, 0)


def test_an_invoice_for_a_rolled_back_order_is_a_ghost(demo: Demo) -> None:
    """Its id belongs to nobody, or, on SQLite, to the order that was placed next."""

    def forge(orders: Any, billing: Any) -> None:
        change(billing, COPY_INVOICE.format(order=10**6, event="'an event nobody committed'"))

    assert accidents(count(demo, forge)) == (0, 0, 1)


def test_an_event_of_an_order_that_is_not_there_is_a_ghost(demo: Demo) -> None:
    """The order is gone, its event was sent, and billing believed it: three traces of one accident."""

    def forge(orders: Any, billing: Any) -> None:
        change(orders, "DELETE FROM orders_order WHERE number = (" + SOME_INVOICED + ")")

    lost, doubled, ghosts = accidents(count(demo, forge))

    assert (lost, doubled) == (0, 0)
    assert ghosts >= 2


def test_an_order_marked_without_an_invoice_is_a_ghost(demo: Demo) -> None:
    def forge(orders: Any, billing: Any) -> None:
        change(orders, "UPDATE orders_order SET invoiced = true WHERE fails")

    assert accidents(count(demo, forge)) == (0, 0, 1)


@pytest.mark.parametrize(
    ("forged", "check"),
    [({"lost": 1}, "nothing_lost"), ({"doubled": 2}, "nothing_doubled"), ({"ghosts": 1}, "no_ghosts")],
)
def test_an_accident_breaks_its_promise_in_the_verdict(
    demo: Demo, forged: dict[str, int], check: str
) -> None:
    evidence = verdict.Evidence(
        counts=replace(count(demo, lambda orders, billing: None), **forged),  # type: ignore[arg-type]
        planned=orders_of(plan(ORDERS, 7)),
        faults=Faults(consumer=[Hit(share=0.3, in_flight=5)], broker=[Hit(share=0.9, in_flight=5)]),
        left_in_streams=0,
        kills=1,
        restarts=1,
        drained=[0, 0, 0, 0],
    )
    broken = {line.id for line in verdict.judge(evidence) if not line.ok}

    assert broken - {"rolled_back_orders_are_nowhere"} == {check, "broker_restarted_in_the_middle"}

"""
The recount: what the databases say, read with plain SQL and without jetbridge.

Nothing here knows what the demo meant to do. An order that exists must have exactly one invoice or exactly
one dead letter, its invoice exactly one mark at the order; everything else is lost, doubled or a ghost.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

Row: TypeAlias = tuple[Any, ...]
Query: TypeAlias = Callable[[str], list[Row]]

# Two tables hold what was published: the outbox what still waits, the archive what the stream has.
PUBLISHED = """
SELECT event_id, body FROM jetbridge_outbox WHERE kind = 'event'
UNION ALL SELECT event_id, body FROM jetbridge_archive WHERE kind = 'event'
UNION ALL SELECT event_id, body FROM jetbridge_scheduled WHERE kind = 'event'
"""
UNSENT = "SELECT (SELECT count(*) FROM jetbridge_outbox) + (SELECT count(*) FROM jetbridge_scheduled)"
SUPPRESSED = """
SELECT (SELECT count(*) FROM jetbridge_archive WHERE duplicate)
     + (SELECT coalesce(sum(duplicates), 0) FROM jetbridge_inbox)
"""
SETTLED = "SELECT count(*) FROM jetbridge_inbox WHERE source = '{source}' AND state IN ('processed', 'dead')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """
    What is in the two databases.

    Events without a prefix go from orders to billing; ``answer_*`` are the ``invoice.created`` that come
    back. ``lost``, ``doubled``, ``ghosts``, ``duplicates_suppressed``, ``dead_letters`` and ``unsent`` are of
    both directions.
    """

    numbers: frozenset[str]
    failing: int
    published_twice: int
    committed: int
    delivered: int
    effects: int
    answer_committed: int
    answer_delivered: int
    answer_effects: int
    duplicates_suppressed: int
    dead_letters: int
    lost: int
    doubled: int
    ghosts: int
    unsent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The few numbers that progress and the faults are timed by."""

    orders: int
    invoices: int
    dead_letters: int
    answers: int

    @property
    def in_flight(self) -> int:
        """Orders that billing has not finished with."""
        return self.orders - self.invoices - self.dead_letters


def connect(database: str) -> Query:
    """
    A query function on a database: the path of a SQLite file, or the URL of a PostgreSQL one.

    Each query sees what is committed when it starts.
    """
    if not database.startswith("postgresql://"):
        file = sqlite3.connect(database, timeout=20, isolation_level=None)
        return lambda sql: file.execute(sql).fetchall()
    import psycopg

    session = psycopg.connect(database, autocommit=True)
    # prepare=False: statements without parameters are sent as they stand.
    return lambda sql: session.execute(sql.encode()).fetchall()


def tally(orders: Query, billing: Query) -> Tally:
    """Cheap enough to be asked fifty times a second."""
    # Billing first: an order counted as in flight was really there before.
    ((invoices, dead),) = billing(
        "SELECT (SELECT count(*) FROM billing_invoice), (SELECT count(*) FROM jetbridge_dead_letter)"
    )
    ((placed, answers),) = orders(
        "SELECT count(*), coalesce(sum(CASE WHEN invoiced THEN 1 ELSE 0 END), 0) FROM orders_order"
    )
    return Tally(orders=placed, invoices=invoices, dead_letters=dead, answers=answers)


def unsent(*services: Query) -> int:
    """Rows that still wait in the outboxes, dead letter notices included."""
    return sum(_number(query, UNSENT) for query in services)


def count(orders: Query, billing: Query) -> Counts:
    """Count everything."""
    books = _Books(orders, billing)
    return Counts(
        numbers=frozenset(books.orders.values()),
        failing=_number(orders, "SELECT count(*) FROM orders_order WHERE fails"),
        published_twice=sum(copies > 1 for copies in books.copies.values()),
        committed=len(books.events),
        delivered=_number(billing, SETTLED.format(source="orders")),
        effects=len(books.invoices),
        answer_committed=len(books.answers),
        answer_delivered=_number(orders, SETTLED.format(source="billing")),
        answer_effects=len(books.invoiced),
        duplicates_suppressed=_number(orders, SUPPRESSED) + _number(billing, SUPPRESSED),
        dead_letters=len(books.dead) + len(books.dead_answers),
        lost=books.lost(),
        doubled=books.doubled(),
        ghosts=books.ghosts(),
        unsent=unsent(orders, billing),
    )


class _Books:
    """Everything that matters, in memory, and the three ways in which it can be wrong."""

    def __init__(self, orders: Query, billing: Query) -> None:
        rows = orders("SELECT id, number, invoiced FROM orders_order")
        self.orders: dict[int, str] = {order: number for order, number, _ in rows}
        self.invoiced: set[int] = {order for order, _, invoiced in rows if invoiced}
        published = [(event, _payload(body)) for event, body in orders(PUBLISHED)]
        self.copies = Counter(event for event, _ in published)
        self.events: dict[str, dict[str, Any]] = dict(published)
        self.answers: dict[str, dict[str, Any]] = {
            event: _payload(body) for event, body in billing(PUBLISHED)
        }
        self.invoices: dict[int, tuple[int, str]] = {
            invoice: (order, event)
            for invoice, order, event in billing("SELECT id, order_id, event_id FROM billing_invoice")
        }
        self.per_order = Counter(order for order, _ in self.invoices.values())
        self.dead: list[str] = _first(billing("SELECT event_id FROM jetbridge_dead_letter"))
        self.dead_answers: list[str] = _first(orders("SELECT event_id FROM jetbridge_dead_letter"))
        self.dead_orders = Counter(self._order_of(event) for event in self.dead)

    def lost(self) -> int:
        """Orders with neither invoice nor dead letter, and invoices of which the orders service never heard."""
        unheard = {order for order in self.per_order if order in self.orders and order not in self.invoiced}
        answered_for = {self.answers.get(event, {}).get("order_id") for event in self.dead_answers}
        return len(self._forgotten()) + len(unheard - answered_for)

    def doubled(self) -> int:
        """Invoices beyond the first of an order, dead letters beyond the first, and orders that have both."""
        both = self.per_order.keys() & self.dead_orders.keys()
        known = [counter[order] for counter in (self.per_order, self.dead_orders) for order in self.orders]
        return sum(max(0, copies - 1) for copies in known) + len(both)

    def ghosts(self) -> int:
        """What exists without its cause: of an order that was rolled back, of an event nobody committed."""
        invoices = sum(self._order_of(event) != order for order, event in self.invoices.values())
        events = sum(self._order_of(event) is None for event in self.events)
        answers = sum(payload.get("id") not in self.invoices for payload in self.answers.values())
        dead = self.dead_orders[None] + sum(event not in self.answers for event in self.dead_answers)
        marks = len(self.invoiced - self.per_order.keys() - self._forgotten())
        # The answer of an invoice that was taken away is that invoice's loss, not one more accident.
        vanished = sum(
            payload.get("id") not in self.invoices and payload.get("order_id") in self._forgotten()
            for payload in self.answers.values()
        )
        return invoices + events + answers - vanished + dead + marks

    def _forgotten(self) -> set[int]:
        return self.orders.keys() - self.per_order.keys() - self.dead_orders.keys()

    def _order_of(self, event: str) -> int | None:
        """
        The committed order that an event is about.

        By number as well: SQLite gives the id of a rolled-back order to the next one.
        """
        payload = self.events.get(event, {})
        order = payload.get("id")
        return order if order in self.orders and self.orders[order] == payload.get("number") else None


def _payload(body: bytes) -> dict[str, Any]:
    payload = json.loads(bytes(body))["payload"]
    assert isinstance(payload, dict)
    return payload


def _number(query: Query, sql: str) -> int:
    return int(query(sql)[0][0])


def _first(rows: Iterable[Row]) -> list[Any]:
    return [row[0] for row in rows]

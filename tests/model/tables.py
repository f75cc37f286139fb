"""The tables as the models see them, their emptying between two examples, and trouble at any statement."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model

from jetbridge.models import Archive, DeadLetter, Deferred, Inbox, Kind, Lease, Outbox, Scheduled
from testproject.orders.models import Order
from tests.model.reference import Identity, Letter, Reference, Row

ALL: Final[tuple[type[Model], ...]] = (Archive, DeadLetter, Deferred, Inbox, Lease, Outbox, Scheduled, Order)


@contextmanager
def silence() -> Iterator[None]:
    """Thousands of dead letters, each with its traceback in the log, take longer than the examples."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def empty() -> None:
    """What an example finds."""
    names = [model._meta.db_table for model in ALL]
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA synchronous=OFF")  # nothing here outlives the test
        for name in names:
            cursor.execute(f"DELETE FROM {name}")


def rows(statement: str) -> list[tuple[Any, ...]]:
    """Plain SQL: building the same five queries anew after each step would take half of the time."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def receiving(is_due: dict[Identity, bool]) -> Reference:
    """
    The database as a :class:`Reference`.

    Args:
        is_due: What the tables cannot tell without a clock.
    """
    inbox: dict[Identity, Row] = {}
    for handler, event_id, *values in rows(
        "SELECT handler, event_id, state, attempts, starts, generation, duplicates, claimed_by FROM jetbridge_inbox"
    ):
        inbox[handler, event_id] = Row(*values)
        inbox[handler, event_id].is_due = is_due.get((handler, event_id), True)
    letters: dict[Identity, Letter] = {}
    for handler, event_id, *values in rows(
        "SELECT handler, event_id, state, reason, attempts, starts, redrives FROM jetbridge_dead_letter"
    ):
        assert (handler, event_id) not in letters, f"two dead letters of {handler}/{event_id}"
        letters[handler, event_id] = Letter(*values)
    effects = Counter(_identity(number) for (number,) in rows("SELECT number FROM orders_order"))
    outbox = rows("SELECT kind, key, message_id FROM jetbridge_outbox")
    answers = Counter(_identity(key) for kind, key, _ in outbox if kind == Kind.EVENT)
    assert answers == effects, "each committed handler has published one answer, and no other has"
    notices = [message_id for kind, _, message_id in outbox if kind == Kind.DEAD_LETTER]
    assert len(set(notices)) == len(notices), "the stream would drop one of two notices with one id"
    return Reference(
        inbox=inbox,
        letters=letters,
        deferred=set(rows("SELECT handler, event_id FROM jetbridge_deferred")),
        effects=effects,
        notices=len(notices),
    )


def _identity(text: str) -> Identity:
    handler, _, event_id = text.partition("/")
    return handler, event_id


class Interrupted(BaseException):
    """Stands for the end of the process: nothing catches it and goes on."""


class Trouble:
    """
    Wraps every statement of the session: at the ``at``-th the process dies, or the database gives an error.

    A dead process runs no statement more, so what code does in ``except`` and ``finally`` reaches no table; the
    roll-back that Django sends is what a server does with a session that ended.
    """

    def __init__(self, at: int, error: BaseException) -> None:
        self._at, self._error, self._seen = at, error, 0
        self.happened = False

    def __enter__(self) -> Trouble:
        self._wrapper = connection.execute_wrapper(self)
        self._wrapper.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._wrapper.__exit__(None, None, None)
        if self.happened:
            _close(connection)

    def die(self) -> None:
        """The process ends here."""
        self._at, self._error = 0, Interrupted()
        self._raise()

    def _raise(self) -> None:
        self.happened = True
        raise self._error

    def __call__(self, execute, sql, params, many, context):
        self._seen += 1
        if self._at and self._seen == self._at:
            self._raise()
        if self.happened and isinstance(self._error, Interrupted):
            raise self._error
        return execute(sql, params, many, context)


def _close(session: BaseDatabaseWrapper) -> None:
    session.in_atomic_block = session.needs_rollback = session.closed_in_transaction = False
    session.savepoint_ids = []
    session.run_on_commit = []
    session.atomic_blocks = []
    session.close()

"""
How the database sessions of a worker process are set.

A copy of a handler that is stopped or powered off holds its inbox row until the database notices. TCP
keepalives find a dead machine, ``idle_in_transaction_session_timeout`` a stopped process. The other way
round ``tcp_user_timeout`` finds a database that went away without a word while a statement was on its way.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

KEEPALIVES: Final[Mapping[str, int]] = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
# Of libpq, so that every driver knows them. ``tcp_user_timeout`` in milliseconds, the others in seconds.
HARDENED: Final[Mapping[str, int]] = {**KEEPALIVES, "tcp_user_timeout": 30_000, "connect_timeout": 10}


def harden_connections(aliases: Iterable[str]) -> None:
    """New PostgreSQL sessions of this process notice a dead network; what the project has set itself stays."""
    for alias in frozenset(aliases):
        if connections[alias].vendor == "postgresql":
            options = connections.settings[alias].setdefault("OPTIONS", {})
            for name, value in HARDENED.items():
                options.setdefault(name, value)


def limit_idle_transactions(aliases: Iterable[str], *, idle_s: float) -> Callable[[], None]:
    """
    From now on every new PostgreSQL session of this process ends a transaction idle for ``idle_s``.

    Its connections are hardened too (:func:`harden_connections`).

    Returns:
        A function that undoes the limit, for tests.
    """
    wanted = frozenset(aliases)
    harden_connections(wanted)

    def prepare(*, connection: BaseDatabaseWrapper, **_: object) -> None:
        if connection.alias in wanted and connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(f"SET idle_in_transaction_session_timeout = {int(idle_s * 1000)}")

    connection_created.connect(prepare, weak=False)

    def undo() -> None:
        connection_created.disconnect(prepare)

    return undo


def cut(session: BaseDatabaseWrapper) -> None:
    """
    End a session that another thread is using; the database rolls its transaction back.

    PostgreSQL's at its socket: the driver's own methods wait for the statement that is running. SQLite's is
    closed without a rollback before: the thread could slip a statement in between, outside any transaction.
    """
    connection = session.connection
    if connection is None:
        return
    if session.vendor == "postgresql":
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)
    else:
        connection.close()

"""
How the database sessions of a worker process are set.

A copy of a handler that is stopped or powered off holds its inbox row until the database notices: it asks
a dead machine by TCP keepalives of its own, and ends a stopped process's transaction by
``idle_in_transaction_session_timeout``. The other way round the client's keepalives and its
``tcp_user_timeout`` find a database that went away without a word.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

from django.db import DatabaseError, connections
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
# The same at the server's end of the line, where the operating system waits two hours before it asks.
SERVER_SIDE: Final[Mapping[str, str]] = {
    "tcp_keepalives_idle": "10s",
    "tcp_keepalives_interval": "5s",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30s",
}
# Also in the middle of a statement. PostgreSQL refuses it where the platform cannot tell.
_WHILE_BUSY: Final = "SET client_connection_check_interval = '10s'"
MARGIN_S: Final = (1.0, 30.0)


def idle_limit_s(timeout_s: float) -> float:
    """
    For how long the transaction of a handler may ask nothing of the database: its time-out and half of it
    again, at least a second and at most thirty more.

    A handler that outlasts its time-out is told so, and needs time to end. After that its key is freed.
    """
    least, most = MARGIN_S
    return timeout_s + min(most, max(least, timeout_s / 2))


def harden_connections(aliases: Iterable[str]) -> None:
    """New PostgreSQL sessions of this process notice a dead network; what the project has set itself stays."""
    for alias in frozenset(aliases):
        if connections[alias].vendor == "postgresql":
            options = connections.settings[alias].setdefault("OPTIONS", {})
            for name, value in HARDENED.items():
                options.setdefault(name, value)


def limit_idle_transactions(aliases: Iterable[str], *, idle_s: float) -> Callable[[], None]:
    """
    From now on every new PostgreSQL session of this process ends a transaction idle for ``idle_s``, and ends
    itself when this machine does not answer any more.

    Its connections are hardened too (:func:`harden_connections`).

    Returns:
        A function that undoes the limit, for tests.
    """
    wanted = frozenset(aliases)
    harden_connections(wanted)

    def prepare(*, connection: BaseDatabaseWrapper, **_: object) -> None:
        if connection.alias in wanted and connection.vendor == "postgresql":
            limits = {**SERVER_SIDE, "idle_in_transaction_session_timeout": f"{int(idle_s * 1000)}ms"}
            with connection.cursor() as cursor:
                cursor.execute("; ".join(f"SET {name} = '{value}'" for name, value in limits.items()))
                if not connection.in_atomic_block and connection.get_autocommit():
                    with suppress(DatabaseError):
                        cursor.execute(_WHILE_BUSY)

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

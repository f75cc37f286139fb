"""
How the database sessions of a worker process are set.

A copy of a handler that is stopped or powered off holds its inbox row until the database notices: it asks
a dead machine by TCP keepalives of its own, and ends a stopped process's transaction by
``idle_in_transaction_session_timeout``. The other way round the client's keepalives and its
``tcp_user_timeout`` find a database that went away without a word.

None of them ends a statement that waits: for a lock somebody holds for ever, or for a server that is frozen and
whose kernel still acknowledges every byte. For jetbridge's own statements :func:`limit_this_thread` does the
one, and :func:`interrupt` the other.
"""

from __future__ import annotations

import os
import select
import socket
import threading
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
# The server gives up first: a lock that is held then costs a statement, and not the session with it.
STATEMENT_SHARE: Final = 0.8
SQLITE_TIMEOUT_S: Final = 5.0  # the driver's
SQLITE_MARGIN_S: Final = 5.0
_this_thread = threading.local()


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
            limit_s = _limit_s(connection) or idle_s
            limits = {**SERVER_SIDE, "idle_in_transaction_session_timeout": f"{int(limit_s * 1000)}ms"}
            with connection.cursor() as cursor:
                cursor.execute("; ".join(f"SET {name} = '{value}'" for name, value in limits.items()))
                if not connection.in_atomic_block and connection.get_autocommit():
                    with suppress(DatabaseError):
                        cursor.execute(_WHILE_BUSY)

    connection_created.connect(prepare, weak=False)

    def undo() -> None:
        connection_created.disconnect(prepare)

    return undo


def deadline_s(wanted_s: float, aliases: Iterable[str]) -> float:
    """
    A deadline for threads that use ``aliases``: ``wanted_s``, or longer where the database has a limit of its own.

    SQLite waits for its one writer as long as ``OPTIONS["timeout"]`` says, and nothing ends that wait earlier. A
    shorter deadline would only add one thread more to those that wait.
    """
    found = [wanted_s]
    for alias in aliases:
        if connections[alias].vendor == "sqlite":
            own_s = float(connections.settings[alias].get("OPTIONS", {}).get("timeout", SQLITE_TIMEOUT_S))
            found.append(own_s + SQLITE_MARGIN_S)
    return max(found)


def limit_this_thread(seconds: float) -> None:
    """
    PostgreSQL ends what a session of this thread does, a little before ``seconds`` are over, from the next one on.

    A client that was cut off or stopped would else leave its statement behind: one backend more waits for the
    lock at each new try, until there are no connections left. And a stopped one keeps the locks of its
    transaction. Sessions that are shared with others are left as they are.
    """
    _this_thread.limit_s = seconds * STATEMENT_SHARE


def _limit_s(connection: BaseDatabaseWrapper) -> float | None:
    """
    ``None`` also for a session that other threads or programs get: of Django's pool, or of a pooler in
    transaction mode, for which Django wants that setting.
    """
    known = connection.settings_dict
    if known.get("OPTIONS", {}).get("pool") or known.get("DISABLE_SERVER_SIDE_CURSORS"):
        return None
    return getattr(_this_thread, "limit_s", None)


def _limit(*, connection: BaseDatabaseWrapper, **_: object) -> None:
    limit_s = _limit_s(connection)
    if limit_s is not None and connection.vendor == "postgresql":
        limit_ms = max(1, int(limit_s * 1000))
        with connection.cursor() as cursor:
            cursor.execute(
                f"SET statement_timeout = {limit_ms}; SET idle_in_transaction_session_timeout = {limit_ms}"
            )


connection_created.connect(_limit, dispatch_uid="jetbridge.runtime.sessions")


def interrupt(session: BaseDatabaseWrapper) -> None:
    """
    End what another thread does in a session, without waiting: its statement fails, as in an outage.

    PostgreSQL's at its socket. SQLite is asked to stop; where it waits for a lock, its own time-out is the end.
    """
    connection = session.connection
    if connection is not None:
        if session.vendor == "sqlite":
            connection.interrupt()
        else:
            cut(session)


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


def has_ended(session: BaseDatabaseWrapper) -> bool:
    """
    Whether the server of an idle PostgreSQL session has hung up, without asking it.

    It says nothing to a client that asks nothing, but its last words, and then the end of the line.
    """
    connection = session.connection
    if connection is None or session.vendor != "postgresql" or not hasattr(select, "poll"):
        return False
    if connection.closed:
        return True
    line = select.poll()
    line.register(connection.fileno(), select.POLLIN)
    return bool(line.poll(0))

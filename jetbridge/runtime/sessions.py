"""
How the database sessions of a worker process are set.

A copy of a handler that is stopped or powered off holds its inbox row until the database notices. TCP
keepalives find a dead machine, ``idle_in_transaction_session_timeout`` a stopped process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

KEEPALIVES = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


def limit_idle_transactions(aliases: Iterable[str], *, idle_s: float) -> Callable[[], None]:
    """
    From now on every new PostgreSQL session of this process ends a transaction idle for ``idle_s``.

    Returns:
        A function that undoes it, for tests.
    """
    wanted = frozenset(aliases)
    for alias in wanted:
        if connections[alias].vendor == "postgresql":
            options = connections.settings[alias].setdefault("OPTIONS", {})
            for name, value in KEEPALIVES.items():
                options.setdefault(name, value)

    def prepare(*, connection: BaseDatabaseWrapper, **_: object) -> None:
        if connection.alias in wanted and connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(f"SET idle_in_transaction_session_timeout = {int(idle_s * 1000)}")

    connection_created.connect(prepare, weak=False)

    def undo() -> None:
        connection_created.disconnect(prepare)

    return undo

"""
The business tables, in SQL that both databases understand, and plain connections to them.

``chaos_step`` has a row for each event that was committed with its transaction: it decides what counts as
published. ``chaos_effect`` has one for each run of a handler that was committed, and no unique key: a second
effect must be visible.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

Row: TypeAlias = tuple[Any, ...]
Query: TypeAlias = Callable[[str], Sequence[Row]]

_SERIAL: Final = {
    "postgres": "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "sqlite": "integer PRIMARY KEY AUTOINCREMENT",
}
_TABLES: Final = (
    "CREATE TABLE chaos_key (name text PRIMARY KEY, counter integer NOT NULL)",
    "CREATE TABLE chaos_step (step text PRIMARY KEY, event_id text NOT NULL, key text NOT NULL, n integer, "
    "fate text NOT NULL, copies integer NOT NULL)",
    "CREATE TABLE chaos_effect (id {serial}, handler text NOT NULL, event_id text NOT NULL, key text NOT NULL, "
    "n integer, answer_id text NOT NULL, pid integer NOT NULL, attempt integer NOT NULL)",
)


def connect(database: str, *, timeout_s: float = 20.0) -> Any:
    """A plain DB-API connection in autocommit: ``execute()`` and ``close()`` are the same for both."""
    if not database.startswith("postgresql://"):
        return sqlite3.connect(database, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    import psycopg

    return psycopg.connect(database, autocommit=True, connect_timeout=int(timeout_s))


def create(database: str, vendor: str, keys: int) -> None:
    connection = connect(database)
    for table in _TABLES:
        connection.execute(table.format(serial=_SERIAL[vendor]))
    names = ", ".join(f"('k{number}', 0)" for number in range(keys))
    connection.execute(f"INSERT INTO chaos_key (name, counter) VALUES {names}")
    connection.close()

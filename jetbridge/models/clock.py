"""The database's wall clock as an expression."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField, Func
from django.db.models.sql.compiler import SQLCompiler


class WallClock(Func):
    """
    The time of day at the database, now or ``offset_s`` seconds from now, finer than a second.

    Not ``Now()``: on PostgreSQL that is the start of the transaction, so a lease renewed late in one
    would look older than it is; on SQLite and MySQL it has whole seconds.

    On PostgreSQL it is a sub-select: ``clock_timestamp()`` is volatile, and compared directly it would be
    evaluated for each row and never used with an index (300,000 scheduled rows: 42 ms against 0.02 ms).
    """

    output_field = DateTimeField()

    def __init__(self, offset_s: float = 0.0) -> None:
        super().__init__()
        self.offset_s = float(offset_s)

    def as_sql(  # type: ignore[override]
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **extra: Any
    ) -> tuple[str, tuple[str | int, ...]]:
        raise NotImplementedError(f"jetbridge knows no wall clock for {connection.vendor!r}.")

    def as_postgresql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **extra: Any
    ) -> tuple[str, tuple[str | int, ...]]:
        return "(SELECT clock_timestamp() + make_interval(secs => %s::float8))", (str(self.offset_s),)

    def as_sqlite(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **extra: Any
    ) -> tuple[str, tuple[str | int, ...]]:
        # Under USE_TZ=False Django stores local time here, and sets the process's zone to TIME_ZONE.
        zone = "'now'" if settings.USE_TZ else "'now', 'localtime'"
        return f"strftime('%%Y-%%m-%%d %%H:%%M:%%f', {zone}, %s)", (f"{self.offset_s:+.3f} seconds",)

    def as_mysql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **extra: Any
    ) -> tuple[str, tuple[str | int, ...]]:
        return "(UTC_TIMESTAMP(6) + INTERVAL %s MICROSECOND)", (round(self.offset_s * 1e6),)

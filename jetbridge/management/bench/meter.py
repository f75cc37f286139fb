"""What is read while something runs: the clock, this process's CPU time, the statements it sends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from types import TracebackType
from typing import Any, Final, Self

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from jetbridge.errors import JetbridgeError

STALLED_S: Final = 30.0
LOOK_S: Final = 0.005

Execute = Callable[[str, Any, bool, dict[str, Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One reading, or the difference of two. Times in seconds."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    statements: int = 0

    def __add__(self, other: Mark) -> Mark:
        return Mark(
            wall_s=self.wall_s + other.wall_s,
            cpu_s=self.cpu_s + other.cpu_s,
            statements=self.statements + other.statements,
        )

    def __sub__(self, other: Mark) -> Mark:
        return Mark(
            wall_s=self.wall_s - other.wall_s,
            cpu_s=self.cpu_s - other.cpu_s,
            statements=self.statements - other.statements,
        )


class Meter:
    """
    Reads all three, of every thread of this process, between ``with`` and its end.

    Statements are those that go through a Django cursor's ``execute``: transaction control and COPY do not.

    Args:
        watch_for: ``first`` is read just before the first statement that contains this.
    """

    def __init__(self, using: str, *, watch_for: str = "") -> None:
        self.first: Mark | None = None
        self._using = using
        self._watch_for = watch_for
        self._counters: list[_Counter] = []

    def __enter__(self) -> Self:
        connection_created.connect(self._count_on, dispatch_uid=id(self))
        connection = connections[self._using]
        if connection.connection is not None:
            self._count_on(connection=connection)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection_created.disconnect(dispatch_uid=id(self))
        for counter in self._counters:
            counter.remove()

    def read(self) -> Mark:
        return Mark(
            wall_s=time.perf_counter(),
            cpu_s=time.process_time(),
            statements=sum(counter.count for counter in self._counters),
        )

    def saw(self, sql: str) -> None:
        """A statement is about to be sent."""
        if self.first is None and self._watch_for and self._watch_for in str(sql):
            self.first = self.read()

    def _count_on(self, *, connection: BaseDatabaseWrapper, **_: object) -> None:
        if connection.alias == self._using and not any(c.connection is connection for c in self._counters):
            self._counters.append(_Counter(connection, self.saw))


class _Counter:
    """Counts on one connection, and so in one thread: a shared number would lose some."""

    def __init__(self, connection: BaseDatabaseWrapper, saw: Callable[[str], None]) -> None:
        self.connection = connection
        self.count = 0
        self._saw = saw
        connection.execute_wrappers.append(self.wrap)

    def wrap(self, execute: Execute, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        self._saw(sql)
        self.count += 1
        return execute(sql, params, many, context)

    def remove(self) -> None:
        if self.wrap in self.connection.execute_wrappers:
            self.connection.execute_wrappers.remove(self.wrap)


class Progress:
    """
    Counts towards a number, from any thread.

    Attributes:
        last: The reading at the latest count.
    """

    def __init__(self, meter: Meter, *, expected: int, what: str) -> None:
        self.count = 0
        self.last = Mark()
        self._meter = meter
        self._expected = expected
        self._what = what
        self._lock = Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.count += count
            self.last = self._meter.read()

    async def finished(self) -> None:
        """
        Wait until all is counted. The moment itself is in ``last``, however late this notices.

        Raises:
            JetbridgeError: Nothing was counted for half a minute.
        """
        seen, since = self.count, time.monotonic()
        while self.count < self._expected:
            await asyncio.sleep(LOOK_S)
            if self.count != seen:
                seen, since = self.count, time.monotonic()
            elif time.monotonic() - since > STALLED_S:
                raise JetbridgeError(
                    f"{self.count} of {self._expected} events were {self._what}, and no more for {STALLED_S:g} s; "
                    f"the log on stderr says why."
                )

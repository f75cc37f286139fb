"""Calls that hang once: whatever a loop calls may never come back, one after the other."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from testproject.postgres import Postgres


class LetGo(Exception):
    """What a call that hung ends with, so that it does nothing after all."""


class Hanging:
    """
    Attributes:
        hung: Names of the calls that have hung.
        go: Lets all of them go.

    Args:
        for_s: They end by themselves then; longer than every deadline in the test.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, for_s: float = 60.0) -> None:
        self.hung: list[str] = []
        self.go = threading.Event()
        self._for_s = for_s
        self._patch = monkeypatch
        self._lock = threading.Lock()
        self._on_the_loop: set[str] = set()

    def every_function_of(self, module: ModuleType) -> None:
        """Each that is called hangs at its first call."""
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                self.at(module, name)

    def at(self, owner: Any, name: str) -> None:
        """One function, plain or a coroutine's; on the loop a coroutine hangs without blocking it."""
        real = getattr(owner, name)
        title = f"{getattr(owner, '__name__', owner)}.{name}"
        if inspect.iscoroutinefunction(real):
            self._on_the_loop.add(title)
        hang = self._loop_hang if inspect.iscoroutinefunction(real) else self._thread_hang
        self._patch.setattr(owner, name, hang(real, title))

    def _is_first(self, title: str) -> bool:
        if not threading.current_thread().name.startswith("jetbridge-") and title not in self._on_the_loop:
            return False  # the test's own
        with self._lock:
            if title in self.hung:
                return False
            self.hung.append(title)
            return True

    def _thread_hang(self, real: Callable[..., Any], title: str) -> Callable[..., Any]:
        @functools.wraps(real)
        def call(*args: Any, **keys: Any) -> Any:
            if self._is_first(title):
                self.go.wait(self._for_s)
                raise LetGo(title)
            return real(*args, **keys)

        return call

    def _loop_hang(self, real: Callable[..., Any], title: str) -> Callable[..., Any]:
        @functools.wraps(real)
        async def call(*args: Any, **keys: Any) -> Any:
            if self._is_first(title):
                async with asyncio.timeout(self._for_s):
                    await asyncio.Event().wait()
                raise LetGo(title)
            return await real(*args, **keys)

        return call


@contextmanager
def frozen(server: Postgres) -> Iterator[None]:
    """
    Every process of a PostgreSQL stopped inside the block. Its kernel still acknowledges what clients send.
    """
    stopped: list[int] = []
    try:
        os.kill(server.pid, signal.SIGSTOP)  # first: it starts no further one
        stopped.append(server.pid)
        for pid in server.children:
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
        yield
    finally:
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)

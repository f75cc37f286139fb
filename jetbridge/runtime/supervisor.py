"""
A worker process from start to exit code: signals, drain, forced end.

The first SIGTERM or SIGINT drains, the second ends the process at once with 128 + its number, after the last
acts of :func:`on_forced_end`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

logger = logging.getLogger("jetbridge.runtime")

T = TypeVar("T")
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
LAST_ACTS_S: Final = 2.0
_last_acts: Final[list[Callable[[], None]]] = []


def process_id() -> str:
    """A name for this process that no other has, also after the operating system reuses its pid."""
    return f"{socket.gethostname()[:60]}:{os.getpid()}:{secrets.token_hex(4)}"


@contextmanager
def on_forced_end(act: Callable[[], None]) -> Iterator[None]:
    """
    Inside the block a forced end runs ``act`` first, on a thread, for at most ``LAST_ACTS_S`` in all.
    """
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


def run(main: Callable[[asyncio.Event], Awaitable[T]]) -> T:
    """
    Run ``main`` on a new event loop, giving it the event that asks it to drain.
    """

    async def supervised() -> T:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, _on_signal, number, stop)
        try:
            return await main(stop)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    return asyncio.run(supervised())


def _on_signal(number: signal.Signals, stop: asyncio.Event) -> None:
    if stop.is_set():
        logger.warning("Second %s: ending at once.", number.name)
        _act()
        os._exit(128 + number)
    logger.info("%s: draining.", number.name)
    stop.set()


def _act() -> None:
    """On threads, because the database may be what hangs; whatever goes wrong, the end comes."""
    deadline = time.monotonic() + LAST_ACTS_S
    threads = [threading.Thread(target=act, daemon=True) for act in list(_last_acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))

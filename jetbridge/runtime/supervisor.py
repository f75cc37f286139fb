"""
A worker process from start to exit code: signals, drain, forced end.

The first SIGTERM or SIGINT drains, the second ends the process at once with 128 + its number.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

logger = logging.getLogger("jetbridge.runtime")

T = TypeVar("T")
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def process_id() -> str:
    """A name for this process that no other has, also after the operating system reuses its pid."""
    return f"{socket.gethostname()[:60]}:{os.getpid()}:{secrets.token_hex(4)}"


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
        os._exit(128 + number)
    logger.info("%s: draining.", number.name)
    stop.set()

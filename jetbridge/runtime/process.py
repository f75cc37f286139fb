"""The frame of a worker process: its loops, its one-shot variant, its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from django.db import DatabaseError, InterfaceError

logger = logging.getLogger("jetbridge.runtime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """When a one-shot run ends: as soon as ``empty`` says so, or after ``timeout_s`` (``None``: never)."""

    empty: Callable[[], Awaitable[bool]]
    timeout_s: float | None


async def run_until(stop: asyncio.Event, until: Until | None) -> bool:
    """
    Wait for the stop or, in a one-shot run, until all is done.

    Returns:
        ``False`` only if a one-shot run ran out of time.
    """
    if until is None:
        await stop.wait()
        return True
    return await _wait_until(until, stop)


async def _wait_until(until: Until, stop: asyncio.Event) -> bool:
    deadline = None if until.timeout_s is None else time.monotonic() + until.timeout_s
    while not stop.is_set():
        if deadline is not None and time.monotonic() >= deadline:
            return False
        if await until.empty():
            return True
        await asyncio.sleep(0.05)
    return True


async def quietly(what: str, step: Awaitable[object], *, timeout_s: float) -> None:
    """One step of an orderly end, in bounded time: if it fails, the other steps still happen."""
    try:
        async with asyncio.timeout(timeout_s):
            await step
    except (TimeoutError, DatabaseError, InterfaceError, OSError) as error:
        logger.warning("While ending: %s failed (%s).", what, str(error) or type(error).__name__)

"""Waiting for a fact, with a deadline. The only place of the tests that sleeps."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def eventually(
    fact: Callable[[], T], timeout_s: float = 10.0, *, interval_s: float = 0.02, what: str = ""
) -> T:
    """
    Call ``fact`` until it returns something true, and return that.

    An ``AssertionError`` counts as "not yet", so a fact may be written with asserts; it must then return
    something true at its end. Every other exception is an error at once.

    Raises:
        AssertionError: The deadline passed; the text shows the last value and the last failed assert.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value, failure = _try(fact)
        if failure is None and value:
            return value  # type: ignore[return-value]
        if time.monotonic() >= deadline:
            raise AssertionError(_verdict(fact, timeout_s, value, what)) from failure
        time.sleep(interval_s)


async def aeventually(
    fact: Callable[[], Any], timeout_s: float = 10.0, *, interval_s: float = 0.02, what: str = ""
) -> Any:
    """:func:`eventually` on the event loop; ``fact`` may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        value, failure = _try(fact)
        if inspect.isawaitable(value):
            try:
                value = await value
            except AssertionError as error:
                value, failure = None, error
        if failure is None and value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_verdict(fact, timeout_s, value, what)) from failure
        await asyncio.sleep(interval_s)


def _try(fact: Callable[[], object]) -> tuple[object, AssertionError | None]:
    try:
        return fact(), None
    except AssertionError as failure:
        return None, failure


def _verdict(fact: Callable[[], object], timeout_s: float, value: object, what: str) -> str:
    name = what or getattr(fact, "__qualname__", repr(fact))
    return f"Not true within {timeout_s:g} s: {name}. Last value: {value!r}."

"""Identifiers: UUIDv7 for events, random hex for traces."""

from __future__ import annotations

import re
import secrets
import threading
import time
import uuid
from typing import Final

VISIBLE_ASCII: Final = re.compile(r"[\x21-\x7e]{1,128}")


class _Clock:
    """The last (millisecond, counter) handed out, so that ids of one process never go backwards."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def tick(self) -> int:
        """A 60-bit number that grows: 48 bits of milliseconds, then 12 bits of sub-millisecond counter."""
        now = (time.time_ns() << 12) // 1_000_000
        with self._lock:
            self._last = max(now, self._last + 1)
            return self._last


_clock = _Clock()


def new_event_id() -> str:
    """
    A UUIDv7 (RFC 9562): starts with the time, so that index inserts touch one end of the B-tree.

    The 12 bits after the version carry fractions of a millisecond (RFC 9562, method 3).
    """
    ticks = _clock.tick()
    value = (
        (ticks >> 12 & (1 << 48) - 1) << 80
        | 0x7 << 76
        | (ticks & 0xFFF) << 64
        | 0b10 << 62
        | secrets.randbits(62)
    )
    return str(uuid.UUID(int=value))


def new_trace_id() -> str:
    """16 hex digits, the form the Ruby gem writes."""
    return secrets.token_hex(8)


def check_event_id(value: object) -> str:
    """
    Return a caller's own event id.

    Raises:
        ValueError: It is not 1 to 128 visible ASCII characters.
    """
    if not isinstance(value, str) or VISIBLE_ASCII.fullmatch(value) is None:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:76]}… ({len(str(value))} characters)"
        raise ValueError(f"event_id must be 1 to 128 visible ASCII characters, got {shown}.")
    return value

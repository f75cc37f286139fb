"""
A lock on the directory of an embedded server, held by the server process itself.

Two nats-servers on one store directory both start without a word and ruin it. The lock is a file lock on a descriptor
that the server inherits: it is free when, and only when, the server has ended, however that happened.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TRIES: Final = 20
PAUSE_S: Final = 0.01


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int | None]:
    """
    The lock as a descriptor to hand to the server, ``None`` if somebody else holds it.

    Our own copy is closed at the end of the block, so that the server alone holds it from then on.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield lock if _taken(lock) else None
    finally:
        os.close(lock)


def is_locked(path: Path) -> bool:
    """Whether a server lives; a missing file is an unheld lock."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _try_lock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def _taken(lock: int) -> bool:
    # More than one try: is_locked() holds the lock for an instant, too.
    for _ in range(TRIES):
        if _try_lock(lock, fcntl.LOCK_EX):
            return True
        time.sleep(PAUSE_S)
    return False


def _try_lock(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

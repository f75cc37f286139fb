"""
Stable numbers for keys: outbox buckets and stream partitions.

FNV-1a 32 is what nats-server computes for ``{{partition(n,token)}}`` (measured on 2.10 to 2.15),
so a partition chosen here is the one a server-side transform would choose.
"""

from __future__ import annotations

from typing import Final

BUCKETS: Final = 64
"""Outbox buckets: the grain in which relays share work. A constant of the schema: never a setting."""

_OFFSET: Final = 0x811C9DC5
_PRIME: Final = 0x01000193


def fnv1a32(data: bytes) -> int:
    """FNV-1a, 32 bit, of ``data``."""
    value = _OFFSET
    for byte in data:
        value = ((value ^ byte) * _PRIME) & 0xFFFFFFFF
    return value


def partition(key: str, count: int) -> int:
    """The stream partition of ``key``, from 0 to ``count`` - 1."""
    return fnv1a32(key.encode("utf-8", "surrogatepass")) % count


def bucket(key: str, event_id: str) -> int:
    """The outbox bucket of a row: by key, so that one relay sees all of a key; by event id if there is none."""
    return partition(key or event_id, BUCKETS)

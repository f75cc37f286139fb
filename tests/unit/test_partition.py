"""Numbers of keys: what the server's ``partition()`` computes, the same in every language and for ever."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetbridge import partition


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 0x811C9DC5),
        (b"a", 0xE40C292C),
        (b"b", 0xE70C2DE5),
        (b"foobar", 0xBF9CF968),
        (b"hello", 0x4F9F2CAB),
        (b"\x00", 0x050C5D1F),
    ],
)
def test_fnv1a_32(data, value):
    """Published vectors of FNV-1a, 32 bit."""
    assert partition.fnv1a32(data) == value


def test_there_are_64_buckets():
    """A constant of the schema: a changed number would move rows between relays."""
    assert partition.BUCKETS == 64


@given(st.text(), st.integers(1, 1_024))
def test_a_partition_is_the_hash_modulo_n(key, count):
    """UTF-8 of the key."""
    assert partition.partition(key, count) == partition.fnv1a32(key.encode()) % count


@given(st.text(st.characters(codec=None)))
def test_any_text_has_a_bucket(key):
    """Also lone surrogates."""
    assert 0 <= partition.bucket(key, "id") < 64


def test_a_bucket_is_of_the_key_else_of_the_event_id():
    """One relay sees all of a key; events without a key are spread."""
    assert partition.bucket("k", "1") == partition.bucket("k", "2") == partition.partition("k", 64)
    assert partition.bucket("", "1") == partition.partition("1", 64)


def test_buckets_of_ordinary_keys_are_even():
    """No bucket gets twice its share."""
    counts = Counter(partition.bucket(f"order:{n}", "") for n in range(64_000))

    assert len(counts) == 64
    assert max(counts.values()) < 1_500
    assert min(counts.values()) > 600

"""Identifiers: UUIDv7 that grow, and what a caller may use instead."""

from __future__ import annotations

import threading
import time
import uuid

import pytest

from jetbridge import ids


def test_a_new_id_is_a_uuid7_of_now():
    """RFC 9562: 48 bits of milliseconds, version 7, variant 10."""
    before = time.time_ns() // 1_000_000
    value = uuid.UUID(ids.new_event_id())
    after = time.time_ns() // 1_000_000

    assert value.version == 7
    assert value.variant == uuid.RFC_4122
    assert before <= value.int >> 80 <= after + 1


def test_ids_grow_within_a_process_also_over_threads():
    """Index locality; each thread sees its own ids grow, and none repeats."""
    found: list[list[str]] = []

    def make() -> None:
        found.append([ids.new_event_id() for _ in range(2_000)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(one == sorted(one) for one in found)
    assert len({value for one in found for value in one}) == 8_000


def test_a_trace_id_is_what_the_gem_writes():
    """16 hex digits."""
    value = ids.new_trace_id()

    assert len(value) == 16
    int(value, 16)


@pytest.mark.parametrize("value", ["1", "!", "~" * 128, "order-7:placed", "a%20b"])
def test_ids_of_the_caller(value):
    """1 to 128 visible ASCII characters."""
    assert ids.check_event_id(value) == value


@pytest.mark.parametrize("value", ["", " ", "a b", "a\n", "\x7f", "é", "x" * 129, None, 5, b"x", "\ud800"])
def test_bad_ids_of_the_caller_are_named(value):
    """What was found, shortened, and what was expected."""
    with pytest.raises(ValueError, match="1 to 128 visible ASCII characters, got") as caught:
        ids.check_event_id(value)

    assert len(str(caught.value)) < 200

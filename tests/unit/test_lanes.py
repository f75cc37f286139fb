"""Lanes: the head runs, the others wait, lanes do not know one another."""

from __future__ import annotations

from collections import defaultdict, deque

from hypothesis import given
from hypothesis import strategies as st

from jetbridge.consumer.lanes import Lanes


def test_only_the_first_of_a_lane_may_run():
    lanes: Lanes[str] = Lanes()

    assert [lanes.push("a", "1"), lanes.push("a", "2"), lanes.push("b", "3")] == [True, False, True]
    assert list(lanes.lanes()) == [("1", "2"), ("3",)]
    assert lanes.pop("a") == "2"
    assert lanes.pop("a") is None
    assert len(lanes) == 1


def test_an_empty_lane_is_forgotten():
    """A consumer sees millions of keys. Red if pop() leaves the empty queue behind."""
    lanes: Lanes[int] = Lanes()
    for n in range(1_000):
        lanes.push(n, n)
        lanes.pop(n)

    assert (len(lanes), lanes._lanes) == (0, {})
    assert list(lanes.lanes()) == []
    assert lanes.push(1, 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_each_lane_is_a_queue(steps):
    """Any mix of arrivals and ends: in each lane, items run one at a time in the order they came."""
    lanes: Lanes[int] = Lanes()
    waiting: defaultdict[str, deque[int]] = defaultdict(deque)
    for n, (lane, arrives) in enumerate(steps):
        if arrives:
            assert lanes.push(lane, n) == (not waiting[lane])
            waiting[lane].append(n)
        elif waiting[lane]:
            waiting[lane].popleft()
            assert lanes.pop(lane) == (waiting[lane][0] if waiting[lane] else None)
    assert len(lanes) == sum(map(len, waiting.values()))

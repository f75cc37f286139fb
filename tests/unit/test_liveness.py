"""What counts as stuck, by a clock that the test turns."""

from __future__ import annotations

import math

from jetbridge.runtime.liveness import Beat, Liveness


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def one(limit_s: float = 5.0) -> tuple[Clock, Liveness, Beat]:
    clock = Clock()
    liveness = Liveness(clock)
    return clock, liveness, liveness.beat("work", limit_s=limit_s)


def test_a_loop_that_has_not_begun_is_not_stuck():
    clock, liveness, _ = one()
    clock.now += 1e6

    assert liveness.is_alive()


def test_a_tick_beyond_its_limit_is_stuck_until_it_is_over():
    """Red if a beat is only written at the end of a tick: the one that never ends is the one to be told of."""
    clock, liveness, beat = one()
    beat.begins()
    clock.now += 5.0
    assert liveness.is_alive()
    clock.now += 2.0

    assert [(stuck.name, stuck.overdue_s) for stuck in liveness.stuck()] == [("work", 2.0)]
    assert liveness.names() == ["work"]

    beat.rests(0.0)
    assert liveness.is_alive()


def test_a_rest_counts_from_the_time_it_should_end():
    """An hour's sleep is fine, and a sleep from which nobody wakes is not: the event loop is blocked."""
    clock, liveness, beat = one()
    beat.begins()
    beat.rests(3_600.0)
    clock.now += 3_604.0
    assert liveness.is_alive()
    clock.now += 2.0

    assert liveness.names() == ["work"]


def test_a_loop_that_ended_as_it_was_told_is_not_stuck_and_one_that_broke_off_is_for_ever():
    clock, liveness, beat = one()
    beat.begins()
    beat.stops()
    clock.now += 1e6
    assert liveness.is_alive()

    beat.breaks()
    assert liveness.stuck()[0].overdue_s == math.inf


def test_time_in_which_the_whole_process_stood_still_counts_for_nobody():
    """SIGSTOP and SIGCONT, a laptop's lid: red if stood_still() is ignored."""
    clock, liveness, beat = one()
    beat.begins()
    clock.now += 60.0
    liveness.stood_still(59.0)
    assert liveness.is_alive()
    clock.now += 5.0

    assert liveness.names() == ["work"]


def test_other_things_can_be_stuck_too():
    clock, liveness, beat = one()
    lost = False
    liveness.also("threads", lambda: lost)
    beat.begins()
    assert liveness.is_alive()

    lost = True
    clock.now += 6.0

    assert liveness.names() == ["work", "threads"]
    assert not liveness.is_alive()

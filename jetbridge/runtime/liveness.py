"""
Whether a process still does its work: a beat per loop, and the names of those that are overdue. Pure.

An exception is an event that a loop survives; silence is not, and nobody hears it. So each loop says when it
begins something and how long that may take, and others look: the watchdog, the row among the workers, the
holder of the leases, a probe. Overdue is not dead: a beat that comes after all makes everything true again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

NEVER: Final = float("inf")


class Beat:
    """
    One loop's sign of life. Written by the loop, read by any thread.

    Args:
        limit_s: How long one tick may take, and by how much a rest may be late.
        clock: Seconds that count; time in which the whole process stood still does not.
    """

    def __init__(self, name: str, *, limit_s: float, clock: Callable[[], float]) -> None:
        self.name = name
        self.limit_s = limit_s
        self.where: Callable[[], str] = lambda: ""
        self._clock = clock
        self._due = NEVER

    def begins(self) -> None:
        """A tick."""
        self._due = self._clock() + self.limit_s

    def rests(self, delay_s: float) -> None:
        """The tick is over; the next one follows after ``delay_s`` or sooner."""
        self._due = self._clock() + delay_s + self.limit_s

    def stops(self) -> None:
        """It was asked to end, and has."""
        self._due = NEVER

    def breaks(self) -> None:
        """It has ended though nobody asked it to."""
        self._due = -NEVER

    def overdue_s(self) -> float:
        """Seconds since it should have been heard of; infinite for a loop that broke off, 0 if all is well."""
        return max(0.0, self._clock() - self._due)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """
    Something that is overdue.

    Attributes:
        where: What it waits for, for people; ``""`` if that cannot be known.
    """

    name: str
    overdue_s: float
    where: str = ""


class Liveness:
    """
    The beats of a process, and whatever else can be stuck in it.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stood_still_s = 0.0
        self._beats: list[Beat] = []
        self._others: list[tuple[str, Callable[[], bool]]] = []

    def beat(self, name: str, *, limit_s: float) -> Beat:
        """A beat for a new loop; it counts from the first tick on."""
        beat = Beat(name, limit_s=limit_s, clock=self.now)
        self._beats.append(beat)
        return beat

    def also(self, name: str, is_stuck: Callable[[], bool]) -> None:
        """Something that has no beat but can be asked; from any thread, and it must not block."""
        self._others.append((name, is_stuck))

    def now(self) -> float:
        """The clock of the beats."""
        return self._clock() - self._stood_still_s

    def stood_still(self, seconds: float) -> None:
        """Nothing of this process ran meanwhile (it was stopped, or its machine slept), so nobody is late for it."""
        self._stood_still_s += seconds

    def stuck(self) -> tuple[Stuck, ...]:
        """Everything overdue. Safe from any thread, also while the event loop is blocked."""
        late = [
            Stuck(name=beat.name, overdue_s=overdue_s, where=beat.where())
            for beat in list(self._beats)
            if (overdue_s := beat.overdue_s()) > 0
        ]
        late += [Stuck(name=name, overdue_s=0.0) for name, is_stuck in list(self._others) if is_stuck()]
        return tuple(late)

    def names(self) -> list[str]:
        """Of what is stuck."""
        return [one.name for one in self.stuck()]

    def is_alive(self) -> bool:
        """Whether nothing is stuck. What waits for a broker or a database that is away is not."""
        return not self.stuck()

"""
What will be published and what will go wrong, made from the seed alone.

The writers build the same plan as the runner, so nothing of it has to travel. Of the steps only *when* a
transaction meets a fault is left to chance.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Fate(StrEnum):
    """What the handler does with an event."""

    FINE = "fine"
    SLOW = "slow"
    ANSWERED = "answered"  # the handler publishes
    FLAKY = "flaky"  # fails some times, then works
    DOOMED = "doomed"  # fails for ever
    REJECTED = "rejected"  # until an operator has mended what it was rejected for
    DEADLY = "deadly"  # ends the process, each time


# Fates that end in a dead letter, and the reason that must stand in it.
DEATHS: Final = {
    Fate.DOOMED: "max_deliver_exceeded",
    Fate.REJECTED: "rejected",
    Fate.DEADLY: "crashed",
}


class Way(StrEnum):
    """How a transaction publishes."""

    ONE = "one"
    MANY = "publish_many"
    TWICE = "one id twice in a transaction"
    AGAIN = "one id once more in a second transaction"
    DELAYED = "delayed"
    LATE = "commits late"
    SAVEPOINT = "a savepoint is rolled back, the rest commits"
    EXCEPTION = "rolled back by an exception"
    SET_ROLLBACK = "rolled back by set_rollback"
    HANG_UP = "the client hangs up"


ROLLED_BACK: Final = (Way.EXCEPTION, Way.SET_ROLLBACK, Way.HANG_UP)
_WAYS: Final = {
    Way.ONE: 52,
    Way.MANY: 8,
    Way.TWICE: 4,
    Way.AGAIN: 4,
    Way.DELAYED: 5,
    Way.LATE: 7,
    Way.SAVEPOINT: 6,
    Way.EXCEPTION: 6,
    Way.SET_ROLLBACK: 4,
    Way.HANG_UP: 4,
}
_FATES: Final = {
    Fate.FINE: 780,
    Fate.SLOW: 40,
    Fate.ANSWERED: 100,
    Fate.FLAKY: 60,
    Fate.DOOMED: 12,
    Fate.REJECTED: 8,
}
EVENTS_PER_DEADLY: Final = 8_000
FIRST_DEADLY: Final = 2_000
LAZY_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedEvent:
    """``key``: ``""`` for none. ``times``: how often a flaky one fails."""

    key: str
    fate: Fate
    times: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """
    One transaction (two for ``AGAIN``).

    Attributes:
        at: When, as a share of the run.
        hold_s: How long it stays open, on a database that many can write to.
        lazy: Committed with ``synchronous_commit = off``: a crash of the database may undo it, event and all.
    """

    number: int
    way: Way
    events: tuple[PlannedEvent, ...]
    at: float
    hold_s: float = 0.0
    delay_s: float = 0.0
    lazy: bool = False

    @property
    def commits(self) -> bool:
        return self.way not in ROLLED_BACK


def steps(events: int, *, seed: int, keys: int) -> list[Step]:
    """Steps that commit exactly ``events`` events, and roll others back, in the order of their time."""
    rng = random.Random(f"steps {seed}")
    deadly = _deadly(events, rng)
    planned = list[tuple[Way, tuple[PlannedEvent, ...]]]()
    committed = 0
    while committed < events:
        way = rng.choices(list(_WAYS), list(_WAYS.values()))[0]
        count = min(rng.randint(2, 8), events - committed) if way is Way.MANY else 1
        made = tuple(_event(rng, way, keys, deadly=committed + n in deadly) for n in range(count))
        planned.append((way, made))
        if way not in ROLLED_BACK:
            committed += count
    return [
        Step(
            number=number,
            way=way,
            events=made,
            at=number / len(planned),
            hold_s=rng.uniform(0.1, 1.5) if way is Way.LATE else 0.0,
            delay_s=rng.uniform(0.2, 4.0) if way is Way.DELAYED else 0.0,
            lazy=way is not Way.AGAIN and rng.random() < LAZY_SHARE,
        )
        for number, (way, made) in enumerate(planned)
    ]


def _deadly(events: int, rng: random.Random) -> frozenset[int]:
    """Spread over the run: each costs several takeovers, and two at once would hide one another."""
    count = 0 if events < FIRST_DEADLY else max(1, events // EVENTS_PER_DEADLY)
    share = events / max(1, count)
    return frozenset(int((number + rng.uniform(0.2, 0.7)) * share) for number in range(count))


def _event(rng: random.Random, way: Way, keys: int, *, deadly: bool) -> PlannedEvent:
    # A delayed event takes its place when it is due, so its key has no order to check.
    ordered = way is not Way.DELAYED and rng.random() < 0.85
    key = f"k{rng.randrange(keys)}" if ordered else ""
    fate = Fate.DEADLY if deadly else rng.choices(list(_FATES), list(_FATES.values()))[0]
    return PlannedEvent(key=key, fate=fate, times=rng.randint(1, 2) if fate is Fate.FLAKY else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFault:
    """
    Attributes:
        at_s: Seconds after the start of the faults; later if what it needs is not there then.
        draw: From 0 to 1: which of the targets it hits.
        for_s: How long it lasts, where it lasts.
    """

    number: int
    kind: str
    at_s: float
    draw: float
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of fault: how often, compared with the others, and how long (``low`` to ``high`` seconds)."""

    name: str
    weight: float
    low_s: float = 0.0
    high_s: float = 0.0


def faults(count: int, kinds: Sequence[Kind], *, seed: int, pace_s: float) -> list[PlannedFault]:
    """``count`` faults, one every ``pace_s`` on average; every kind at least once where there is room."""
    rng = random.Random(f"faults {seed}")
    chosen = rng.sample(kinds, min(count, len(kinds)))
    chosen += rng.choices(kinds, [kind.weight for kind in kinds], k=count - len(chosen))
    rng.shuffle(chosen)
    return [
        PlannedFault(
            number=number,
            kind=kind.name,
            at_s=(number + rng.uniform(0.1, 0.9)) * pace_s,
            draw=rng.random(),
            for_s=rng.uniform(kind.low_s, kind.high_s),
        )
        for number, kind in enumerate(chosen)
    ]

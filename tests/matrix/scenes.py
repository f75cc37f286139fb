"""What goes on in a run besides the fault: the events, the settings of each role, what the world is like. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

FIRST: Final = 9
SECOND: Final = 4
KEYS: Final = 3
MAX_ATTEMPTS: Final = 2
MAX_STARTS: Final = 3
# The broker refuses a message above this in the scene REFUSED, until the operator lifts it.
MAX_BYTES: Final = 2_000


class Role(StrEnum):
    """A process of a run."""

    WRITER = "writer"
    RELAY = "relay"
    CONSUMER = "consumer"
    REDRIVE = "redrive"
    PROVISION = "provision"


class Scene(StrEnum):
    """
    ``full``: the subject takes two messages at a time, so rows park. ``refused``: a row is too large, its
    followers are held, an operator mends it. ``scheduled``: some events are for later. ``flaky``: handlers fail
    once. ``redelivered``: somebody had the messages in hand before. ``drain``: the victim is asked to end.
    ``redrive``: dead letters are driven again, and in ``redrive_again`` fail again.
    """

    PLAIN = "plain"
    FULL = "full"
    REFUSED = "refused"
    SCHEDULED = "scheduled"
    FLAKY = "flaky"
    REDELIVERED = "redelivered"
    DRAIN = "drain"
    POISON = "poison"
    REDRIVE = "redrive"
    REDRIVE_AGAIN = "redrive_again"

    @property
    def is_redriven(self) -> bool:
        return self in (Scene.REDRIVE, Scene.REDRIVE_AGAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """
    An order that a writer is to place.

    Attributes:
        do: What its handler does, see :mod:`tests.matrix.handlers`.
        is_rolled_back: Its transaction ends with an error after the publish.
        is_twice: It is published twice under one id, in one transaction.
        delay_s: 0 for at once.
        is_large: Its body is above :data:`MAX_BYTES`.
    """

    n: int
    key: str
    do: str = "ok"
    is_rolled_back: bool = False
    is_twice: bool = False
    delay_s: float = 0.0
    is_large: bool = False

    @property
    def number(self) -> str:
        return f"order-{self.n}"

    @property
    def event_id(self) -> str:
        """Told apart from those of other runs by its stream alone."""
        return f"event-{self.n}"

    @property
    def answer_id(self) -> str:
        return f"{self.event_id}-answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``first`` is written before the fault (by the victim, if that is the writer), ``second`` after it."""

    first: Sequence[Planned]
    second: Sequence[Planned]

    @property
    def all(self) -> Sequence[Planned]:
        return (*self.first, *self.second)


def plan(scene: Scene, rng: random.Random) -> Plan:
    """The orders of a run; the seed decides about keys and who is special."""
    numbers = list(range(1, FIRST + 1))
    special = rng.sample(numbers[:-1], 7)
    rolled_back, twice, answer, *others = special
    orders = [
        _order(
            n, scene, rng, others=others, rolled_back=n == rolled_back, twice=n == twice, answer=n == answer
        )
        for n in numbers
    ]
    return Plan(first=orders, second=[_later(FIRST + 1 + n, scene, n) for n in range(SECOND)])


def _order(
    n: int,
    scene: Scene,
    rng: random.Random,
    *,
    others: Sequence[int],
    rolled_back: bool,
    twice: bool,
    answer: bool,
) -> Planned:
    key = f"k{rng.randrange(KEYS)}"
    chosen = n in others[:3]
    do, delay_s, large = "answer" if answer else "ok", 0.0, False
    match scene:
        case Scene.POISON | Scene.REDRIVE | Scene.REDRIVE_AGAIN if n in others[:2]:
            do = "poison"
        case Scene.FLAKY if chosen:
            do = "snooze" if n == others[2] else "flaky"
        case Scene.SCHEDULED if chosen:
            delay_s = 0.6
        case Scene.REFUSED:
            # The large one first in its key: the others of it have something to wait for.
            large, key = n == min(others), "k0" if n % 2 or n == min(others) else key
        case Scene.DRAIN:
            do, key = "slow", "k0"
    return Planned(
        n=n, key=key, do=do, is_rolled_back=rolled_back, is_twice=twice, delay_s=delay_s, is_large=large
    )


def _later(n: int, scene: Scene, index: int) -> Planned:
    return Planned(n=n, key=f"k{index % KEYS}", is_rolled_back=index == 1)


LOCK_TIMEOUT_S: Final = 0.3
# The victim's role changes hands soon; the others' must not, however loaded the machine is.
CALM_LEASE_S: Final = 60.0


def hasty_lease_s(scene: Scene, slowness: float) -> float:
    """
    The term of the victim's role. A fault lasts longer than this, than its ack_wait and than a lock time-out.

    Args:
        slowness: From 1. On a machine with more to do than it can, a process that is not renewed in time was
            starved and not hit: with terms of a second nobody would hold a lease long enough to work.
    """
    # While a consumer drains its handler is open; on SQLite nobody else can write then, not even renew a lease.
    return (3.0 if scene is Scene.DRAIN else 1.0) * slowness


def settings_of(
    role: Role, *, scene: Scene, victim: Role, slowness: float, app: str, nats_url: str
) -> dict[str, Any]:
    """``JETBRIDGE`` for a process of a run. One service that sends to itself."""
    # The server's ack_wait comes from whoever provisions, so that one is as hasty as the consumer.
    is_hasty = role is victim or (role is Role.PROVISION and victim is Role.CONSUMER)
    lease_s = hasty_lease_s(scene, slowness) if is_hasty else CALM_LEASE_S
    return {
        "LEASE_S": lease_s,
        "ACK_WAIT_S": lease_s / 2,
        "PUBLISH_TIMEOUT_S": lease_s / 2,
        "LOCK_TIMEOUT_S": LOCK_TIMEOUT_S,
        "APP_NAME": app,
        "DESTINATIONS": [app],
        "SOURCES": [app],
        "NATS_URLS": [nats_url],
        "PAGE_SIZE": 4,
        "POLL_INTERVAL_S": 0.15,  # idle looks would be most of what a run costs
        "PARK_RETRY_S": 0.1,
        "CONCURRENCY": 3,
        "MAX_ATTEMPTS": MAX_ATTEMPTS,
        "MAX_STARTS": MAX_STARTS,
        "BACKOFF": [0.05],
        "SHUTDOWN_TIMEOUT_S": 5,
        **({"MAX_MESSAGES_PER_SUBJECT": 2} if scene is Scene.FULL else {}),
    }

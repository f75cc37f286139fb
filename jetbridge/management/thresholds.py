"""``--fail-on outbox-age=60s,dead=1``: what makes a status an alarm. Pure."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from jetbridge.monitor.views import ConsumerView, StatusView

_NUMBER: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)?")
UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """
    Something that can be too much, or too little.

    Attributes:
        read: Its value, summed or at its worst over all databases; ``None`` if it is not known.
        at_least: The threshold is the least that is fine, not the first that is not.
    """

    help: str
    read: Callable[[StatusView], float | None]
    is_duration: bool = False
    at_least: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """One ``name=value``."""

    name: str
    limit: float

    @property
    def measure(self) -> Measure:
        return MEASURES[self.name]


def _worst(values: Iterable[float | int | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _durables(status: StatusView, read: Callable[[ConsumerView], int | None]) -> float | None:
    known = [number for one in status.nats.consumers if (number := read(one)) is not None]
    return sum(known) if known else None


def _alive(status: StatusView, role: str) -> int:
    return sum(one.role == role and one.is_alive for one in status.workers)


MEASURES: Final[dict[str, Measure]] = {
    "outbox-age": Measure(
        help="age of the oldest ready row, such as 60s, 5m, 1h",
        read=lambda status: _worst(one.outbox.oldest_ready_s for one in status.databases),
        is_duration=True,
    ),
    "ready": Measure(help="ready rows", read=lambda s: sum(one.outbox.ready for one in s.databases)),
    "held": Measure(help="held rows", read=lambda s: sum(one.outbox.held for one in s.databases)),
    "parked": Measure(help="parked rows", read=lambda s: sum(one.outbox.parked for one in s.databases)),
    "refused": Measure(help="refused rows", read=lambda s: sum(one.outbox.refused for one in s.databases)),
    "retrying": Measure(
        help="events between two attempts", read=lambda s: sum(one.inbox.retrying for one in s.databases)
    ),
    "dead": Measure(
        help="open dead letters", read=lambda s: sum(one.dead_letters.open for one in s.databases)
    ),
    "deferred": Measure(
        help="stored messages that are due", read=lambda s: sum(one.deferred.due for one in s.databases)
    ),
    "pending": Measure(
        help="messages not yet delivered", read=lambda s: _durables(s, lambda one: one.pending)
    ),
    "unacked": Measure(
        help="messages delivered, not acked", read=lambda s: _durables(s, lambda one: one.ack_pending)
    ),
    "nats-away": Measure(
        help="1 if NATS cannot be reached, else 0", read=lambda s: 0.0 if s.nats.reachable else 1.0
    ),
    "stuck": Measure(
        help="running processes of which a part stands still",
        read=lambda s: sum(one.is_alive and bool(one.stuck) for one in s.workers),
    ),
    "overdue": Measure(
        help="handlers running for much longer than their time-out",
        read=lambda s: sum(len(one.overdue) for one in s.workers if one.is_alive),
    ),
    "relays": Measure(
        help="fewer running relays than this", read=lambda s: _alive(s, "relay"), at_least=True
    ),
    "consumers": Measure(
        help="fewer running consumers than this", read=lambda s: _alive(s, "consumer"), at_least=True
    ),
}

HELP: Final = "\n".join(f"  {name:<11} {measure.help}" for name, measure in MEASURES.items())


def parse(text: str) -> tuple[Threshold, ...]:
    """
    The value of ``--fail-on``.

    Raises:
        ArgumentTypeError: A name or a number is wrong; the text says what is possible.
    """
    found = tuple(_threshold(part.strip()) for part in text.split(",") if part.strip())
    if not found:  # an alarm whose variable came out empty would be green for ever
        raise ArgumentTypeError(f"name=value is expected, such as dead=1; got {text!r}")
    return found


def _threshold(part: str) -> Threshold:
    name, _, value = part.partition("=")
    measure = MEASURES.get(name)
    if measure is None:
        raise ArgumentTypeError(f"{name!r} is no threshold; there are {', '.join(MEASURES)}")
    found = _NUMBER.fullmatch(value)
    if found is None or (found[2] and not measure.is_duration):
        wanted = "a duration such as 60s, 5m, 1h" if measure.is_duration else "a number"
        raise ArgumentTypeError(f"{name} needs {wanted}, e.g. {name}=1; got {part!r}")
    limit = float(found[1]) * UNITS[found[2] or "s"]
    if limit <= 0:
        raise ArgumentTypeError(f"{name} must be above 0, or it would always be crossed; got {part!r}")
    return Threshold(name=name, limit=limit)


def crossed(status: StatusView, thresholds: Sequence[Threshold]) -> list[str]:
    """A sentence for each threshold that is crossed. What is not known crosses nothing: see ``nats-away``."""
    found = []
    for one in thresholds:
        value = one.measure.read(status)
        if value is None:
            continue
        if one.measure.at_least and value < one.limit:
            found.append(f"{one.name} is {value:g}, at least {one.limit:g} expected")
        elif not one.measure.at_least and value >= one.limit:
            unit = " s" if one.measure.is_duration else ""
            found.append(f"{one.name} is {value:g}{unit}, the limit is {one.limit:g}{unit}")
    return found


def counting_to(thresholds: Sequence[Threshold], cap: int) -> int:
    """A cap that no threshold lies above: else a limit of 50,000 could never be crossed."""
    return max([cap, *(int(one.limit) + 1 for one in thresholds if not one.measure.is_duration)])

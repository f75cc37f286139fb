"""What is to be measured: the options of the command, checked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MEASURES: Final = ("relay", "publish", "publish-many", "consume", "latency")
HANDLERS: Final = ("orm", "empty", "sleep")
LIMITS: Final = ("sequential", "window", "atomic", "bare_loop")

# Enough for a steady state, few enough for a coffee break.
DEFAULT_EVENTS: Final[Mapping[str, int]] = {
    "relay": 50_000,
    "publish": 5_000,
    "publish-many": 100_000,
    "consume": 5_000,
    "latency": 200,
}
LIMITS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "relay": ("sequential", "window"),
    "publish": ("bare_loop",),
    "publish-many": ("bare_loop",),
    "consume": ("bare_loop",),
    "latency": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    One call of the command.

    Attributes:
        size: Bytes of an encoded event; an envelope has about 290 before its first byte of payload.
        keys: Ordering keys the events are spread over, in turn.
        handler: What a consumed event does: ``orm`` inserts a row, ``sleep`` waits 10 ms, ``empty`` returns.
        relays: Relay processes; several only where the relay is what is measured.
        using: Database alias.
    """

    measure: str
    events: int
    size: int
    keys: int
    repeat: int
    handler: str
    relays: int
    using: str


def thresholds(text: str, measure: str) -> dict[str, float]:
    """
    ``events_per_s=25000,ratio.window=0.6`` as a mapping.

    Raises:
        ValueError: Continues a sentence about ``--fail-under``.
    """
    known = ["events_per_s"] + [
        f"{group}.{name}" for group in ("limit", "ratio") for name in LIMITS_OF[measure]
    ]
    wanted: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in known:
            raise ValueError(f"knows {', '.join(known)} for the measure {measure!r}, got {name!r}.")
        try:
            wanted[name] = float(value)
        except ValueError:
            raise ValueError(f"needs a number for {name}, got {value!r}.") from None
    return wanted

"""Event type patterns: ``order.placed``, ``order.*`` (one token), ``order.>`` (the rest)."""

from __future__ import annotations

from jetbridge.conf_types import PATTERN


def check_pattern(pattern: object) -> str:
    """
    Return ``pattern`` if it can match anything.

    Raises:
        ValueError: It is empty, has an empty token, or ``>`` before its end.
    """
    if not isinstance(pattern, str) or PATTERN.fullmatch(pattern) is None:
        raise ValueError(
            f"An event pattern is a dotted name in which '*' stands for one token and a final '>' for the "
            f"rest, e.g. 'order.placed', 'order.*', 'order.>'; got {pattern!r}."
        )
    return pattern


def matches(pattern: str, event_type: str) -> bool:
    """Whether ``event_type`` falls under ``pattern``."""
    if pattern in (event_type, ">"):
        return True
    wanted = pattern.split(".")
    found = event_type.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(found) <= len(wanted):
            return False
        found = found[: len(wanted)]
    return len(wanted) == len(found) and all(w in ("*", f) for w, f in zip(wanted, found, strict=True))

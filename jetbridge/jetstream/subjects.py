"""Comparing NATS subjects with wildcards (``*`` one token, ``>`` the rest), as a server does. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable


def covered(subject: str, by: str) -> bool:
    """Whether everything that matches ``subject`` also matches ``by``."""
    narrow, wide = subject.split("."), by.split(".")
    for position, token in enumerate(wide):
        if token == ">":
            return len(narrow) > position
        if position >= len(narrow) or narrow[position] == ">":
            return False
        if token not in ("*", narrow[position]):
            return False
    return len(narrow) == len(wide)


def overlap(a: str, b: str) -> bool:
    """Whether some subject matches both."""
    left, right = a.split("."), b.split(".")
    for position in range(max(len(left), len(right))):
        if position >= len(left) or position >= len(right):
            return False
        one, other = left[position], right[position]
        if ">" in (one, other):
            return True
        if one != other and "*" not in (one, other):
            return False
    return True


def union(found: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """
    ``found`` in its order, then what ``wanted`` adds.

    One subject of a stream must not cover another (error 10052), so a found one that a wanted one covers
    gives way to it: the stream still takes everything that it took before.
    """
    found, wanted = list(found), list(wanted)
    kept = [one for one in found if not any(one != new and covered(one, new) for new in wanted)]
    return kept + [new for new in wanted if not any(covered(new, one) for one in kept)]

"""From what a run counted to a document, and from the document to a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.poison.counting import Count

MAX_STARTS = 3  # the default of the setting
MOST_BLAMED = 1


def document(
    asked: Mapping[str, Any],
    poisons: Mapping[int, str],
    deaths: Sequence[int],
    codes: Sequence[int],
    seen: Count,
    left: int,
) -> dict[str, Any]:
    """The verdict; ``ok`` only if the poison died alone."""
    expected_dead = " ".join(sorted(f"e{n}:crashed" for n in poisons))
    exact = [
        ("effects", seen.effects, asked["events"] - len(poisons)),
        ("doubled", seen.doubled, 0),
        ("effects of poison", seen.ghosts, 0),
        ("dead letters", " ".join(seen.dead), expected_dead),
        # Given up after the first death it would look the same in all other numbers.
        ("starts of poison", seen.starts_of_dead, [MAX_STARTS] * len(poisons)),
        ("unfinished", seen.unfinished, 0),
        ("attempts spent", seen.attempts_spent, 0),
        ("left in the stream", left, 0),
        ("exit codes", sum(code != 0 for code in codes), 0),
    ]
    checks = [
        {"id": name, "seen": value, "expected": wanted, "ok": value == wanted}
        for name, value, wanted in exact
    ]
    # Each dies once before anything is on record, and a start of two that died together is both of theirs.
    for name, value, most in (
        ("deaths", len(deaths), (MAX_STARTS + 1) * len(poisons)),
        ("blamed starts of another event", seen.most_blamed, MOST_BLAMED),
    ):
        checks.append({"id": name, "seen": value, "expected": f"at most {most}", "ok": value <= most})
    return {
        "schema": 1,
        **asked,
        "poison": {f"e{n}": end for n, end in poisons.items()},
        "deaths": {str(code): times for code, times in Counter(deaths).items()},
        "events": asdict(seen),
        "checks": checks,
        "ok": all(check["ok"] for check in checks),
    }


def table(verdict: Mapping[str, Any]) -> str:
    """For people."""
    lines = [
        f"{len(verdict['poison'])} poison among {verdict['events']['effects']} events, {verdict['db']}, "
        f"{verdict['consumers']} consumers of {verdict['concurrency']} threads, seed {verdict['seed']}"
    ]
    for check in verdict["checks"]:
        said = "ok  " if check["ok"] else "FAIL"
        lines.append(f"  {said}  {check['id']:<31} {check['seen']!s:>8}   {check['expected']}")
    lines.append(f"  {verdict['events']['blamed']} other events were blamed for a death, and then ran alone")
    return "\n".join(lines)

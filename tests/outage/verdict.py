"""From what a run measured to a document, and from the document to a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.outage.counting import Count

FIRST_EVENT_S = 2.0
LOG_LINES_PER_MINUTE = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """
    Attributes:
        first_event_s: From the moment the server accepts connections to the first commit of a handler.
        drained_s: From there to the last one of what was waiting.
        left_in_stream: Messages without an ack, long after the last commit. To forget the ack loses no effect.
        log_lines: Per process, from the beginning of the outage to the first event after it.
    """

    outage_s: float
    first_event_s: float
    drained_s: float
    left_in_stream: int
    log_lines: Mapping[str, int]
    exit_codes: Mapping[str, int]
    writer_failures: int
    count: Count


def document(
    asked: Mapping[str, Any], minutes: float, seen: Measured, *, first_event_s: float
) -> dict[str, Any]:
    """The verdict; ``ok`` only if every promise held."""
    count = seen.count
    exact = {
        "attempts spent": count.attempts_spent,
        "starts spent": count.starts_spent,
        "dead letters": count.dead_letters,
        "lost": count.lost,
        "doubled": count.doubled,
        "ghosts": count.ghosts,
        "left": count.left,
        "left in the stream": seen.left_in_stream,
        "exit codes": sum(code != 0 for code in seen.exit_codes.values()),
    }
    bounded = {
        "first event s": (round(seen.first_event_s, 3), first_event_s),
        "log lines": (max(seen.log_lines.values()), round(LOG_LINES_PER_MINUTE * (1 + minutes))),
    }
    checks = [{"id": name, "seen": n, "at_most": 0, "ok": n == 0} for name, n in exact.items()]
    checks += [
        {"id": name, "seen": n, "at_most": most, "ok": n <= most} for name, (n, most) in bounded.items()
    ]
    return {
        "schema": 1,
        **asked,
        "minutes": minutes,
        "outage_s": round(seen.outage_s, 3),
        "first_event_s": round(seen.first_event_s, 3),
        "drained_s": round(seen.drained_s, 3),
        "log_lines": dict(seen.log_lines),
        "exit_codes": dict(seen.exit_codes),
        "writer_failures": seen.writer_failures,
        "events": asdict(count),
        "checks": checks,
        "ok": all(check["ok"] for check in checks),
    }


def table(verdict: Mapping[str, Any]) -> str:
    """For people."""
    events = verdict["events"]
    lines = [f"{verdict['of']} away for {verdict['outage_s']:.0f} s ({verdict['how']}), {verdict['db']}"]
    for check in verdict["checks"]:
        said = "ok  " if check["ok"] else "FAIL"
        lines.append(f"  {said}  {check['id']:<16} {check['seen']:>8}   at most {check['at_most']}")
    lines += [
        f"  {events['committed']} committed, {events['handled']} handled, the last {verdict['drained_s']:.1f} s after",
        f"  the end; {verdict['writer_failures']} transactions of writers failed and were tried again",
    ]
    return "\n".join(lines)

"""What ``jetbridge_status`` prints: the JSON document, and one screen for people. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from jetbridge.monitor.views import ConsumerView, DatabaseView, StatusView, WorkerView

MAX_LINES: Final = 20
MAX_CONSUMERS: Final = 4
# A relay takes a row within a second; a deployment starts one within a minute.
FORGOTTEN_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the screen; ``level`` is ``ok``, ``warn``, ``fail`` or ``""``."""

    level: str
    title: str
    text: str


def document(status: StatusView) -> dict[str, object]:
    """The JSON document; its keys are part of the command's interface."""
    nats = asdict(status.nats)
    nats.pop("trouble")
    return {
        "app": status.app,
        "idle": status.is_idle,
        "databases": [_database(one) for one in status.databases],
        "nats": nats,
        "leases": [{**asdict(one), "expires_at": one.expires_at.isoformat()} for one in status.leases],
        "workers": [{**asdict(one), "beat_age_s": round(one.beat_age_s, 3)} for one in status.workers],
        "capped": status.capped,
    }


def _database(view: DatabaseView) -> dict[str, object]:
    outbox = asdict(view.outbox)
    outbox.pop("due")
    if view.outbox.oldest_ready_s is not None:
        outbox["oldest_ready_s"] = round(view.outbox.oldest_ready_s, 3)
    return {
        "alias": view.alias,
        "outbox": outbox,
        "archive": {"rows": view.archived},
        "inbox": asdict(view.inbox),
        "deferred": asdict(view.deferred),
        "dead_letters": asdict(view.dead_letters),
    }


def lines(status: StatusView, crossed: Sequence[str]) -> list[Line]:
    """The screen: never more than ``MAX_LINES`` lines, worst news last, where the eye is."""
    found = [
        Line(level="", title="jetbridge", text=f"{status.app} · {'idle' if status.is_idle else 'not idle'}")
    ]
    for database in status.databases:
        found += _database_lines(database, single=len(status.databases) == 1)
    found += _nats_lines(status)
    found += _process_lines(status)
    news = [Line(level="fail", title="threshold", text=text) for text in crossed]
    room = MAX_LINES - len(news)
    if len(found) > room:
        hidden = len(found) - room + 1
        found = [*found[: room - 1], Line(level="", title="", text=f"… {hidden} more lines: --format json")]
    return [*found, *news]


def _database_lines(view: DatabaseView, *, single: bool) -> list[Line]:
    def number(name: str, value: int) -> str:
        return f"{value:,}{'+' if name in view.capped else ''}"

    def pairs(table: str, values: dict[str, int]) -> str:
        return "  ".join(f"{name} {number(f'{table}.{name}', value)}" for name, value in values.items())

    outbox = asdict(view.outbox)
    oldest = outbox.pop("oldest_ready_s")
    outbox.pop("due")
    waits = "" if oldest is None else f"  oldest {span(oldest)}"
    if forgotten := oldest is not None and oldest > FORGOTTEN_S and not _has_relay(view):
        waits += "  no relay is running  → jetbridge_relay"
    stuck = view.outbox.parked or view.outbox.refused or view.outbox.held or forgotten
    rows = [
        Line(level="warn" if stuck else "ok", title="outbox", text=pairs("outbox", outbox) + waits),
        Line(level="ok", title="archive", text=f"sent {number('archive.rows', view.archived)}"),
        Line(
            level="warn" if view.inbox.retrying else "ok",
            title="inbox",
            text=pairs("inbox", asdict(view.inbox)),
        ),
        Line(level="ok", title="deferred", text=pairs("deferred", asdict(view.deferred))),
        Line(
            level="fail" if view.dead_letters.open else "ok",
            title="dead letters",
            text=pairs("dead_letters", asdict(view.dead_letters))
            + ("  → jetbridge_dlq list" if view.dead_letters.open else ""),
        ),
    ]
    return rows if single else [Line(level="", title="database", text=view.alias), *rows]


def _has_relay(view: DatabaseView) -> bool:
    """Whether a relay of this very database is alive: one of another carries nothing from here."""
    return any(one.role == "relay" and one.is_alive for one in view.workers)


def _nats_lines(status: StatusView) -> list[Line]:
    nats = status.nats
    if not nats.reachable:
        return [Line(level="fail", title="nats", text=f"not reachable: {nats.trouble}")]
    stored = ", ".join(f"{one.name} {_known(one.messages)} messages" for one in nats.streams)
    found = [Line(level="ok", title="nats", text=f"server {nats.server_version}  {stored}")]
    found += [_consumer_line(one) for one in nats.consumers[:MAX_CONSUMERS]]
    if len(nats.consumers) > MAX_CONSUMERS:
        rest = nats.consumers[MAX_CONSUMERS:]
        pending = sum(one.pending or 0 for one in rest)
        found.append(Line(level="", title="durables", text=f"{len(rest)} more, together pending {pending:,}"))
    return found


def _consumer_line(view: ConsumerView) -> Line:
    if view.pending is None:
        return Line(
            level="warn",
            title="durable",
            text=f"{view.stream}/{view.name}  not there, or not readable by this NATS user",
        )
    numbers = f"pending {view.pending:,}  unacked {_known(view.ack_pending)}  redelivered {_known(view.redelivered)}"
    return Line(level="ok", title="durable", text=f"{view.stream}/{view.name}  {numbers}")


def _process_lines(status: StatusView) -> list[Line]:
    roles = Counter(one.role for one in status.workers if one.is_alive)
    alive = "  ".join(f"{role} {number}" for role, number in sorted(roles.items())) or "none is running"
    silent = [one for one in status.workers if not one.is_alive]
    late = "".join(f"  {one.role}@{one.host}: last seen {span(one.beat_age_s)} ago" for one in silent[:2])
    stuck = [one for one in status.workers if one.is_alive and one.stuck]
    late += "".join(f"  {_process(one)}: stuck: {', '.join(one.stuck)}" for one in stuck[:2])
    overdue = [one for one in status.workers if one.is_alive and one.overdue]
    late += "".join(f"  {_process(one)}: overdue: {', '.join(one.overdue[:2])}" for one in overdue[:2])
    held = Counter(lease.name.split("/", 1)[0] for lease in status.leases)
    level = "fail" if stuck else "warn" if silent or overdue or not roles else "ok"
    leases = "  ".join(f"{kind} {number}" for kind, number in sorted(held.items())) or "none held"
    return [
        Line(level=level, title="processes", text=alive + late),
        Line(level="ok", title="leases", text=leases),
    ]


def _process(worker: WorkerView) -> str:
    return f"{worker.role}@{worker.host} pid {worker.pid}"


def _known(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def span(seconds: float) -> str:
    """A duration for people: ``0.2s``, ``4m10s``, ``3h05m``, ``2d01h``."""
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 48 else f"{hours // 24}d{hours % 24:02d}h"


def plain(found: Sequence[Line]) -> str:
    """Aligned text without colours."""
    return "\n".join(f"{one.level.upper():<4} {one.title:<13}{one.text}".rstrip() for one in found)

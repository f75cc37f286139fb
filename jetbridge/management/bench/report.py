"""From samples to the document, its text, and the verdict of ``--fail-under``. Pure but for asking for versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from statistics import median, quantiles

from jetbridge.management.bench.meter import Mark
from jetbridge.management.bench.plan import LIMITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One repetition. ``None`` where the measure has no such number; milliseconds are of single events."""

    events_per_s: float
    wall_s: float
    cpu_s_per_10k: float
    statements_per_event: float | None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """
    One repetition with what was measured around it.

    Attributes:
        limit: Events per second of the bare tool, by name.
        stored: Events that the database says are done.
        stream: Messages that the stream says it has taken, by STREAM.INFO.
        faults: What does not add up; empty when the numbers can be believed.
    """

    run: Run
    limit: Mapping[str, float] = field(default_factory=dict)
    order_violations: int
    stored: int
    stream: int
    faults: Sequence[str] = ()


def run_of(events: int, spent: Mark, times_s: Sequence[float] = (), *, counted: bool = True) -> Run:
    """
    Args:
        spent: Between the first and the last event.
        times_s: Seconds of single events, for the percentiles.
        counted: Whether every statement could be seen.
    """
    cuts = quantiles(times_s, n=100, method="inclusive") if len(times_s) > 1 else []
    p50, p95, p99 = (_ms(cuts[n - 1]) if cuts else None for n in (50, 95, 99))
    return Run(
        events_per_s=round(events / spent.wall_s, 1),
        wall_s=round(spent.wall_s, 4),
        cpu_s_per_10k=round(spent.cpu_s / events * 10_000, 4),
        statements_per_event=round(spent.statements / events, 4) if counted else None,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def document(
    measure: str,
    settings: Mapping[str, object],
    versions: Mapping[str, str | None],
    samples: Sequence[Sample],
) -> dict[str, object]:
    """The JSON document. Limits are medians, ratios the medians of each repetition's own ratio."""
    limits = {name: [s.limit[name] for s in samples if name in s.limit] for name in LIMITS}
    ratios = {
        name: [s.run.events_per_s / s.limit[name] for s in samples if name in s.limit] for name in LIMITS
    }
    return {
        "measure": measure,
        "settings": dict(settings),
        "versions": dict(versions),
        "runs": [asdict(sample.run) for sample in samples],
        "limit": {name: round(median(found), 1) if found else None for name, found in limits.items()},
        "ratio": {name: round(median(found), 3) if found else None for name, found in ratios.items()},
        "median": round(median(sample.run.events_per_s for sample in samples), 1),
        "order_violations": sum(sample.order_violations for sample in samples),
        "stored": sum(sample.stored for sample in samples),
        "stream": sum(sample.stream for sample in samples),
    }


def shortfalls(found: Mapping[str, object], thresholds: Mapping[str, float]) -> list[str]:
    """One sentence for each threshold that the document stays under."""
    texts = []
    for name, wanted in thresholds.items():
        value = _value(found, name)
        if value is None or value < wanted:
            texts.append(f"{name} is {value}, which is under {wanted:g}.")
    return texts


def _value(found: Mapping[str, object], name: str) -> float | None:
    if name == "events_per_s":
        value = found["median"]
    else:
        group, _, key = name.partition(".")
        holder = found[group]
        value = holder[key] if isinstance(holder, Mapping) else None
    return float(value) if isinstance(value, (int, float)) else None


def text(found: Mapping[str, object]) -> str:
    """The document for people."""
    runs, limit, ratio = found["runs"], found["limit"], found["ratio"]
    assert isinstance(runs, list)
    assert isinstance(limit, dict)
    assert isinstance(ratio, dict)
    lines = [_line("settings", found["settings"]), _line("versions", found["versions"]), ""]
    columns = list(runs[0])
    lines.append("".join(f"{column:>22}" for column in columns))
    lines += ["".join(f"{_cell(run[column]):>22}" for column in columns) for run in runs]
    lines.append("")
    lines += [
        f"{name:<12} {value:>12,.0f} events/s   ratio {ratio[name]:.2f}"
        for name, value in limit.items()
        if value is not None
    ]
    lines.append(
        f"{found['measure']}: median {found['median']:,.0f} events/s, "
        f"order violations {found['order_violations']}, stored {found['stored']}, stream {found['stream']}"
    )
    return "\n".join(lines)


def _line(name: str, values: object) -> str:
    assert isinstance(values, dict)
    return f"{name}: " + ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.4f}" if value < 0.1 else f"{value:,.2f}"


def versions(*, server: str, database: str) -> dict[str, str | None]:
    """What was measured with what."""
    return {
        "python": platform.python_version(),
        "django": _version("django"),
        "psycopg": _version("psycopg"),
        "nats_py": _version("nats-py"),
        "server": server,
        "database": database,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

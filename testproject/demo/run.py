"""From the first server to the result: the demo without its command line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import django

from jetbridge.jetstream.embedded import EmbeddedServerError
from testproject.demo import counting, verdict
from testproject.demo.orders import Step, orders_of, plan
from testproject.demo.report import Reporter
from testproject.demo.story import Story, TimedOut
from testproject.demo.verdict import Check, Evidence
from testproject.demo.world import CommandFailed, Vendor, WorkerEnded, World
from testproject.postgres import PostgresError
from testproject.postgres_files import FilesError

FLOW: Final = (
    "committed",
    "delivered",
    "effects",
    "duplicates_suppressed",
    "dead_letters",
    "lost",
    "doubled",
    "ghosts",
)


class ServerTrouble(Exception):
    """A server did not start, so nothing was tried."""


class Unprepared(Exception):
    """The databases or the streams could not be made ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """
    How it ended.

    Attributes:
        document: What ``--json`` writes.
        facts: Lines for people, below the table.
    """

    ok: bool
    timed_out: bool
    checks: Sequence[Check]
    facts: Sequence[str]
    document: dict[str, object]


def run(
    folder: Path,
    *,
    vendor: Vendor,
    orders: int,
    seed: int,
    timeout_s: float,
    started_at: float,
    reporter: Reporter,
    check: Callable[[], None],
) -> Result:
    """
    Args:
        check: Called before each wait; what it raises ends the demo.

    Raises:
        ServerTrouble: The broker or PostgreSQL did not start.
        TimedOut, Unprepared: The preparations were not finished; there is nothing to count.
    """

    def deadline_s() -> float:
        check()
        return started_at + timeout_s - time.monotonic()

    steps = plan(orders, seed)
    with World(folder, vendor, deadline_s=deadline_s, say=reporter.say) as world:
        _prepare(world)
        evidence, timed_out = _tell(world, steps, reporter, deadline_s)
        checks = verdict.judge(evidence)
        ok = not timed_out and all(check.ok for check in checks)
        document = _document(world, evidence, checks, ok=ok, seed=seed, started_at=started_at)
        return Result(
            ok=ok,
            timed_out=timed_out,
            checks=checks,
            facts=_facts(world, evidence, document),
            document=document,
        )


def _prepare(world: World) -> None:
    try:
        world.start_servers()
        world.migrate()
        world.provision()
    except (EmbeddedServerError, PostgresError, FilesError) as trouble:
        raise ServerTrouble(str(trouble)) from trouble
    except CommandFailed as trouble:
        raise Unprepared(str(trouble)) from trouble
    except subprocess.TimeoutExpired as trouble:
        raise TimedOut("databases and streams to be made") from trouble
    world.start_workers()


def _tell(
    world: World, steps: Sequence[Step], reporter: Reporter, deadline_s: Callable[[], float]
) -> tuple[Evidence, bool]:
    """Let it happen, let the workers drain, count; also after a time-out, when the counts say what is missing."""
    _become_the_orders_service(world)
    orders, billing = (counting.connect(world.databases[service]) for service in ("orders", "billing"))
    planned = orders_of(steps)
    story = Story(world, steps, reporter, orders=orders, billing=billing, deadline_s=deadline_s)
    reporter.begin(sum(order.is_kept for order in planned))
    unfinished, timed_out = "", False
    try:
        story.run()
    except TimedOut as late:
        unfinished, timed_out = f"timed out waiting for {late}", True
    except WorkerEnded as ended:
        unfinished = str(ended)
    reporter.end()
    reporter.say("Stopping the workers and counting again, from the databases")
    drained = world.stop_workers()
    evidence = Evidence(
        counts=counting.count(orders, billing),
        planned=planned,
        faults=story.faults,
        left_in_streams=world.left_in_streams() if world.broker.is_running else -1,
        kills=sum(status == -signal.SIGKILL for status in world.killed),
        restarts=world.broker_starts - 1,
        drained=drained,
        unfinished=unfinished,
    )
    return evidence, timed_out


def _become_the_orders_service(world: World) -> None:
    """Orders are placed by this process, through Django and the settings of orders."""
    os.environ.update(world.environment)
    os.environ["DJANGO_SETTINGS_MODULE"] = "testproject.settings.orders"
    os.environ["LOG_LEVEL"] = "WARNING"
    django.setup()


def _document(
    world: World, evidence: Evidence, checks: Sequence[Check], *, ok: bool, seed: int, started_at: float
) -> dict[str, object]:
    counts, planned = evidence.counts, evidence.planned
    return {
        "schema": 1,
        "ok": ok,
        "db": world.vendor,
        "seed": seed,
        "duration_s": round(time.monotonic() - started_at, 3),
        "dir": str(world.folder),
        "databases": world.databases,
        "nats": {"url": world.broker.url, "store": str(world.folder / "nats" / "store")},
        "orders": {
            "placed": len(planned),
            "committed": len(counts.numbers),
            "rolled_back": verdict.rolled_back(planned, counts),
            "published_twice": counts.published_twice,
        },
        "events": {name: getattr(counts, name) for name in FLOW},
        "faults": {"consumer_kills": evidence.kills, "broker_restarts": evidence.restarts},
        "checks": [asdict(check) for check in checks],
    }


def _facts(world: World, evidence: Evidence, document: dict[str, object]) -> list[str]:
    counts = evidence.counts
    databases = ", ".join(world.databases.values())
    return [
        f"{len(evidence.planned)} orders placed, {len(counts.numbers)} committed, {counts.effects} invoices, "
        f"{counts.answer_effects} answers, {counts.dead_letters} dead letter(s), "
        f"{counts.duplicates_suppressed} duplicates suppressed; {document['duration_s']} s",
        f"Count for yourself: {databases}",
        *world.how_to_recount,
        f"Streams and logs: {world.folder}; {_megabytes(world.kept)} MB, delete {_names(world.kept)} when you are done",
    ]


def _megabytes(folders: Sequence[Path]) -> int:
    found = 0
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):  # the servers still run, and take files away
                found += path.lstat().st_size
    return round(found / 1_000_000)


def _names(folders: Sequence[Path]) -> str:
    return "it" if len(folders) == 1 else " and ".join(map(str, folders))

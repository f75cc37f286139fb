"""A run from the first server to the verdict."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from testproject.postgres import Postgres
from tests.chaos import books, faults, plan, tables, verdict
from tests.chaos.broker import Broker, BrokerTrouble, StreamState
from tests.chaos.harm import BrokerHarm, Operator, PostgresHarm, SqliteHarm, WorkerHarm
from tests.chaos.terms import TERMS
from tests.chaos.verdict import Breach, Evidence
from tests.chaos.workers import ROOT, Workers, environment

WRITERS: Final = 4
WARM_UP_S: Final = 2.0
LOOK_EVERY_S: Final = 0.5
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    events: int
    faults: int
    seed: int
    db: str
    cluster: int
    keys: int
    relays: int
    consumers: int
    pace_s: float
    strict_order: bool

    @property
    def lasts_s(self) -> float:
        """For how long events are made and faults happen."""
        return max(3.0, self.faults * self.pace_s)

    @property
    def command(self) -> str:
        """What runs the same plan again."""
        given = f"--events {self.events} --faults {self.faults} --seed {self.seed} --db {self.db}"
        more = (
            f"--cluster {self.cluster} --keys {self.keys} --relays {self.relays} --consumers {self.consumers}"
        )
        strict = " --strict-order" if self.strict_order else ""
        return f"python -m tests.chaos {given} {more} --pace {self.pace_s:g}{strict} --keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    ok: bool
    breaches: Sequence[Breach]
    document: dict[str, Any]


class Run:
    """
    Args:
        folder: For databases, stores, logs, the journal and the schedule.
        say: Told each step, and now and then how far it is.
    """

    def __init__(self, folder: Path, options: Options, say: Say) -> None:
        self.folder = folder
        self.options = options
        self._say = say
        self._began = time.monotonic()
        self._cleanup = ExitStack()
        self._postgres: Postgres | None = None
        self._broker = Broker(folder, options.cluster)
        self._journal = books.Journal(folder / "journal")
        self._session: Any = None
        self._made = 0
        self.database = ""

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def run(self) -> Result:
        self._prepare()
        workers = self._workers()
        schedule, harm = self._schedule(workers)
        self._cleanup.callback(workers.stop)
        self._cleanup.callback(schedule.stop)
        workers.start()
        threading.Event().wait(WARM_UP_S)
        schedule.start()
        self._watch(lambda: schedule.finished and workers.writers_done(), 5 * self.options.lasts_s + 180)
        schedule.stop()
        self._say("No more faults; waiting until nothing is on its way")
        idle = self._until_idle()
        self._say("Idle; the workers drain" if idle else "NOT idle; the workers drain all the same")
        statuses = workers.stop()
        failures = [*harm.slow_drains, *schedule.troubles, *_failures(workers, statuses)]
        if missing := self.options.faults - schedule.done.total():
            failures.append(f"{missing} of {self.options.faults} faults never happened, so this proves less")
        evidence = self._evidence(workers, failures)
        return self._result(evidence, schedule, workers)

    # --- preparations ------------------------------------------------------------------------------

    def _prepare(self) -> None:
        for name in ("logs", "journal"):
            (self.folder / name).mkdir()
        self._cleanup.callback(self._broker.stop)
        self._broker.start()
        if self.options.db == "postgres":
            self._postgres = Postgres(
                self.folder / "postgres", fsync=False, settings={"max_connections": "90"}
            )
            self._cleanup.enter_context(self._postgres)
            self.database = self._postgres.create_database("chaos")
        else:
            self.database = str(self.folder / "chaos.sqlite3")
        self._prepare_by("migrate", "--verbosity", "0")
        self._prepare_by("jetbridge_provision", "--wait", "20")
        tables.create(self.database, self.options.db, self.options.keys)
        self._say(f"{self.options.cluster} nats-server, {self.options.db}, in {self.folder}")

    def _environment(self) -> dict[str, str]:
        return environment(
            self.folder,
            database=self.database,
            nats=self._broker.urls,
            replicas=self._broker.replicas,
        )

    def _prepare_by(self, *command: str) -> None:
        done = self._manage(*command)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed with {done.returncode}.\n{done.stdout[-3000:]}")

    def _manage(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "manage.py", *command],
            cwd=ROOT,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def _workers(self) -> Workers:
        options = self.options
        workers = Workers(self.folder, self._environment(), is_deadly=self._journal.died_of)
        for number in range(options.relays):
            workers.add("relay", number, ["manage.py", "jetbridge_relay"])
        for number in range(options.consumers):
            workers.add("consumer", number, ["manage.py", "jetbridge_consume"])
        numbers = {"of": WRITERS, "events": options.events, "seed": options.seed, "keys": options.keys}
        given = [part for name, value in numbers.items() for part in (f"--{name}", str(value))]
        times = ["--began-at", str(time.time() + WARM_UP_S), "--lasts-s", str(options.lasts_s)]
        for number in range(WRITERS):
            command = ["-m", "tests.chaos.writer", "--index", str(number), *given, *times]
            workers.add("writer", number, command)
        return workers

    def _schedule(self, workers: Workers) -> tuple[faults.Schedule, WorkerHarm]:
        options = self.options
        kinds = faults.kinds(options.db, options.cluster)
        planned = plan.faults(options.faults, kinds, seed=options.seed, pace_s=options.pace_s)
        harm = WorkerHarm(workers, lambda: _owners(self.database))
        operator = Operator(self.folder, self._manage)
        actions = {**harm.actions(), **operator.actions(), **BrokerHarm(self._broker).actions()}
        if self._postgres is not None:
            actions |= PostgresHarm(self._postgres, self.database).actions()
        else:
            actions |= SqliteHarm(self.database).actions()
        schedule = faults.Schedule(
            planned,
            actions,
            share=lambda: self._made / options.events,
            lasts_s=options.lasts_s,
            file=self.folder / "faults.jsonl",
        )
        return schedule, harm

    # --- watching ----------------------------------------------------------------------------------

    def _query(self, sql: str) -> Sequence[tables.Row]:
        if self._session is None:
            self._session = tables.connect(self.database, timeout_s=5.0)
        try:
            rows: Sequence[tables.Row] = self._session.execute(sql).fetchall()
        except Exception:
            with contextlib.suppress(Exception):
                self._session.close()
            self._session = None
            raise
        return rows

    def _progress(self) -> dict[str, int] | None:
        """``None`` while the database is away."""
        with contextlib.suppress(Exception):
            return books.progress(self._query)
        return None

    def _watch(self, over: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not over() and time.monotonic() < deadline:
            threading.Event().wait(LOOK_EVERY_S)
            self._tell(self._progress())

    def _tell(self, seen: dict[str, int] | None) -> None:
        if seen is not None:
            self._made = seen["made"]
            self._say(
                f"~made {seen['made']}, effects {seen['effects']}, in the outbox {seen['outbox']}, "
                f"dead {seen['dead']}, being retried {seen['open']}"
            )

    def _until_idle(self) -> bool:
        """Whether everything came to rest. It may take as long as something moves."""
        last: object = None
        moved_at = time.monotonic()
        while time.monotonic() - moved_at < TERMS.quiet_s:
            threading.Event().wait(LOOK_EVERY_S)
            seen = self._progress()
            self._tell(seen)
            state = self._state()
            if seen is None or state is None:
                continue
            if not any(
                (
                    seen["outbox"],
                    seen["scheduled"],
                    seen["deferred"],
                    seen["open"],
                    state.pending,
                    state.ack_pending,
                )
            ):
                return True
            now = (seen, state.pending, state.ack_pending)
            if now != last:
                last, moved_at = now, time.monotonic()
        return False

    def _state(self) -> StreamState | None:
        with contextlib.suppress(BrokerTrouble):
            return self._broker.state()
        return None

    # --- the end -----------------------------------------------------------------------------------

    def _evidence(self, workers: Workers, failures: Sequence[str]) -> Evidence:
        return Evidence(
            books=books.read(self._query, self.options.db),
            stream=self._broker.state(),
            terms=TERMS,
            died_with=self._journal.unfinished([death.pid for death in workers.deaths]),
            failures=failures,
        )

    def _result(self, evidence: Evidence, schedule: faults.Schedule, workers: Workers) -> Result:
        breaches = verdict.judge(evidence)
        counts = Counter(breach.of for breach in breaches)
        promised = (*verdict.PROMISED, verdict.ORDER) if self.options.strict_order else verdict.PROMISED
        ok = not any(counts[name] for name in promised)
        document = {
            "schema": 1,
            "ok": ok,
            "seed": self.options.seed,
            "db": self.options.db,
            "cluster": self.options.cluster,
            "events": self._events(evidence),
            "faults": {**sorted_counts(schedule.done), "total": schedule.done.total()},
            **{name: counts[name] for name in (*verdict.PROMISED, verdict.ORDER)},
            "duplicates_suppressed": verdict.suppressed(evidence.books),
            "deaths": sorted_counts(Counter(death.cause or "unexplained" for death in workers.deaths)),
            "rows": evidence.books.rows,
            "cpu_s": round(sum(os.times()[2:4]), 1),
            "duration_s": round(time.monotonic() - self._began, 1),
            "dir": str(self.folder),
            "database": self.database,
            "replay": self.options.command,
        }
        lines = [f"{breach.of}: {breach.what}" for breach in breaches]
        (self.folder / "breaches.txt").write_text("".join(f"{line}\n" for line in lines))
        (self.folder / "verdict.json").write_text(json.dumps(document, indent=2) + "\n")
        return Result(ok=ok, breaches=breaches, document=document)

    def _events(self, evidence: Evidence) -> dict[str, int]:
        found = evidence.books
        published = [made for made in found.made if made.handler == "chaos.effect"]
        said = "".join(file.read_text() for file in self.folder.glob("writer-*.done"))
        rolled_back = sum(
            int(line.split()[2]) for line in said.splitlines() if line.startswith("rolled-back ")
        )
        return {
            "planned": self.options.events,
            "committed": len(published),
            "rolled_back": rolled_back,
            "published_twice": sum(made.copies > 1 for made in published),
            "answers": len(found.made) - len(published),
            "effects": len(found.effects),
            "dead_letters": len(found.letters),
            "killed_innocents": verdict.excused(evidence),
            "redriven": sum(letter.state == "redriven" for letter in found.letters),
            "transactions_retried": said.count("retry "),
            "transactions_undone": said.count("undone "),
        }


def _owners(database: str) -> set[int]:
    """Processes that hold leases; none while the database is away."""
    with contextlib.suppress(Exception):
        session = tables.connect(database, timeout_s=2.0)
        try:
            return books.owners(lambda sql: session.execute(sql).fetchall())
        finally:
            session.close()
    return set()


def _failures(workers: Workers, statuses: dict[str, int]) -> list[str]:
    """Processes that ended though nobody made them, and those that ended badly when asked to."""
    found = [
        f"{death.slot} (process {death.pid}) ended by itself with {death.status}: see {workers.log_of(death.slot)}"
        for death in workers.deaths
        if not death.cause
    ]
    return found + [
        f"{slot} drained with {status} at the end: see {workers.log_of(slot)}"
        for slot, status in statuses.items()
        if status
    ]


def sorted_counts(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))

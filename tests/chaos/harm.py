"""The harm itself: to worker processes, to NATS, to the database. Each returns what it did, for the schedule's file."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, Final

from testproject.nats_server import NatsServer
from testproject.postgres import Postgres, StopMode
from tests.chaos.broker import Broker, BrokerTrouble
from tests.chaos.faults import Act, hold_for, wait_for_end
from tests.chaos.plan import PlannedFault
from tests.chaos.tables import connect
from tests.chaos.terms import TERMS
from tests.chaos.workers import Slot, Workers

# Each step of an orderly end has its own time-out, and an outage may use up all of them.
DRAIN_S: Final = 60.0
LAME_DUCK_S: Final = 15.0
_SESSIONS: Final = "backend_type = 'client backend' AND pid <> pg_backend_pid()"


class WorkerHarm:
    """
    Kill, stop and terminate relays, consumers and writers.

    Args:
        at_work: Asked for the processes that hold leases.
    """

    def __init__(self, workers: Workers, at_work: Callable[[], Collection[int]]) -> None:
        self._workers = workers
        self._at_work = at_work
        self.slow_drains: list[str] = []

    def actions(self) -> dict[str, Callable[[PlannedFault], Act | None]]:
        return {
            "relay kill": partial(self._on, "relay", self._kill),
            "relay terminate": partial(self._on, "relay", self._terminate),
            "relay stop": partial(self._on, "relay", self._stop),
            "consumer kill": partial(self._on, "consumer", self._kill),
            "consumer terminate": partial(self._on, "consumer", self._terminate),
            "consumer stop": partial(self._on, "consumer", self._stop),
            "writer kill": self._writer,
        }

    def _on(self, role: str, do: Callable[[Slot, PlannedFault], str], fault: PlannedFault) -> Act | None:
        slot = self._workers.take(role, fault.draw, at_work=self._at_work())
        if slot is None:
            return None

        def act() -> str:
            try:
                return f"{slot.name} {slot.pids[-1]}: {do(slot, fault)}"
            finally:
                slot.busy = False

        return act

    def _writer(self, fault: PlannedFault) -> Act | None:
        if self._workers.writers_done():  # nobody is left to be killed
            return lambda: "the writers had finished"
        return self._on("writer", self._kill, fault)

    def _kill(self, slot: Slot, fault: PlannedFault) -> str:
        process = slot.process
        assert process is not None
        slot.cause = fault.kind
        process.kill()
        process.wait()
        return "killed"

    def _terminate(self, slot: Slot, fault: PlannedFault) -> str:
        process = slot.process
        assert process is not None
        slot.cause = fault.kind
        process.terminate()
        began = time.monotonic()
        if not wait_for_end(process, DRAIN_S):
            self.slow_drains.append(
                f"{slot.name} (process {process.pid}) did not end {DRAIN_S:g} s after SIGTERM"
            )
            process.kill()
            process.wait()
            return "did not drain, killed"
        return f"drained in {time.monotonic() - began:.1f} s with {process.returncode}"

    def _stop(self, slot: Slot, fault: PlannedFault) -> str:
        process = slot.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            hold_for(fault.for_s)
        finally:
            process.send_signal(signal.SIGCONT)
        return f"stopped for {fault.for_s:.1f} s"


class Operator:
    """
    Redrives dead letters in the middle of it all: those of handlers that fail for ever, and those that were
    rejected, for which the handlers are mended for some seconds.
    """

    def __init__(self, folder: Path, manage: Callable[..., subprocess.CompletedProcess[str]]) -> None:
        self._mended = folder / "mended"
        self._manage = manage
        self._reasons = itertools.cycle(("rejected", "max_deliver_exceeded"))
        self._turn = threading.Lock()

    def actions(self) -> dict[str, Callable[[PlannedFault], Act | None]]:
        return {"operator redrives": self._redrive}

    def _redrive(self, fault: PlannedFault) -> Act | None:
        if not self._turn.acquire(blocking=False):
            return None
        reason = next(self._reasons)

        def act() -> str:
            self._mended.touch()
            try:
                done = self._manage("jetbridge_dlq", "redrive", "--reason", reason, "--no-input")
                hold_for(fault.for_s)
            finally:
                self._mended.unlink()
                self._turn.release()
            return f"{reason}, ended with {done.returncode}: {done.stdout.strip()[-200:]}"

        return act


class BrokerHarm:
    """One fault at a time: a cluster of three that loses two has an outage, which one server shows as well."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._turn = threading.Lock()

    def actions(self) -> dict[str, Callable[[PlannedFault], Act | None]]:
        return {
            "nats kill": partial(self._on, self._kill),
            "nats terminate": partial(self._on, self._terminate),
            "nats freeze": partial(self._on, self._freeze),
            "nats lame duck": partial(self._on, self._lame_duck),
            "leader kill": partial(self._on, self._kill_leader),
            "stream step-down": partial(self._on, self._stream_step_down),
            "durable step-down": partial(self._on, self._durable_step_down),
        }

    def _on(self, do: Callable[[NatsServer, PlannedFault], str], fault: PlannedFault) -> Act | None:
        if not self._turn.acquire(blocking=False):
            return None
        node = self._broker.nodes[int(fault.draw * len(self._broker.nodes))]

        def act() -> str:
            try:
                return do(node, fault)
            finally:
                self._turn.release()

        return act

    def _kill(self, node: NatsServer, fault: PlannedFault) -> str:
        node.kill()
        hold_for(fault.for_s)
        node.start()
        return f"{node.folder.name} was away for {fault.for_s:.1f} s"

    def _terminate(self, node: NatsServer, fault: PlannedFault) -> str:
        node.stop()
        hold_for(fault.for_s)
        node.start()
        return f"{node.folder.name} was away for {fault.for_s:.1f} s"

    def _freeze(self, node: NatsServer, fault: PlannedFault) -> str:
        node.sigstop()
        try:
            hold_for(fault.for_s)
        finally:
            node.sigcont()
        return f"{node.folder.name} was frozen for {fault.for_s:.1f} s"

    def _lame_duck(self, node: NatsServer, fault: PlannedFault) -> str:
        os.kill(node.pid, signal.SIGUSR2)
        deadline = time.monotonic() + LAME_DUCK_S
        while node.running and time.monotonic() < deadline:
            hold_for(0.05)
        how = "was still up, killed" if node.running else "left by itself"
        node.kill()
        hold_for(fault.for_s)
        node.start()
        return f"{node.folder.name} {how}"

    def _kill_leader(self, node: NatsServer, fault: PlannedFault) -> str:
        leader = self._broker.leader()
        said = "the leader" if leader is not None else "nobody led, another one"
        return f"{said}: {self._kill(leader or node, fault)}"

    def _stream_step_down(self, node: NatsServer, fault: PlannedFault) -> str:
        return self._ask(f"STREAM.LEADER.STEPDOWN.{TERMS.stream}")

    def _durable_step_down(self, node: NatsServer, fault: PlannedFault) -> str:
        durable = TERMS.durables[int(fault.draw * len(TERMS.durables))]
        return self._ask(f"CONSUMER.LEADER.STEPDOWN.{TERMS.stream}.{durable}")

    def _ask(self, subject: str) -> str:
        """No answer is an answer here: the leader is gone before it can say so."""
        with contextlib.suppress(BrokerTrouble):
            self._broker.api(subject)
            return subject
        return f"{subject}, no answer"


class PostgresHarm:
    """One fault at a time."""

    def __init__(self, server: Postgres, database: str) -> None:
        self._server = server
        self._database = database
        self._turn = threading.Lock()

    def actions(self) -> dict[str, Callable[[PlannedFault], Act | None]]:
        return {
            "postgres restart": partial(self._on, partial(self._restart, "fast")),
            "postgres immediate": partial(self._on, partial(self._restart, "immediate")),
            "postgres crash": partial(self._on, self._crash),
            "postgres terminate sessions": partial(self._on, self._terminate),
            "postgres freeze": partial(self._on, self._freeze),
            "postgres full": partial(self._on, self._fill),
        }

    def _on(self, do: Callable[[PlannedFault], str], fault: PlannedFault) -> Act | None:
        if not self._turn.acquire(blocking=False):
            return None

        def act() -> str:
            try:
                return do(fault)
            finally:
                self._turn.release()

        return act

    def _restart(self, mode: StopMode, fault: PlannedFault) -> str:
        self._server.stop(mode)
        hold_for(fault.for_s)
        self._server.start()
        return f"{mode}, away for {fault.for_s:.1f} s"

    def _crash(self, fault: PlannedFault) -> str:
        """A session's process dies; the postmaster ends all others and recovers."""
        children = self._server.children
        victim = children[int(fault.draw * len(children))]
        _send(victim, signal.SIGKILL)
        self._wait_until_it_accepts()
        return f"killed its process {victim}"

    def _terminate(self, fault: PlannedFault) -> str:
        session = self._session()
        ended = session.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_SESSIONS}")
        count = len(ended.fetchall())
        session.close()
        return f"{count} sessions"

    def _freeze(self, fault: PlannedFault) -> str:
        frozen = self._server.children
        for pid in frozen:
            _send(pid, signal.SIGSTOP)
        try:
            hold_for(fault.for_s)
        finally:
            for pid in frozen:
                _send(pid, signal.SIGCONT)
        return f"{len(frozen)} processes stopped for {fault.for_s:.1f} s"

    def _fill(self, fault: PlannedFault) -> str:
        """Take every connection there is, ours away from the workers, too, and hold them."""
        import psycopg

        held = [self._session()]
        ended = 0
        deadline = time.monotonic() + fault.for_s
        try:
            while time.monotonic() < deadline:
                try:
                    held.append(self._session())
                except psycopg.OperationalError:
                    if not ended:
                        ended = self._end_others(held)
                    hold_for(0.02)
        finally:
            for session in held:
                session.close()
        return f"{len(held)} connections held, {ended} sessions ended for it"

    def _end_others(self, held: list[Any]) -> int:
        ours = ", ".join(str(session.info.backend_pid) for session in held)
        rows = held[0].execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_SESSIONS} AND pid NOT IN ({ours})"
        )
        return len(rows.fetchall())

    def _session(self) -> Any:
        return connect(self._database, timeout_s=5.0)

    def _wait_until_it_accepts(self) -> None:
        import psycopg

        deadline = time.monotonic() + 30.0
        while time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                self._session().close()
                return
            hold_for(0.05)


class SqliteHarm:
    """Somebody else's long transaction."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._turn = threading.Lock()

    def actions(self) -> dict[str, Callable[[PlannedFault], Act | None]]:
        return {"sqlite lock": self._lock}

    def _lock(self, fault: PlannedFault) -> Act | None:
        if not self._turn.acquire(blocking=False):
            return None

        def act() -> str:
            try:
                session = connect(self._database)
                session.execute("BEGIN IMMEDIATE")
                hold_for(fault.for_s)
                session.execute("ROLLBACK")
                session.close()
            finally:
                self._turn.release()
            return f"locked for {fault.for_s:.1f} s"

        return act


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

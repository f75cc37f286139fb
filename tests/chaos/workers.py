"""
Relays, consumers and writers as real processes: slots that are filled again when their process has died.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from testproject.processes import Guard

ROOT: Final = Path(__file__).resolve().parents[2]
RESTART_AFTER_S: Final = 0.5
LOOK_EVERY_S: Final = 0.05
STOP_S: Final = 45.0
AT_WORK_SHARE: Final = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a process ended. ``cause``: the fault that did it, ``""`` if none that we know of."""

    slot: str
    pid: int
    status: int
    cause: str
    at: float


@dataclass(slots=True, kw_only=True)
class Slot:
    """
    A place for one process.

    Attributes:
        busy: A fault is at work here.
        cause: The fault that is about to end the process.
        finished: It has ended by itself, with 0, as a writer does: it is not started again.
    """

    name: str
    command: Sequence[str]
    role: str
    process: subprocess.Popen[bytes] | None = None
    guard: Guard | None = None
    busy: bool = False
    cause: str = ""
    finished: bool = False
    restart_at: float = 0.0
    pids: list[int] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens when it has ended meanwhile."""
        if self.process is not None:
            self.process.send_signal(number)


class Workers:
    """
    Keeps every slot filled from :meth:`start` to :meth:`stop`, in a thread.

    Args:
        folder: A log for each slot goes to ``logs`` in it.
        environment: Of every process.
        is_deadly: Whether a process that died had an event that kills in its hands.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str], *, is_deadly: Callable[[int], bool]
    ) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self._is_deadly = is_deadly
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self.slots: list[Slot] = []
        self.deaths: list[Death] = []

    def add(self, role: str, number: int, command: Sequence[str]) -> None:
        self.slots.append(Slot(name=f"{role}-{number}", role=role, command=command))

    def of(self, *roles: str) -> list[Slot]:
        return [slot for slot in self.slots if slot.role in roles]

    def start(self) -> None:
        for slot in self.slots:
            self._spawn(slot)
        self._keeper.start()

    def take(self, role: str, draw: float, *, at_work: Collection[int] = ()) -> Slot | None:
        """
        A living process that no other fault has, for a fault of one's own; give it back with ``busy = False``.

        Args:
            draw: From 0 to 1, which one.
            at_work: Processes that hold leases. Most faults hit one of them: the others only stand by.
        """
        with self._lock:
            free = [slot for slot in self.of(role) if slot.alive and not slot.busy and not slot.finished]
            working = [slot for slot in free if slot.pids[-1] in at_work]
            if working and draw < AT_WORK_SHARE:
                free, draw = working, draw / AT_WORK_SHARE
            if not free:
                return None
            slot = free[int(draw * len(free))]
            slot.busy = True
            return slot

    def writers_done(self) -> bool:
        return all(slot.finished for slot in self.of("writer"))

    def stop(self) -> dict[str, int]:
        """Let all drain side by side; returns the exit status by slot. Nothing happens the second time."""
        self._ending.set()
        if self._keeper.is_alive():
            self._keeper.join(STOP_S)
        running = [slot for slot in self.slots if slot.alive]
        for slot in running:
            slot.signal(signal.SIGCONT)
            slot.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        statuses = {}
        for slot in running:
            assert slot.process is not None
            try:
                slot.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                slot.process.kill()
                slot.process.wait()
            statuses[slot.name] = slot.process.returncode
        for slot in self.slots:
            if slot.guard is not None:
                slot.guard.release()
                slot.guard = None
        return statuses

    def log_of(self, slot: str) -> Path:
        return self._folder / "logs" / f"{slot}.log"

    def _spawn(self, slot: Slot) -> None:
        with self.log_of(slot.name).open("ab") as log:
            slot.process = subprocess.Popen(
                [sys.executable, *slot.command],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        slot.guard = Guard(slot.process.pid)
        slot.pids.append(slot.process.pid)
        slot.cause = ""

    def _keep(self) -> None:
        while not self._ending.wait(LOOK_EVERY_S):
            for slot in self.slots:
                self._look(slot)

    def _look(self, slot: Slot) -> None:
        if slot.finished or slot.process is None:
            return
        status = slot.process.poll()
        if status is None:
            return
        now = time.monotonic()
        if slot.guard is not None:
            slot.guard.release()
            slot.guard = None
            slot.restart_at = now + RESTART_AFTER_S
            if slot.role == "writer" and status == 0:
                slot.finished = True
                return
            self._record(slot, status)
        if now >= slot.restart_at:
            with self._lock:
                self._spawn(slot)

    def _record(self, slot: Slot, status: int) -> None:
        assert slot.process is not None
        pid = slot.process.pid
        cause = slot.cause
        if not cause and slot.role == "consumer" and self._is_deadly(pid):
            cause = "deadly event"
        self.deaths.append(Death(slot=slot.name, pid=pid, status=status, cause=cause, at=time.time()))


def environment(folder: Path, *, database: str, nats: str, replicas: int) -> dict[str, str]:
    """Of every process of a run."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
        "CHAOS_DIR": str(folder),
        "CHAOS_DB": database,
        "CHAOS_NATS": nats,
        "CHAOS_REPLICAS": str(replicas),
        "LOG_LEVEL": os.environ.get("LOG_LEVEL") or "INFO",
        "PYTHONUNBUFFERED": "1",
    }

"""
What goes wrong: each kind of fault finds its target, does its harm, and leaves the place in order again.

The schedule is made before (:mod:`tests.chaos.plan`). A fault that is due but whose target is not there, or in
another fault's hands, waits for it; the others go on.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from tests.chaos.plan import Kind, PlannedFault
from tests.chaos.terms import TERMS

Act: TypeAlias = Callable[[], str]
LOOK_EVERY_S: Final = 0.05
AHEAD: Final = 0.05
_OVER_A_LEASE: Final = (TERMS.lease_s + 0.3, TERMS.lease_s + 3.0)

WORKER_KINDS: Final = (
    Kind(name="relay kill", weight=3),
    Kind(name="relay terminate", weight=2),
    Kind(name="relay stop", weight=2, low_s=_OVER_A_LEASE[0], high_s=_OVER_A_LEASE[1]),
    Kind(name="consumer kill", weight=3),
    Kind(name="consumer terminate", weight=2),
    Kind(name="consumer stop", weight=2, low_s=_OVER_A_LEASE[0], high_s=_OVER_A_LEASE[1]),
    Kind(name="writer kill", weight=1),
    Kind(name="operator redrives", weight=1, low_s=0.0, high_s=6.0),
)
NATS_KINDS: Final = (
    Kind(name="nats kill", weight=1.5, low_s=0.1, high_s=2.0),
    Kind(name="nats terminate", weight=0.7, low_s=0.1, high_s=1.0),
    Kind(name="nats freeze", weight=1.5, low_s=1.0, high_s=5.0),
    Kind(name="nats lame duck", weight=0.7, low_s=0.1, high_s=1.0),
)
CLUSTER_KINDS: Final = (
    Kind(name="leader kill", weight=2.5, low_s=0.5, high_s=3.0),
    Kind(name="stream step-down", weight=1.5),
    Kind(name="durable step-down", weight=1.5),
)
POSTGRES_KINDS: Final = (
    Kind(name="postgres restart", weight=0.8, low_s=0.0, high_s=1.0),
    Kind(name="postgres immediate", weight=0.8, low_s=0.0, high_s=1.0),
    Kind(name="postgres crash", weight=0.8),
    Kind(name="postgres terminate sessions", weight=2),
    Kind(name="postgres freeze", weight=1, low_s=0.5, high_s=4.0),
    Kind(name="postgres full", weight=1, low_s=1.0, high_s=3.0),
)
SQLITE_KINDS: Final = (Kind(name="sqlite lock", weight=2, low_s=0.5, high_s=3.0),)


def kinds(db: str, cluster: int) -> Sequence[Kind]:
    """All that can happen in such a run."""
    return (
        *WORKER_KINDS,
        *NATS_KINDS,
        *(CLUSTER_KINDS if cluster > 1 else ()),
        *(POSTGRES_KINDS if db == "postgres" else SQLITE_KINDS),
    )


class Schedule:
    """
    Carries a schedule out, each fault in a thread of its own, and writes down when each began and ended.

    Args:
        actions: Kind to the function that finds a target: the harm to be done, or ``None`` if not now.
        share: How much of the run is over, from 0 to 1. On a slow machine the writers need longer than planned;
            the clock of the faults waits for them, or the second half of the events would meet none.
        lasts_s: How long the whole schedule is.
        file: A JSON line for each fault.
    """

    def __init__(
        self,
        planned: Sequence[PlannedFault],
        actions: dict[str, Callable[[PlannedFault], Act | None]],
        *,
        share: Callable[[], float],
        lasts_s: float,
        file: Path,
    ) -> None:
        self.planned = planned
        self.done = Counter[str]()
        self.troubles: list[str] = []
        self._actions = actions
        self._share = share
        self._lasts_s = lasts_s
        self._file = file
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._running: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="faults", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def finished(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        """No further fault; waits for those under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        looked_at, now_s = time.monotonic(), 0.0
        waiting = list(self.planned)
        while waiting and not self._stop.wait(LOOK_EVERY_S):
            passed_s, looked_at = time.monotonic() - looked_at, time.monotonic()
            if now_s / self._lasts_s <= self._share() + AHEAD or self._share() >= 1.0:
                now_s += passed_s
            for fault in [fault for fault in waiting if fault.at_s <= now_s]:
                act = self._actions[fault.kind](fault)
                if act is not None:
                    waiting.remove(fault)
                    thread = threading.Thread(target=self._do, args=(fault, act, now_s), daemon=True)
                    self._running.append(thread)
                    thread.start()
        for thread in self._running:
            thread.join()

    def _do(self, fault: PlannedFault, act: Act, now_s: float) -> None:
        began = time.time()
        note = "failed"
        try:
            note = act()
        except Exception as error:  # the run goes on; the verdict says that a fault did not work
            note = f"did not work: {error!r}"
            self.troubles.append(f"{fault.kind}: {traceback.format_exc()}")
        line = {
            "number": fault.number,
            "kind": fault.kind,
            "planned_s": round(fault.at_s, 3),
            "began_s": round(now_s, 3),
            "began": time.strftime("%H:%M:%S", time.localtime(began)) + f",{int(began % 1 * 1000):03d}",
            "lasted_s": round(time.time() - began, 3),
            "note": note,
        }
        with self._lock, self._file.open("a") as file:
            self.done[fault.kind] += 1
            file.write(json.dumps(line) + "\n")


def hold_for(seconds: float) -> None:
    """A fault lasts; there is no fact to wait for."""
    threading.Event().wait(seconds)


def wait_for_end(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Whether it ended in time."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)
        return True
    return False

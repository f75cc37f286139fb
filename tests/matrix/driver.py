"""
One run of a cell: a world, a victim, a fault, a replacement, the wait until all is idle, the evidence.

It runs in a process of its own without threads, from which it forks the processes of the run.
"""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from django.db import DatabaseError
from django.test.utils import override_settings

from tests.matrix import bugs, lab, scenes, tables
from tests.matrix.actors import Actor, all_ended, command
from tests.matrix.broker import Broker
from tests.matrix.points import Called
from tests.matrix.saboteur import Fault, Saboteur
from tests.matrix.scenes import Role, Scene
from tests.matrix.steps import BY_NAME
from tests.matrix.verdict import Evidence, judge
from tests.matrix.writing import write
from tests.waiting import eventually

# Who is this late will not come. Generous: the machine may be doing other things.
REACH_S: Final = 30.0
IDLE_S: Final = 45.0
END_S: Final = 60.0
# With a planted bug waiting for the end of the patience is the rule.
BUGGY_S: Final = 5.0
LOOK_S: Final = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A step, a fault, a database and the seed of one run; ``bug`` is planted on purpose."""

    step: str
    fault: Fault
    db: str
    seed: int
    bug: str = ""

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.step, self.fault, self.db, str(self.seed), self.bug)))

    @property
    def replay(self) -> str:
        """The command that runs exactly this again."""
        words = f"python -m tests.matrix --step {self.step} --fault {self.fault} --db {self.db} --seed {self.seed}"
        return f"{words} --bug {self.bug}" if self.bug else words


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run happens: servers, its own folder and database, and how slow the machine is (from 1)."""

    nats_url: str
    folder: Path
    database: Mapping[str, Any]
    app: str
    slowness: float = 1.0


class MissedError(Exception):
    """The victim never came to its point."""


class Driver:
    """The course of one run."""

    def __init__(self, cell: Cell, place: Place) -> None:
        self.cell = cell
        self.place = place
        self.step = BY_NAME[cell.step]
        rng = random.Random(f"{cell.step} {cell.fault} {cell.db} {cell.seed}")
        self.nth = rng.randint(1, self.step.upto)
        self.plan = scenes.plan(self.step.scene, rng)
        self.lasts_s = 1.2 * scenes.hasty_lease_s(self.step.scene, place.slowness) + scenes.LOCK_TIMEOUT_S
        self.broker = Broker(place.nats_url, place.app)
        self.actors: list[Actor] = []
        self.reached = False
        self.is_mended = False
        self._hears, self._tells = os.pipe()

    def run(self) -> Mapping[str, Sequence[str]]:
        """The problems by fault; empty for a good run."""
        lab.enter(self.place.folder)
        tables.use(dict(self.place.database))
        unfinished: list[str] = []
        try:
            with all_ended(self.actors):
                try:
                    self._play()
                    self._wait_idle()
                except (AssertionError, MissedError) as late:
                    unfinished = [str(late), *_asked(tables.unfinished)]
                ended_badly = self._end()
                evidence = self._evidence(unfinished, ended_badly)
        finally:
            self.broker.delete()
            self.broker.close()
        problems = judge(self.plan, self.step.scene, evidence, is_ordered=self.step.is_ordered)
        (self.place.folder / "evidence").write_text(
            f"{self.cell}\nnth={self.nth} slowness={self.place.slowness}\n{self.plan}\n{evidence}\n{problems}\n"
        )
        return problems

    # --- the course ------------------------------------------------------------------------------

    def _play(self) -> None:
        self._provision()
        if self.step.victim is Role.WRITER:
            self._start(Role.RELAY)
            self._start(Role.CONSUMER)
            self._write(self.plan.first)
            self._fault()
        else:
            self._wait(self._write(self.plan.first))
            self._flow(self.step.scene)

    def _flow(self, scene: Scene) -> None:
        """Relay and consumer, up to the fault. A consumer that makes room would spoil the full subject."""
        self._start(Role.RELAY)
        match scene:
            case Scene.FULL:
                pass
            case Scene.REDELIVERED:
                # One more than is taken: one may be a second copy, which the stream has dropped.
                self._until(lambda: tables.archived() >= 5, "four events are in the stream")
                taken = self.broker.take_unacknowledged(4)
                assert taken == 4, f"took {taken} of 4 messages"
                self._start(Role.CONSUMER)
            case _:
                self._start(Role.CONSUMER)
        if scene is Scene.DRAIN:
            self._until((self.place.folder / lab.BEGUN).exists, "a handler runs")
            self._victim().send(signal.SIGTERM)
            if self.step.victim is Role.RELAY:  # a consumer says itself when it begins to drain
                (self.place.folder / lab.GO).touch()
        if scene.is_redriven:
            self._redrive(scene)
        elif self.step.victim is Role.PROVISION:
            self._go_on()
        else:
            self._fault()

    def _provision(self) -> None:
        self._start(Role.PROVISION)
        if self.step.victim is Role.PROVISION:
            self._fault()
        for actor in self.actors:
            self._wait(actor)
        assert self.broker.is_provisioned(), "the durable is not there"
        if self.step.scene is Scene.REFUSED:
            self.broker.limit_message_size(scenes.MAX_BYTES)

    def _redrive(self, scene: Scene) -> None:
        self._wait_idle()
        (self.place.folder / lab.ARMED).touch()
        if scene is Scene.REDRIVE:
            (self.place.folder / lab.CURED).touch()
        self._start(Role.REDRIVE)
        self._fault()

    def _go_on(self) -> None:
        """The rest of the events: a replacement, or a process that wakes up, finds more to do."""
        # Of a dead writer the replacement does what is missing; a stopped one will do it itself.
        is_missing = self.step.victim is Role.WRITER and self.cell.fault is Fault.KILL
        self._write(self.plan.all if is_missing else self.plan.second)
        if self.step.scene is Scene.FULL:
            self._start(Role.CONSUMER)

    def _fault(self) -> None:
        """Wait for it, start the replacement, and wake a stopped victim."""
        victim = self._victim()
        seconds = (BUGGY_S if self.cell.bug else REACH_S) * self.place.slowness
        eventually(self._struck, seconds, interval_s=0.01, what="the fault happens")
        stopped_at = time.monotonic()
        if self.cell.fault is Fault.KILL:
            eventually(lambda: victim.code is not None, END_S, interval_s=0.005, what="the victim is dead")
        if self.cell.fault is Fault.STOP:
            eventually(lambda: victim.is_stopped, END_S, interval_s=0.005, what="the victim stands still")
        if self.step.victim is not Role.WRITER:
            self._start(self.step.victim, is_replacement=True)
        if self.step.victim is not Role.PROVISION:
            self._go_on()
        if self.cell.fault is Fault.STOP:
            # Bounded by nothing else: standing still is the fault.
            eventually(
                lambda: time.monotonic() - stopped_at >= self.lasts_s,
                2 * self.lasts_s,
                what="it stood long enough",
            )
            victim.go_on()

    def _struck(self) -> bool:
        ready, _, _ = select.select([self._hears], [], [], 0)
        self.reached = self.reached or bool(ready)
        victim = self._victim()
        if not self.reached and victim.code is not None:
            raise MissedError(f"{victim.name} ended with {victim.code} before the fault could happen.")
        if self.step.scene is Scene.REFUSED:
            self._mend()
        return self.reached

    # --- processes -------------------------------------------------------------------------------

    def _start(self, role: Role, *, is_replacement: bool = False) -> Actor:
        mains: Mapping[Role, Callable[[], int]] = {
            Role.RELAY: lambda: command("jetbridge_relay"),
            Role.CONSUMER: lambda: command("jetbridge_consume"),
            Role.PROVISION: lambda: command("jetbridge_provision"),
            Role.REDRIVE: lambda: command("jetbridge_dlq", "redrive", "--all", "--no-input"),
        }
        return self._fork(role, mains[role], is_victim=role is self.step.victim and not is_replacement)

    def _write(self, orders: Sequence[scenes.Planned]) -> Actor:
        is_victim = self.step.victim is Role.WRITER and not self.reached
        return self._fork(Role.WRITER, lambda: write(orders), is_victim=is_victim)

    def _fork(self, role: Role, main: Callable[[], int], *, is_victim: bool) -> Actor:
        keys = scenes.settings_of(
            role,
            scene=self.step.scene,
            victim=self.step.victim,
            slowness=self.place.slowness,
            app=self.place.app,
            nats_url=self.place.nats_url,
        )

        def live() -> int:
            if self.cell.bug:
                bugs.BY_NAME[self.cell.bug].plant()
            if is_victim:
                self._lie_in_wait()
            with override_settings(JETBRIDGE=keys):
                return main()

        number = len(self.actors)
        actor = Actor(f"{number}-{role}{'-victim' if is_victim else ''}", live, self.place.folder)
        actor.is_victim = is_victim
        self.actors.append(actor)
        return actor

    def _lie_in_wait(self) -> None:
        """In the victim's process."""
        if self.step.scene is Scene.DRAIN:
            drains = Called(target="jetbridge.consumer.consumer:Consumer.drain", side="before")
            drains.watch((self.place.folder / lab.GO).touch)
        Saboteur(
            self.step.point,
            self.cell.fault,
            nth=self.nth,
            lasts_s=self.lasts_s,
            tell=self._tells,
            waits=self.step.scene.is_redriven,
        ).lie_in_wait()

    def _victim(self) -> Actor:
        return next(actor for actor in self.actors if actor.is_victim)

    # --- waiting ---------------------------------------------------------------------------------

    def _until(self, fact: Callable[[], bool], what: str) -> None:
        eventually(fact, REACH_S * self.place.slowness, interval_s=LOOK_S, what=what)

    def _wait(self, actor: Actor) -> None:
        eventually(lambda: actor.code is not None, END_S, interval_s=0.005, what=f"{actor.name} has ended")

    def _wait_idle(self) -> None:
        """Two looks in a row find nothing: what moves upstream between the questions of one is seen by the next."""
        quiet = 0

        def idle() -> bool:
            nonlocal quiet
            quiet = 0 if self._unfinished() else quiet + 1
            return quiet >= 2

        seconds = (BUGGY_S if self.cell.bug else IDLE_S) * self.place.slowness
        eventually(idle, seconds, interval_s=LOOK_S, what="everything is idle")

    def _unfinished(self) -> list[str]:
        if any("writer" in one.name or "redrive" in one.name for one in self.actors if one.code is None):
            return ["Somebody is still at work."]
        if self.step.scene is Scene.DRAIN and self._victim().code is None:
            return ["The victim still drains."]
        found = tables.unfinished()
        if self.step.scene is Scene.REFUSED:
            self._mend()
        if not found and any(self.broker.unsettled()):
            found.append("The stream has messages to settle.")
        return found

    def _mend(self) -> None:
        """The operator's part, once only a refused row holds everything up: the limit is lifted, the row goes again."""
        if not self.is_mended and tables.waits_for_operator():
            self.is_mended = True
            self.broker.limit_message_size(-1)
            tables.send_refused_again()

    # --- the end ---------------------------------------------------------------------------------

    def _end(self) -> list[str]:
        """Ask everybody to stop; returns who did not end as it should."""
        for actor in self.actors:
            actor.send(signal.SIGTERM)
        bad = []
        for actor in self.actors:
            try:
                self._wait(actor)
            except AssertionError:
                bad.append(f"{actor.name} did not end within {END_S:g} s of SIGTERM.")
                continue
            code = actor.code
            if actor.is_victim and self.cell.fault is Fault.KILL and self.reached:
                allowed: tuple[int, ...] = (-signal.SIGKILL,)
            else:
                # 1 from a redrive: another one has taken the dead letter.
                allowed = (0, 1) if "redrive" in actor.name else (0,)
            if code not in allowed:
                bad.append(f"{actor.name} ended with {code}, expected {' or '.join(map(str, allowed))}.")
        return bad

    def _evidence(self, unfinished: Sequence[str], ended_badly: Sequence[str]) -> Evidence:
        return Evidence(
            reached=self.reached,
            orders=tables.orders(),
            effects=tables.effects(),
            waiting=tables.waiting(),
            archive=tables.archive(),
            inbox=tables.inbox(),
            letters=tables.letters(),
            left=sum(self.broker.unsettled()) or self.broker.left(),
            unfinished=unfinished,
            ended_badly=ended_badly,
        )


def _asked(question: Callable[[], list[str]]) -> list[str]:
    try:
        return question()
    except DatabaseError as error:
        return [f"The database does not answer: {error}"]

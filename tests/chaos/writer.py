"""
A writer process: its share of the plan, one transaction after the other, through outages of the database.

``python -m tests.chaos.writer --index 0 --of 4 ...``. A transaction whose COMMIT got no answer is looked up: its
business row is there or not, and that decides. A writer that was killed goes on where its file says.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import django

from tests.chaos import plan
from tests.chaos.plan import PlannedEvent, Step, Way
from tests.chaos.terms import TERMS

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

RETRY_S = 0.2


class _RolledBack(Exception):
    pass


class Writer:
    """
    Args:
        done: A line for each finished step, and for each event that was rolled back.
    """

    def __init__(self, done: Path) -> None:
        from django.db import connection

        self._connection: BaseDatabaseWrapper = connection
        self._file = done.open("a", buffering=1)

    def do(self, step: Step, *, in_doubt: bool) -> None:
        """Until it is done, or known to have been done."""
        from django.db import DatabaseError, InterfaceError

        while True:
            try:
                if not (in_doubt and self._is_done(step)):
                    self._act(step)
                break
            except (DatabaseError, InterfaceError) as error:
                # Also IntegrityError: a transaction whose client is gone can still commit.
                self._say("retry", step, type(error).__name__)
                in_doubt = True
                self._forget_connection()
                threading.Event().wait(RETRY_S)
        self._say("done", step)

    def do_again_what_was_undone(self, steps: Sequence[Step]) -> None:
        """
        A crash of the database takes lazy commits back. One that waits for the disk makes all before it durable;
        then what is missing is missing for good, and is done again.
        """
        from django.db import DatabaseError, InterfaceError

        committing = [step for step in steps if step.commits]
        while True:
            try:
                self._rows("UPDATE chaos_key SET counter = counter + 1 WHERE name = 'k0'")
                known = {str(step) for (step,) in self._rows("SELECT step FROM chaos_step")}
                break
            except (DatabaseError, InterfaceError):
                self._forget_connection()
                threading.Event().wait(RETRY_S)
        for step in committing:
            if f"{step.number}.0" not in known:
                self._say("undone", step)
                self.do(replace(step, lazy=False), in_doubt=True)

    def _say(self, word: str, step: Step, more: str = "") -> None:
        self._file.write(f"{word} {step.number} {len(step.events)} {time.time():.3f} {more}\n")

    def _forget_connection(self) -> None:
        try:
            self._connection.close()
        except Exception:  # it may be broken in any way
            self._connection.connection = None
        self._connection.in_atomic_block = False
        self._connection.closed_in_transaction = False
        self._connection.savepoint_ids = []
        self._connection.needs_rollback = False
        self._connection.atomic_blocks = []

    def _is_done(self, step: Step) -> bool:
        copies = 2 if step.way is Way.AGAIN else 1
        found = self._rows(
            "SELECT copies FROM chaos_step WHERE step = %s AND copies >= %s", f"{step.number}.0", copies
        )
        return bool(found)

    def _rows(self, sql: str, *parameters: str | int | None) -> list[tuple[object, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []

    # --- the ways ----------------------------------------------------------------------------------

    def _act(self, step: Step) -> None:
        from django.db import transaction

        match step.way:
            case Way.EXCEPTION:
                try:
                    with transaction.atomic():
                        self._publish(step, "rolled back")
                        raise _RolledBack
                except _RolledBack:
                    self._say("rolled-back", step)
            case Way.SET_ROLLBACK:
                with transaction.atomic():
                    self._publish(step, "rolled back")
                    transaction.set_rollback(True)
                self._say("rolled-back", step)
            case Way.HANG_UP:
                try:
                    with transaction.atomic():
                        self._publish(step, "rolled back")
                        self._connection.connection.close()
                        raise _RolledBack
                except Exception:
                    self._forget_connection()
                self._say("rolled-back", step)
            case Way.AGAIN:
                if not self._rows("SELECT 1 FROM chaos_step WHERE step = %s", f"{step.number}.0"):
                    with transaction.atomic():
                        self._publish(step)
                with transaction.atomic():
                    self._publish_again(step)
            case _:
                with transaction.atomic():
                    if step.lazy and self._connection.vendor == "postgresql":
                        self._rows("SET LOCAL synchronous_commit TO off")
                    if step.way is Way.SAVEPOINT:
                        self._roll_a_savepoint_back(step)
                    self._publish(step)
                    self._hold(step)

    def _roll_a_savepoint_back(self, step: Step) -> None:
        from django.db import transaction

        try:
            with transaction.atomic():
                self._publish(step, "rolled back")
                raise _RolledBack
        except _RolledBack:
            self._say("rolled-back", step)

    def _hold(self, step: Step) -> None:
        """Others commit meanwhile, with higher ids. Not on SQLite, where they would wait."""
        if step.hold_s and self._connection.vendor == "postgresql":
            threading.Event().wait(step.hold_s)

    def _publish(self, step: Step, why: str = "") -> None:
        """
        The events, and their business rows in the same transaction.

        The counters lock their keys, always in the same order, and until the end: so the order of a key's
        events is the order of their numbers.
        """
        import jetbridge

        numbers = self._numbers(step.events)
        events = [
            jetbridge.Event(
                "chaos.made",
                {
                    "step": step.number,
                    "number": step.number + place,
                    "key": planned.key,
                    "n": numbers[place],
                    "fate": planned.fate,
                    "times": planned.times,
                },
                key=planned.key or None,
                resource_id="",
            )
            for place, planned in enumerate(step.events)
        ]
        delay = step.delay_s if step.way is Way.DELAYED else None
        ids = jetbridge.publish_many(events, to=TERMS.app, delay=delay)
        copies = 1
        if step.way is Way.TWICE:
            copies = 2
            self._publish_copy(step.events[0], ids[0], numbers[0], step)
        for place, planned in enumerate(step.events):
            self._rows(
                "INSERT INTO chaos_step (step, event_id, key, n, fate, copies) VALUES (%s, %s, %s, %s, %s, %s)",
                f"{step.number}.{place}{why}",
                ids[place],
                planned.key,
                numbers[place],
                planned.fate,
                copies,
            )

    def _numbers(self, events: tuple[PlannedEvent, ...]) -> list[int | None]:
        wanted = Counter(event.key for event in events if event.key)
        last = dict[str, int]()
        for key in sorted(wanted):
            ((counter,),) = self._rows(
                "UPDATE chaos_key SET counter = counter + %s WHERE name = %s RETURNING counter",
                wanted[key],
                key,
            )
            last[key] = int(str(counter)) - wanted[key]
        numbers = list[int | None]()
        for event in events:
            if event.key:
                last[event.key] += 1
            numbers.append(last[event.key] if event.key else None)
        return numbers

    def _publish_copy(self, planned: PlannedEvent, event_id: str, n: int | None, step: Step) -> None:
        import jetbridge

        payload = {
            "step": step.number,
            "number": step.number,
            "key": planned.key,
            "n": n,
            "fate": planned.fate,
            "times": planned.times,
        }
        jetbridge.publish(
            "chaos.made",
            payload,
            to=TERMS.app,
            event_id=event_id,
            key=planned.key or None,
            resource_id="",
        )

    def _publish_again(self, step: Step) -> None:
        ((event_id, n),) = self._rows(
            "UPDATE chaos_step SET copies = 2 WHERE step = %s RETURNING event_id, n", f"{step.number}.0"
        )
        self._publish_copy(step.events[0], str(event_id), None if n is None else int(str(n)), step)


def last_done(file: Path) -> int:
    """Number of the last finished step, -1 at the beginning; a torn last line is none."""
    if not file.exists():
        return -1
    lines = file.read_text().rpartition("\n")[0].splitlines()
    return max((int(line.split()[1]) for line in lines if line.startswith("done ")), default=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--index", "--of", "--events", "--seed", "--keys"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--began-at", type=float, required=True, help="seconds since the epoch")
    parser.add_argument("--lasts-s", type=float, required=True)
    options = parser.parse_args()
    django.setup()
    done = Path(os.environ["CHAOS_DIR"]) / f"writer-{options.index}.done"
    last = last_done(done)
    writer = Writer(done)
    mine = plan.steps(options.events, seed=options.seed, keys=options.keys)[options.index :: options.of]
    in_doubt = last >= 0 or done.stat().st_size > 0
    for step in mine:
        if step.number <= last:
            continue
        wait_s = options.began_at + step.at * options.lasts_s - time.time()
        if wait_s > 0:
            threading.Event().wait(wait_s)
        writer.do(step, in_doubt=in_doubt)
        in_doubt = False
    writer.do_again_what_was_undone(mine)
    print(json.dumps({"finished": len(mine)}))


if __name__ == "__main__":
    main()

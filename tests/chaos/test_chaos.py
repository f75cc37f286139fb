"""A short run with every promise kept, and the proof that the verdict would have seen it if one had not been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from testproject.postgres import Postgres
from tests.chaos import books, faults, plan, tables, verdict
from tests.chaos.broker import StreamState
from tests.chaos.plan import DEATHS, Way
from tests.chaos.terms import TERMS
from tests.chaos.verdict import Breach, Evidence

ROOT = Path(__file__).resolve().parents[2]
VENDOR = os.environ.get("JETBRIDGE_TEST_DB") or "sqlite"
EVENTS, FAULTS = 1_500, 10
# Seconds of work on a machine of one's own; minutes where others work, too.
pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chaos:
    exit_code: int
    output: str
    document: dict[str, Any]
    database: str

    @contextmanager
    def tampered(self, *statements: str) -> Iterator[Evidence]:
        """What the verdict would have read after these statements; they are rolled back."""
        session = tables.connect(self.database)
        session.execute("BEGIN")
        try:
            for statement in statements:
                assert session.execute(statement).rowcount == 1, statement
            yield self._evidence(lambda sql: session.execute(sql).fetchall())
        finally:
            session.execute("ROLLBACK")
            session.close()

    def _evidence(self, query: Callable[[str], Any]) -> Evidence:
        found = books.read(query, VENDOR)
        stream = StreamState(left=(), notices=len(found.letters), pending=0, ack_pending=0)
        return Evidence(books=found, stream=stream, terms=TERMS, died_with={})

    def one(self, sql: str) -> Any:
        """The first value of the first row."""
        session = tables.connect(self.database)
        try:
            return session.execute(f"{sql} LIMIT 1").fetchone()[0]
        finally:
            session.close()


@pytest.fixture(scope="module")
def chaos(server_dir: Path) -> Iterator[Chaos]:
    """One run in processes of its own; PostgreSQL is started again to look inside."""
    folder, result = server_dir / "chaos", server_dir / "chaos.json"
    numbers = {
        "--events": EVENTS,
        "--faults": FAULTS,
        "--seed": 7,
        "--pace": 1,
        "--keys": 60,
        "--relays": 2,
        "--consumers": 2,
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.chaos", "--db", VENDOR, "--dir", folder, "--json", result),
            *(str(part) for pair in numbers.items() for part in pair),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.exists(), done.stdout
    document = json.loads(result.read_text())
    ran = Chaos(
        exit_code=done.returncode, output=done.stdout, document=document, database=document["database"]
    )
    if VENDOR == "sqlite":
        yield ran
        return
    with Postgres(folder / "postgres", port=urlsplit(ran.database).port):
        yield ran


def test_every_promise_holds(chaos: Chaos) -> None:
    broken = {name: chaos.document[name] for name in verdict.PROMISED if chaos.document[name]}

    assert (chaos.exit_code, chaos.document["ok"], broken) == (0, True, {}), chaos.output
    assert chaos.document["events"]["committed"] == EVENTS
    assert chaos.document["events"]["rolled_back"] > EVENTS / 20
    assert chaos.document["faults"]["total"] == FAULTS
    assert chaos.document["duplicates_suppressed"] >= chaos.document["events"]["published_twice"]


def named(evidence: Evidence, of: str) -> str:
    """What the verdict says about one of its numbers."""
    return "\n".join(breach.what for breach in verdict.judge(evidence) if breach.of == of)


FINE = "FROM chaos_step WHERE fate = 'fine' AND copies = 1 AND key <> ''"


def test_a_lost_event_is_named(chaos: Chaos) -> None:
    event = chaos.one(f"SELECT event_id {FINE}")

    with chaos.tampered(f"DELETE FROM chaos_effect WHERE event_id = '{event}'") as evidence:
        assert f"{event} (step " in named(evidence, "lost")
    with chaos.tampered(f"DELETE FROM jetbridge_archive WHERE event_id = '{event}'") as evidence:
        assert "0 of 1 rows in outbox and archive" in named(evidence, "lost")
    with chaos.tampered(f"DELETE FROM jetbridge_inbox WHERE event_id = '{event}'") as evidence:
        assert "the inbox says nothing" in named(evidence, "lost")
    dead = chaos.one("SELECT event_id FROM jetbridge_dead_letter")
    with chaos.tampered(f"DELETE FROM jetbridge_dead_letter WHERE event_id = '{dead}'") as evidence:
        assert f"{dead} (step " in named(evidence, "lost")


def test_a_doubled_effect_is_named(chaos: Chaos) -> None:
    event = chaos.one(f"SELECT event_id {FINE}")
    columns = "handler, event_id, key, n, answer_id, pid, attempt"

    with chaos.tampered(
        f"INSERT INTO chaos_effect ({columns}) SELECT {columns} FROM chaos_effect WHERE event_id = '{event}'"
    ) as evidence:
        assert f"{event} (step " in named(evidence, "doubled")


def test_what_was_rolled_back_and_is_there_is_named(chaos: Chaos) -> None:
    """The business row decides: without it nothing of the event may be anywhere."""
    event = chaos.one(f"SELECT event_id {FINE}")
    doomed = chaos.one("SELECT event_id FROM chaos_step WHERE fate = 'doomed'")
    effect = f"'chaos.effect', '{doomed}', '', NULL, '', 1, 4"

    with chaos.tampered(f"DELETE FROM chaos_step WHERE event_id = '{event}'") as evidence:
        ghosts = named(evidence, "ghosts")
        assert [place for place in ("archive", "inbox", "effects") if f"{event} in {place}," in ghosts]
    with chaos.tampered(
        f"INSERT INTO chaos_effect (handler, event_id, key, n, answer_id, pid, attempt) VALUES ({effect})"
    ) as evidence:
        assert f"{doomed} (step " in named(evidence, "ghosts")


def test_what_is_stuck_is_named(chaos: Chaos) -> None:
    event = chaos.one(f"SELECT event_id {FINE}")
    years = "clock_timestamp() + interval '1 year'" if VENDOR == "postgres" else "'2999-01-01 00:00:00'"

    with chaos.tampered(
        f"UPDATE jetbridge_inbox SET state = 'running', claimed_by = 'me' WHERE event_id = '{event}'"
    ) as evidence:
        assert f"inbox: {event} is running, claimed by me" in named(evidence, "stuck")
    with chaos.tampered(
        f"UPDATE jetbridge_lease SET owner = 'me', expires_at = {years} WHERE name = 'relay/07'"
    ) as evidence:
        assert "lease: relay/07 is held by me" in named(evidence, "stuck")
    with chaos.tampered() as evidence:
        left = replace(evidence, stream=StreamState(left=(event,), notices=99, pending=0, ack_pending=1))
        assert f"stream: {event} is not settled" in named(left, "stuck")
        assert "1 without ack" in named(left, "stuck")


def test_a_row_left_in_the_outbox_is_named(chaos: Chaos) -> None:
    event = chaos.one(f"SELECT event_id {FINE}")
    content = (
        "event_id, message_id, kind, event_type, destination, subject, key, bucket, headers, body, causation_id, "
        "correlation_id"
    )

    with chaos.tampered(
        f"INSERT INTO jetbridge_outbox ({content}) SELECT {content} FROM jetbridge_archive WHERE event_id = '{event}'"
    ) as evidence:
        assert f"outbox: event {event} is ready" in named(evidence, "stuck")
        assert "2 rows in outbox and archive for 1 publishes" in named(evidence, "doubled")
        assert named(evidence, "growth") == "jetbridge_outbox: 1 rows"


def test_attempts_and_dead_letters_against_the_policy_are_named(chaos: Chaos) -> None:
    event = chaos.one(f"SELECT event_id {FINE}")
    doomed = chaos.one("SELECT event_id FROM chaos_step WHERE fate = 'doomed'")

    with chaos.tampered(f"UPDATE jetbridge_inbox SET attempts = 5 WHERE event_id = '{event}'") as evidence:
        assert f"{event} of chaos.effect: 5 attempts" in named(evidence, "attempts_over_policy")
    with chaos.tampered(f"UPDATE jetbridge_inbox SET starts = 5 WHERE event_id = '{event}'") as evidence:
        assert f"{event} of chaos.effect: 1 attempts, 5 starts" in named(evidence, "attempts_over_policy")
    with chaos.tampered(f"UPDATE chaos_step SET fate = 'fine' WHERE event_id = '{doomed}'") as evidence:
        assert "dead as max_deliver_exceeded, expected its effect" in named(evidence, "wrong_dead_letters")
    with chaos.tampered(
        f"UPDATE jetbridge_dead_letter SET attempts = 2 WHERE event_id = '{doomed}'"
    ) as evidence:
        assert "given up after 2 attempts of 4" in named(evidence, "wrong_dead_letters")


def test_only_known_deaths_excuse_a_dead_innocent(chaos: Chaos) -> None:
    """A SIGKILL counts as a death; a dead letter of an innocent is fine only if it really met that many."""
    dead = chaos.one(
        "SELECT event_id FROM chaos_step WHERE fate = 'doomed' AND event_id IN "
        "(SELECT event_id FROM jetbridge_dead_letter)"
    )
    with chaos.tampered(
        f"UPDATE chaos_step SET fate = 'fine' WHERE event_id = '{dead}'",
        f"UPDATE jetbridge_dead_letter SET reason = 'crashed' WHERE event_id = '{dead}'",
    ) as evidence:
        killed = replace(evidence, died_with={dead: TERMS.max_starts})
        spared = replace(evidence, died_with={dead: TERMS.max_starts - 1})
        assert not named(killed, "wrong_dead_letters")
        assert "dead as crashed" in named(spared, "wrong_dead_letters")


def test_events_in_the_wrong_order_are_named(chaos: Chaos) -> None:
    """On the wire that breaks a promise, in the handlers it is counted."""
    key = chaos.one(
        "SELECT a.key FROM chaos_step a JOIN chaos_step b ON b.key = a.key AND b.n = 4 "
        "WHERE a.n = 3 AND a.copies = 1 ORDER BY a.key"
    )
    place = f"WHERE event_id = (SELECT event_id FROM chaos_step WHERE key = '{key}' AND n = 3)"
    alive = "NOT IN (SELECT event_id FROM jetbridge_dead_letter)"
    key_in_handlers = chaos.one(
        "SELECT a.key FROM chaos_effect a JOIN chaos_effect b ON b.key = a.key AND b.id > a.id "
        f"WHERE a.n = 3 AND a.event_id {alive} AND b.event_id {alive} ORDER BY a.id"
    )

    with chaos.tampered(
        f"UPDATE jetbridge_archive SET sequence = 999999 {place}",
        f"UPDATE jetbridge_inbox SET sequence = 999999 {place}",
    ) as evidence:
        assert f"{key} #4 " in named(evidence, "wire_order_violations")
    with chaos.tampered(
        f"UPDATE chaos_effect SET n = 999 WHERE key = '{key_in_handlers}' AND n = 3"
    ) as evidence:
        assert f"{key_in_handlers} #" in named(evidence, "order_violations")


def test_a_worker_that_ends_by_itself_is_named(chaos: Chaos) -> None:
    with chaos.tampered() as evidence:
        found = verdict.judge(replace(evidence, failures=["relay-1 ended by itself"]))

    assert Breach(of="workers_failed", what="relay-1 ended by itself") in found


def test_the_seed_makes_the_plan() -> None:
    """The writers make it again, each for itself; and what a failure prints must be the same run."""
    steps = plan.steps(3_000, seed=5, keys=40)
    events = [event for step in steps if step.commits for event in step.events]
    kinds = faults.kinds("postgres", 3)
    schedule = plan.faults(40, kinds, seed=5, pace_s=1.5)

    assert steps == plan.steps(3_000, seed=5, keys=40) != plan.steps(3_000, seed=6, keys=40)
    assert len(events) == 3_000
    assert {step.way for step in steps} == set(Way)
    assert {event.fate for event in events} >= set(DEATHS)
    assert schedule == plan.faults(40, kinds, seed=5, pace_s=1.5)
    assert {fault.kind for fault in schedule} == {kind.name for kind in kinds}, "each at least once"

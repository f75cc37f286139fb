"""The verdict on a run: what the tables and the stream say against what was planned. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from jetbridge.retry import REASON_EXHAUSTED
from tests.matrix.scenes import MAX_ATTEMPTS, Plan, Planned, Scene

# What a run is judged by. The first four are the promises; the rest says why a run proves nothing, or more.
FAULTS: Final = ("lost", "ghosts", "doubled", "stuck", "order", "attempts", "broken", "not_reached")


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """A row of the archive, in the order of ids."""

    event_id: str
    key: str
    kind: str
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxRow:
    """What a handler has done with an event."""

    event_id: str
    state: str
    attempts: int
    starts: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead letter."""

    event_id: str
    state: str
    reason: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """
    What was found when everything had ended.

    Attributes:
        reached: Whether the fault happened.
        orders: Numbers of the orders in the database: what is committed.
        effects: Event ids of the invoices, in the order of ids.
        waiting: Event ids in the outbox, the scheduled and the deferred table.
        left: Unsettled messages in the stream.
        unfinished: What was waited for when the time was up.
        ended_badly: Processes with an exit code that is none of theirs.
    """

    reached: bool
    orders: Sequence[str]
    effects: Sequence[str]
    waiting: Sequence[str]
    archive: Sequence[Archived]
    inbox: Sequence[InboxRow]
    letters: Sequence[Letter]
    left: int
    unfinished: Sequence[str] = ()
    ended_badly: Sequence[str] = ()


@dataclass(slots=True, kw_only=True)
class Problems:
    """Sentences by fault; empty if all is well."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, fault: str, sentence: str) -> None:
        assert fault in FAULTS, fault
        self.found[fault].append(sentence)


def judge(plan: Plan, scene: Scene, evidence: Evidence, *, is_ordered: bool) -> Mapping[str, Sequence[str]]:
    """
    Args:
        is_ordered: Whether the order of each key must have survived.
    """
    problems = Problems()
    committed = {order.number: order for order in plan.all if order.number in set(evidence.orders)}
    if not evidence.reached:
        problems.add("not_reached", "The fault never happened, so this run proves nothing.")
    for sentence in evidence.ended_badly:
        problems.add("broken", sentence)
    _orders(plan, evidence, problems)
    for order in committed.values():
        _one(order, scene, evidence, problems)
    _ghosts(committed, evidence, problems)
    _stuck(evidence, problems)
    _starts(evidence, problems)
    if is_ordered:
        _order(evidence, problems)
    return dict(problems.found)


def _orders(plan: Plan, evidence: Evidence, problems: Problems) -> None:
    """The writers' own work: without it there is nothing to judge."""
    for number, times in Counter(evidence.orders).items():
        if times > 1:
            problems.add("broken", f"{number} was placed {times} times; the matrix itself is wrong.")
    for order in plan.all:
        if not order.is_rolled_back and order.number not in evidence.orders:
            problems.add("broken", f"{order.number} was never placed.")


def _one(order: Planned, scene: Scene, evidence: Evidence, problems: Problems) -> None:
    """A committed order: its events in the archive, its effect or its dead letter, its attempts."""
    expected = {order.event_id: "ok" if scene is Scene.REDRIVE and order.do == "poison" else order.do}
    if order.do == "answer" and order.event_id in evidence.effects:
        expected[order.answer_id] = "ok"
    for event_id, do in expected.items():
        sent = 2 if order.is_twice and event_id == order.event_id else 1
        _sent(event_id, sent, evidence, problems)
        if do == "poison":
            _given_up(event_id, evidence, problems)
        else:
            _effect(event_id, evidence, problems)
            redriven = order.do == "poison"
            _attempts(event_id, 2 if do == "flaky" else 1, evidence, problems, redriven=redriven)


def _sent(event_id: str, times: int, evidence: Evidence, problems: Problems) -> None:
    archived = sum(row.event_id == event_id and row.kind == "event" for row in evidence.archive)
    waiting = evidence.waiting.count(event_id)
    if archived + waiting < times:
        problems.add(
            "lost", f"{event_id}: published {times} times, {archived} in the archive, {waiting} wait."
        )
    if archived > times:
        problems.add("doubled", f"{event_id}: published {times} times, {archived} in the archive.")


def _effect(event_id: str, evidence: Evidence, problems: Problems) -> None:
    effects = evidence.effects.count(event_id)
    if effects > 1:
        problems.add("doubled", f"{event_id} has {effects} effects.")
    for letter in _letters_of(event_id, evidence):
        if letter.state != "redriven":
            problems.add(
                "attempts",
                f"{event_id}, which never fails for good, has a dead letter: {letter.state}, {letter.reason}.",
            )
    if not effects:
        is_somewhere = event_id in evidence.waiting or evidence.left
        problems.add("stuck" if is_somewhere else "lost", f"{event_id} has no effect.")


def _given_up(event_id: str, evidence: Evidence, problems: Problems) -> None:
    letters = _letters_of(event_id, evidence)
    notices = sum(row.event_id == event_id and row.kind == "dead_letter" for row in evidence.archive)
    if not letters:
        problems.add("lost", f"{event_id} always fails and has no dead letter.")
    elif len(letters) > 1:
        problems.add("doubled", f"{event_id} has {len(letters)} dead letters.")
    for letter in letters:
        if (letter.state, letter.reason, letter.attempts) != ("open", REASON_EXHAUSTED, MAX_ATTEMPTS):
            problems.add("attempts", f"The dead letter of {event_id} is {letter}.")
    if letters and not notices:
        problems.add("lost", f"The dead letter of {event_id} has sent no notice.")
    if event_id in evidence.effects:
        problems.add("doubled", f"{event_id} always fails and has an effect.")


def _letters_of(event_id: str, evidence: Evidence) -> list[Letter]:
    return [letter for letter in evidence.letters if letter.event_id == event_id]


def _attempts(
    event_id: str, attempts: int, evidence: Evidence, problems: Problems, *, redriven: bool
) -> None:
    for row in evidence.inbox:
        if row.event_id != event_id:
            continue
        if row.state == "processed" and row.attempts != attempts:
            problems.add("attempts", f"{event_id} spent {row.attempts} attempts instead of {attempts}.")
        if redriven and row.generation != 1:
            problems.add("doubled", f"{event_id} was driven again {row.generation} times instead of once.")


def _ghosts(committed: Mapping[str, Planned], evidence: Evidence, problems: Problems) -> None:
    """Nothing anywhere speaks of what was rolled back: orders, and answers of handlers without an effect."""
    real = {order.event_id for order in committed.values()}
    real |= {
        order.answer_id
        for order in committed.values()
        if order.do == "answer" and order.event_id in evidence.effects
    }
    places: Mapping[str, Sequence[str]] = {
        "invoices": evidence.effects,
        "the outbox": evidence.waiting,
        "the archive": [row.event_id for row in evidence.archive],
        "the inbox": [row.event_id for row in evidence.inbox],
        "the dead letters": [letter.event_id for letter in evidence.letters],
    }
    for place, events in places.items():
        for event_id in sorted(set(events) - real):
            problems.add("ghosts", f"{event_id} was rolled back and is in {place}.")


def _stuck(evidence: Evidence, problems: Problems) -> None:
    for sentence in evidence.unfinished:
        problems.add("stuck", sentence)
    for event_id in evidence.waiting:
        problems.add("stuck", f"{event_id} still waits in the outbox, for its time, or as deferred.")
    if evidence.left:
        problems.add("stuck", f"{evidence.left} messages in the stream are not settled.")
    for row in evidence.inbox:
        if row.state not in ("processed", "dead"):
            problems.add("stuck", f"{row.event_id} is left {row.state} in the inbox.")


def _starts(evidence: Evidence, problems: Problems) -> None:
    """A fault costs an event one start at most, and never an attempt."""
    for row in evidence.inbox:
        if not 0 <= row.starts - row.attempts <= 1:
            problems.add(
                "attempts",
                f"{row.event_id} has {row.starts} starts for {row.attempts} attempts, and there was one fault.",
            )


def _order(evidence: Evidence, problems: Problems) -> None:
    by_key: dict[str, list[Archived]] = defaultdict(list)
    seen: set[str] = set()
    for row in evidence.archive:
        if row.kind == "event" and row.event_id not in seen:  # a second copy is dropped, wherever it stands
            seen.add(row.event_id)
            by_key[row.key].append(row)
    for key, rows in by_key.items():
        for first, second in pairwise(rows):
            if first.sequence >= second.sequence:
                problems.add(
                    "order",
                    f"{key}: {second.event_id} (#{second.sequence}) overtook {first.event_id} (#{first.sequence}).",
                )
        wanted = [row.event_id for row in rows if row.event_id in evidence.effects]
        found = [event_id for event_id in dict.fromkeys(evidence.effects) if event_id in wanted]
        if wanted != found:
            problems.add("order", f"{key}: published as {wanted}, handled as {found}.")

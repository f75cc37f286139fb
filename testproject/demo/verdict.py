"""The verdict: each promise as a check with what was seen and what was expected. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testproject.demo.counting import Counts
from testproject.demo.orders import Planned
from testproject.demo.story import Faults, Hit


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the verdict. ``id`` is stable; ``seen`` and ``expected`` are numbers or short texts."""

    id: str
    ok: bool
    seen: int | str
    expected: int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """
    What the verdict rests on.

    Attributes:
        counts: From the databases.
        planned: What was to be placed.
        left_in_streams: Messages that nobody has acknowledged.
        kills: Consumers that the operating system says died by SIGKILL.
        restarts: Starts of the broker beyond the first, from its own log.
        drained: Exit statuses of the workers that were asked to stop at the end.
        unfinished: What the demo waited for when its time was up, or who died; ``""`` if neither.
    """

    counts: Counts
    planned: Sequence[Planned]
    faults: Faults
    left_in_streams: int
    kills: int
    restarts: int
    drained: Sequence[int]
    unfinished: str = ""


def rolled_back(planned: Sequence[Planned], counts: Counts) -> int:
    """Orders that were placed and are not in the database."""
    return sum(order.number not in counts.numbers for order in planned)


def judge(evidence: Evidence) -> list[Check]:
    """All promises of the demo, in the order of an event's life."""
    counts, planned = evidence.counts, evidence.planned
    kept = frozenset(order.number for order in planned if order.is_kept)
    twice = sum(bool(order.event_id) for order in planned)
    checks = [
        _equal("committed_orders_exist", len(kept & counts.numbers), len(kept)),
        _equal("rolled_back_orders_are_nowhere", len(counts.numbers - kept) + counts.ghosts, 0),
        _equal("every_order_has_its_event", counts.committed, len(counts.numbers)),
        _equal("every_event_was_delivered", counts.delivered, counts.committed),
        _equal("every_event_has_one_effect", counts.effects, counts.committed - counts.failing),
        _equal("always_failing_is_dead_letter", counts.dead_letters, counts.failing),
        _equal("every_answer_was_published", counts.answer_committed, counts.effects),
        _equal("every_answer_was_delivered", counts.answer_delivered, counts.answer_committed),
        _equal("every_answer_has_its_effect", counts.answer_effects, counts.effects),
        _equal("published_twice", counts.published_twice, twice),
        _at_least("second_copies_were_suppressed", counts.duplicates_suppressed, twice),
        _equal("nothing_lost", counts.lost, 0),
        _equal("nothing_doubled", counts.doubled, 0),
        _equal("no_ghosts", counts.ghosts, 0),
        _equal("outboxes_are_empty", counts.unsent, 0),
        _equal("streams_are_drained", evidence.left_in_streams, 0),
        _equal("workers_ended_cleanly", sum(status == 0 for status in evidence.drained), 4),
        _in_the_middle("consumer_killed_in_the_middle", evidence.faults.consumer, evidence.kills),
        _in_the_middle("broker_restarted_in_the_middle", evidence.faults.broker, evidence.restarts),
    ]
    if evidence.unfinished:
        checks.append(Check(id="finished", ok=False, seen=evidence.unfinished, expected="the end"))
    return checks


def _equal(name: str, seen: int, expected: int) -> Check:
    return Check(id=name, ok=seen == expected, seen=seen, expected=expected)


def _at_least(name: str, seen: int, expected: int) -> Check:
    return Check(id=name, ok=seen >= expected, seen=seen, expected=f"at least {expected}")


def _in_the_middle(name: str, hits: Sequence[Hit], happened: int) -> Check:
    """The fault really happened, and its last try met events on their way."""
    ok = bool(hits) and hits[-1].in_the_middle and happened == len(hits)
    return Check(id=name, ok=ok, seen=str(hits[-1]) if hits else "never", expected="20-80%, some in flight")

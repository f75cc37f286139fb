"""
The receiving side against its reference: copies, handlers, deaths, dead letters, redrive, in any order.

Everything is real but the broker: a copy is handed over as a feed does it, ``execute()`` and the operator's
functions do the rest, and after each step every table is what the reference says.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from django.db import DatabaseError, InterfaceError, OperationalError, transaction
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import jetbridge
from jetbridge.conf import get_settings
from jetbridge.consumer import routing
from jetbridge.consumer.execute import Job, Settled, Settlement, Wait, execute
from jetbridge.dead_letters import discard, redrive
from jetbridge.dead_letters import store as dead_letters
from jetbridge.dead_letters.store import DeadLetterSummary, Selection
from jetbridge.deferred import store as deferred
from jetbridge.deferred.store import DeferredRecord
from jetbridge.inbox import store as inbox
from jetbridge.jetstream.incoming import Incoming
from jetbridge.models import Inbox
from jetbridge.models.clock import WallClock
from jetbridge.registry import registry
from testproject.orders.models import Order
from tests.model.acts import EXAMPLES, LIMIT_S, MANY, Act, acts, profile
from tests.model.reference import (
    INBOX_ARROWS,
    LETTER_ARROWS,
    MAX_ATTEMPTS,
    MAX_STARTS,
    Ending,
    Identity,
    Reference,
)
from tests.model.tables import Interrupted, Trouble, empty, receiving, silence
from tests.worlds import body, no_handlers

EVENTS = {"e1": "order.placed", "u1": "order.unknown"}
SEQUENCES = {event_id: number for number, event_id in enumerate(EVENTS, start=1)}
HANDLERS = {"t.twice": "order.placed", "t.once": "order.placed", "t.late": "order.unknown"}
LONG_S = 600

seen: Counter[tuple[str, str, str]] = Counter()


class Permanent(Exception):
    pass


class Transient(Exception):
    pass


ERRORS: dict[Ending, Exception] = {
    Ending.FAILS: ValueError("no"),
    Ending.ASKS_FOR_RETRY: jetbridge.Retry(delay=LONG_S),
    Ending.SNOOZES: jetbridge.Snooze(LONG_S),
    Ending.MEETS_TRANSIENT: Transient("not now"),
    Ending.REJECTS: jetbridge.Reject("never"),
    Ending.MEETS_PERMANENT: Permanent("never"),
    Ending.MEETS_OUTAGE: OperationalError("database is locked"),
}

endings = st.sampled_from(Ending)
either = st.sampled_from([0, 1])
# The n-th statement of an act fails, or the process dies there; 0: neither.
TROUBLE = {"at": st.one_of(st.just(0), st.integers(1, 14)), "is_death": st.booleans()}
COPY = {"event_id": st.sampled_from(sorted(EVENTS)), "handler": either, "ending": endings, "process": either}

# What may happen, each as often as it stands here. One rule for all: hypothesis leaves out some rules of each
# example, and one in which nothing fails, or nothing is redriven, tells little.
ACTS = acts(
    a_copy_arrives=COPY | TROUBLE | {"delivered": st.sampled_from([1, 2]), "alone": st.booleans()},
    many_copies_arrive=COPY | {"count": st.integers(2, 8)},
    a_stored_message_is_dispatched=TROUBLE
    | {"which": st.integers(0, 5), "ending": endings, "process": either, "alone": st.booleans()},
    a_process_dies={"process": either},
    a_process_drains={"process": either},
    time_passes={},
    a_deploy_adds_or_removes_the_late_handler={},
    an_operator_redrives_one=TROUBLE | {"which": st.integers(0, 5)},
    an_operator_redrives_all={},
    an_operator_discards={"which": st.integers(0, 5)},
    often=("a_copy_arrives", "a_copy_arrives", "a_stored_message_is_dispatched", "an_operator_redrives_one"),
)


def message(event_id: str, delivered: int) -> Incoming:
    """A copy off the wire."""
    return Incoming(
        subject="billing.sync.shop",
        reply="",
        headers={},
        body=body(event_id, EVENTS[event_id]),
        stream="jetbridge-billing",
        consumer="shop-workers",
        sequence=SEQUENCES[event_id],
        consumer_sequence=1,
        delivered=delivered,
        stored_ns=1,
        pending=0,
    )


def named(settlement: Settlement) -> str:
    """As the reference says it."""
    match settlement:
        case Settled(how=how):
            return how
        case Wait():
            return "wait"
        case _:
            return "not alone"


class Receiving(RuleBasedStateMachine):
    """Two processes, two handlers of one event, one more that is not written yet."""

    def __init__(self) -> None:
        super().__init__()
        self.reference = Reference()
        self.names = ["p0", "p1"]
        self.born = 2
        self.taken: list[DeferredRecord] = []
        self.ending = Ending.COMMITS
        self.trouble = Trouble(0, Interrupted())
        self.runs = 0
        self.found = Reference()
        self.is_sound = False

    @initialize()
    def begin(self) -> None:
        empty()
        registry._handlers.clear()
        for name in ("t.twice", "t.once"):
            self.declare(name)

    def declare(self, name: str) -> None:
        jetbridge.handler(
            HANDLERS[name],
            name=name,
            max_attempts=MAX_ATTEMPTS[name],
            permanent=(Permanent,),
            transient=(Transient,),
        )(lambda event: self.handle(name, event))

    def handle(self, name: str, event: jetbridge.Delivery) -> None:
        """An effect, an answer, and the end that was chosen."""
        self.runs += 1
        Order.objects.create(number=f"{name}/{event.event_id}", total=1)
        jetbridge.publish("order.answered", {}, key=f"{name}/{event.event_id}")
        if self.ending is Ending.LEAVES_ROLLBACK:
            transaction.set_rollback(True)
        elif self.ending is Ending.DIES:
            self.trouble.die()
        elif self.ending in ERRORS:
            raise ERRORS[self.ending]

    @rule(act=ACTS)
    def next(self, act: Act) -> None:
        name, given = act
        getattr(self, name)(**given)

    # --- copies ----------------------------------------------------------------------------------

    def a_copy_arrives(
        self,
        event_id: str,
        handler: int,
        delivered: int,
        ending: Ending,
        process: int,
        alone: bool,
        at: int,
        is_death: bool,
    ) -> None:
        jobs = routing.jobs_of(message(event_id, delivered), registry, get_settings())
        self.run_job(jobs[handler % len(jobs)], ending, process, alone=alone, at=at, is_death=is_death)

    def many_copies_arrive(
        self, event_id: str, handler: int, count: int, ending: Ending, process: int
    ) -> None:
        for number in range(count):
            jobs = routing.jobs_of(message(event_id, 1 + number % 2), registry, get_settings())
            self.run_job(jobs[handler % len(jobs)], ending, process)
            self.holds()

    def a_stored_message_is_dispatched(
        self, which: int, ending: Ending, process: int, alone: bool, at: int, is_death: bool
    ) -> None:
        """Also one that a process took long ago, before others did anything with it."""
        due = deferred.due(sources=["billing"], without=(), limit=100, using="default")
        assert {(one.handler, one.event_id) for one in due} == self.reference.deferred
        assert [one.sequence for one in due] == sorted(one.sequence for one in due)
        self.taken = [*due, *self.taken][:6]
        if not self.taken:
            return
        record = self.taken[which % len(self.taken)]
        job = routing.job_of_deferred(record, registry, get_settings(), using="default")
        self.run_job(job, ending, process, alone=alone, at=at, is_death=is_death)

    def run_job(
        self,
        job: Job,
        ending: Ending,
        process: int,
        *,
        alone: bool = True,
        at: int = 0,
        is_death: bool = False,
    ) -> None:
        one, owner = (job.handler_name, job.received.event_id), self.names[process]
        before = copy.deepcopy(self.reference)
        error: BaseException = Interrupted() if is_death else OperationalError("database is locked")
        self.ending, self.runs = ending, 0
        said = ""
        with Trouble(at, error) as self.trouble:
            try:
                said = named(execute(job, get_settings(), owner=owner, alone=alone))
            except Interrupted:
                said = "died"
            except (DatabaseError, InterfaceError):
                said = "nothing"
        assert self.runs <= 1
        if not self.trouble.happened or ending is Ending.DIES:
            expected = self.expect(self.reference, job, ending, owner, alone)
            if not (self.trouble.happened and at):
                assert said == expected, (said, expected)
        if self.trouble.happened and at:
            self.reference = self.one_of(self.outcomes(before, job, one, ending, owner, alone))
        if said == "died":
            self.die(process)

    def expect(self, reference: Reference, job: Job, ending: Ending, owner: str, alone: bool) -> str:
        one = (job.handler_name, job.received.event_id)
        if job.handler is None:
            return reference.nobody_handles(one, redriven=job.redriven)
        return reference.attempt(
            one, ending, redriven=job.redriven, suspect=job.suspect, owner=owner, alone=alone
        )

    def outcomes(
        self, before: Reference, job: Job, one: Identity, ending: Ending, owner: str, alone: bool
    ) -> Iterator[Reference]:
        """What may stand in the tables after trouble at some statement: a prefix of the act's commits."""
        yield before
        for possible in (Ending.DIES, Ending.MEETS_OUTAGE, ending):
            reference = copy.deepcopy(before)
            self.expect(reference, job, possible, owner, alone)
            yield reference

    def one_of(self, candidates: Iterator[Reference]) -> Reference:
        tried = []
        for candidate in candidates:
            found = receiving({one: row.is_due for one, row in candidate.inbox.items()})
            if found == candidate:
                return candidate
            tried.append(candidate)
        raise AssertionError(f"after trouble: {found}\nis none of\n" + "\n".join(map(str, tried)))

    # --- processes -------------------------------------------------------------------------------

    def a_process_dies(self, process: int) -> None:
        self.die(process)

    def die(self, process: int) -> None:
        self.names[process] = f"p{self.born}"
        self.born += 1

    def a_process_drains(self, process: int) -> None:
        assert inbox.give_back(self.names[process], using="default") == 0
        self.reference.give_back(self.names[process])
        self.die(process)

    def time_passes(self) -> None:
        Inbox.objects.filter(next_attempt_at__isnull=False).update(next_attempt_at=WallClock(-1))
        self.reference.time_passes()

    # --- deploys and operators -------------------------------------------------------------------

    def a_deploy_adds_or_removes_the_late_handler(self) -> None:
        if registry.get("t.late") is None:
            self.declare("t.late")
        else:
            registry.remove("t.late")

    def letters(self) -> list[DeadLetterSummary]:
        return dead_letters.select(Selection(all=True), states=None, using="default")

    def wanting(self, event_id: str) -> list[str]:
        return [one.name for one in registry.matching(EVENTS[event_id], "billing")]

    def an_operator_redrives_one(self, which: int, at: int, is_death: bool) -> None:
        letters = self.letters()
        if not letters:
            return
        letter = letters[which % len(letters)]
        one = (letter.handler, letter.event_id)
        after = copy.deepcopy(self.reference)
        expected = after.redrive(one, self.wanting(letter.event_id))
        rehearsed = redrive.rehearse([letter], settings=get_settings(), using="default")
        assert bool(rehearsed.ids) is expected
        error: BaseException = Interrupted() if is_death else OperationalError("database is locked")
        with Trouble(at, error) as trouble:
            try:
                acted = redrive.redrive([letter], by="o", settings=get_settings(), using="default")
                assert bool(acted.ids) is expected
                assert [one.why for one in acted.skipped] == [one.why for one in rehearsed.skipped]
            except (Interrupted, OperationalError):
                assert trouble.happened
        self.reference = (
            self.one_of(iter([self.reference, after])) if trouble.happened and expected else after
        )

    def an_operator_redrives_all(self) -> None:
        letters = self.letters()
        acted = redrive.redrive(letters[::-1], by="o", settings=get_settings(), using="default")
        done = set(acted.ids)
        for letter in sorted(letters, key=lambda one: (one.sequence, one.id)):
            one = (letter.handler, letter.event_id)
            assert self.reference.redrive(one, self.wanting(letter.event_id)) is (letter.id in done)

    def an_operator_discards(self, which: int) -> None:
        letters = self.letters()
        if not letters:
            return
        letter = letters[which % len(letters)]
        acted = discard.discard([letter], by="o", note="no", using="default")
        assert bool(acted.ids) is self.reference.discard((letter.handler, letter.event_id))

    # --- what always holds -----------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        before, self.is_sound = self.found, False
        self.found = receiving({one: row.is_due for one, row in self.reference.inbox.items()})
        assert self.found == self.reference
        self.nothing_is_doubled_or_forgotten()
        self.every_change_is_drawn(before)
        self.is_sound = True

    def nothing_is_doubled_or_forgotten(self) -> None:
        """Of each (event, handler) one effect, or a dead letter, or it is pending where something will run it."""
        found = self.found
        assert set(found.effects.values()) <= {1}
        assert {one for one, row in found.inbox.items() if row.state == "processed"} == set(found.effects)
        for one, row in found.inbox.items():
            letter = found.letters.get(one)
            if row.state == "dead":
                assert letter is not None
                assert not one[0] or letter.state in ("open", "discarded")
            elif row.state != "processed" and row.generation:
                assert letter is not None
                assert letter.state == "redriving"
                assert one in found.deferred, "a redriven event that no stored message will ever run"
            assert row.attempts <= MAX_ATTEMPTS.get(one[0], 0)
            if row.state != "dead":  # given up for want of its handler, it counts no attempts
                assert row.starts - row.attempts <= MAX_STARTS + (row.state == "running")

    def every_change_is_drawn(self, before: Reference) -> None:
        """In the docstrings of the models."""
        rows: list[tuple[str, Mapping[str, set[str]], Mapping[Identity, Any], Mapping[Identity, Any]]] = [
            ("inbox", INBOX_ARROWS, before.inbox, self.found.inbox),
            ("letter", LETTER_ARROWS, before.letters, self.found.letters),
        ]
        for table, arrows, then, now in rows:
            assert then.keys() <= now.keys(), "a row is gone"
            for one, row in now.items():
                was = then[one].state if one in then else "absent"
                if was != row.state:
                    assert row.state in arrows[was], f"{table} {one}: {was} → {row.state}"
                    seen[table, was, row.state] += 1

    def teardown(self) -> None:
        """Whatever has happened: every handler is there and works from now on, and all comes to its end."""
        if not self.is_sound:
            return
        if registry.get("t.late") is None:
            self.declare("t.late")
        # A dead letter of a handler may have to wait for that of the same event without one: a round for each.
        for _ in range(3):
            self.time_passes()
            for event_id in EVENTS:
                for handler in (0, 1):
                    self.a_copy_arrives(event_id, handler, 2, Ending.COMMITS, 0, True, 0, False)
                    self.holds()
            while self.reference.deferred:
                self.taken = []
                self.a_stored_message_is_dispatched(0, Ending.COMMITS, 0, True, 0, False)
                self.holds()
            assert {row.state for row in self.found.inbox.values()} <= {"processed", "dead"}
            self.an_operator_redrives_all()
            self.holds()
        assert {letter.state for letter in self.found.letters.values()} <= {"redriven", "discarded"}


@pytest.fixture
def shop(settings: Any) -> Any:
    settings.JETBRIDGE = {
        "APP_NAME": "shop",
        "DESTINATIONS": ["billing"],
        "SOURCES": ["billing"],
        "MAX_STARTS": MAX_STARTS,
        "BACKOFF": [LONG_S],
    }
    return settings


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.django_db(transaction=True)
def test_the_receiving_side_is_its_reference(shop):
    """
    Red if a redrive keeps the attempts or forgets the generation, if it or a dead letter is more than one
    transaction, if a snooze keeps the start, a duplicate is not counted, a dead letter leaves its stored message, a
    success leaves its dead letter, an event with a dead process runs beside others, or a first delivery runs over it.
    """
    with no_handlers(), silence():
        run_state_machine_as_test(Receiving, settings=profile(examples=30, steps=40))
    if EXAMPLES >= MANY:
        drawn = {"inbox": INBOX_ARROWS, "letter": LETTER_ARROWS}
        assert seen.keys() == {
            (table, was, now)
            for table, arrows in drawn.items()
            for was, ends in arrows.items()
            for now in ends
        }

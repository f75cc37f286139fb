"""Shared leases: fair parts that settle, no lease in two hands, none in the hands of who cannot work."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import combinations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from jetbridge.leases import store
from jetbridge.leases.holder import SOON_S, LeaseHolder
from jetbridge.leases.shares import share
from jetbridge.models import Lease, Worker
from jetbridge.models.clock import WallClock
from jetbridge.runtime.threads import Threads

pytestmark = pytest.mark.django_db(transaction=True)
NAMES = [f"t/{n:02d}" for n in range(8)]
TTL_S = 30.0


class Member:
    """A process as the tables see it: its holder, its beats, and steps of work that take a while."""

    def __init__(self, name: str, group: Group) -> None:
        self.name, self.works, self.group = name, True, group
        self.holder = LeaseHolder(
            NAMES,
            owner=name,
            ttl_s=TTL_S,
            threads=group.threads,
            using="default",
            working=lambda: self.works,
            role="t",
            clock=lambda: group.now,
        )
        self.holder.on_change = self.beat
        self.step: AbstractContextManager[frozenset[str]] | None = None
        self.used = frozenset[str]()

    def beat(self) -> None:
        store.beat(
            self.name, role="t", host="h", pid=1, version="1", info=self.holder.describe(), using="default"
        )

    def tick(self) -> float:
        # The statements go to a pool of their own, the beat from here: never from inside the loop.
        changed: list[bool] = []
        self.holder.on_change = lambda: changed.append(True)
        pause_s = asyncio.run(self.holder.tick())
        if changed:
            self.beat()
        return pause_s

    def begin(self) -> frozenset[str]:
        self.step = self.holder.in_hand()
        self.used = self.step.__enter__()
        return self.used

    def finish(self) -> None:
        assert self.step is not None
        self.step.__exit__(None, None, None)
        self.step, self.used = None, frozenset()

    def acts_on(self) -> frozenset[str]:
        return (self.holder.held() | self.used) if self.holder.remaining_s() else frozenset()

    def die(self) -> None:
        """SIGKILL, and its term is over."""
        self.group.members.remove(self)
        Worker.objects.filter(id=self.name).update(beat_at=WallClock(-TTL_S))
        Lease.objects.filter(owner=self.name).update(expires_at=WallClock())

    def end(self) -> None:
        """SIGTERM: its page is done, the leases are back, the row is gone."""
        self.group.members.remove(self)
        if self.step:
            self.finish()
        asyncio.run(self.holder.release())
        store.forget(self.name, older_than_s=3_600, using="default")


class Group:
    def __init__(self, threads: Threads) -> None:
        self.threads, self.now, self.members = threads, 1_000.0, list[Member]()

    def join(self, name: str) -> Member:
        self.members.append(Member(name, self))
        return self.members[-1]

    def look(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            for member in self.members:
                member.tick()
                assert self.nothing_is_shared()

    def nothing_is_shared(self) -> bool:
        for one, other in combinations(self.members, 2):
            assert not one.acts_on() & other.acts_on(), f"{one.name} and {other.name}"
        return True

    def counts(self) -> list[int]:
        return sorted(len(member.holder.held()) for member in self.members)


@pytest.fixture
def group() -> Iterator[Group]:
    threads = Threads("test", 1)
    yield Group(threads)
    threads.close()


# --- the parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [1, 2, 3, 4, 5, 7, 10, 63, 64, 65, 100])
def test_shares_add_up_and_differ_by_one_at_most(members):
    names = [f"relay:{n}" for n in range(members)]
    shares = [share(name, set(names) - {name}, 64) for name in names]

    assert sum(shares) == 64
    assert max(shares) - min(shares) <= 1
    assert shares == [share(name, names, 64) for name in names], "whether it finds itself listed or not"


def test_shares_follow_those_who_come_end_and_die(group):
    """Two looks are enough after each change, and then nothing moves any more. Red if the first wants all for ever."""
    first = group.join("a")
    group.look()
    assert group.counts() == [8]
    for name, expected in (("b", [4, 4]), ("c", [2, 3, 3]), ("d", [2, 2, 2, 2]), ("e", [1, 1, 2, 2, 2])):
        group.join(name)
        group.look(3)
        assert group.counts() == expected

    group.members[1].end()
    group.look()
    assert group.counts() == [2, 2, 2, 2]
    group.members[1].die()
    group.look(2)
    assert group.counts() == [2, 3, 3]

    epochs = dict(Lease.objects.values_list("name", "epoch"))
    group.look(5)
    assert dict(Lease.objects.values_list("name", "epoch")) == epochs
    assert NAMES[0] in first.holder.held(), "the oldest keeps what it has"


def test_a_surplus_lease_in_hand_is_handed_back_after_the_step(group):
    """
    It leaves held() at once, so nothing new begins with it; the table gives it away only when the step has
    ended, and renews it until then. Red if _hand_back() does not ask what is in hand.
    """
    first, second = group.join("a"), group.join("b")
    first.tick()
    assert first.begin() == set(NAMES)
    second.tick()

    assert first.tick() == SOON_S
    assert (len(first.holder.held()), first.holder.remaining_s() > 0) == (4, True)
    assert second.tick() > 0
    assert second.holder.held() == frozenset()
    group.now += TTL_S / 3
    Lease.objects.update(expires_at=WallClock(1))
    first.tick()
    assert Lease.objects.filter(owner="a", expires_at__gt=WallClock(TTL_S / 2)).count() == 8

    first.finish()
    group.look(2)
    assert group.counts() == [4, 4]


def test_a_lease_on_its_way_out_stays_when_the_other_one_dies_first(group):
    """Nothing is handed back to nobody."""
    first, second = group.join("a"), group.join("b")
    first.tick()
    first.begin()
    second.tick()
    first.tick()
    second.die()
    first.tick()
    first.finish()
    first.tick()

    assert len(first.holder.held()) == 8
    assert set(Lease.objects.values_list("epoch", flat=True)) == {1}


# --- who counts ----------------------------------------------------------------------------------


def test_who_never_worked_takes_nothing_and_does_not_count(group):
    """A relay with a wrong address of its broker, restarted again and again, must not stop a part of the keys."""
    deaf = group.join("a")
    deaf.works = False
    group.look()
    assert deaf.holder.held() == frozenset()
    group.join("b")
    group.look(2)

    assert group.counts() == [0, 8]
    assert store.members("t", using="default") == {"b"}


def test_who_cannot_work_for_a_term_hands_its_part_to_the_others(group):
    """Cut off from the broker, alive for the database. Red if it goes on counting itself: its part would lie idle."""
    first = group.join("a")
    group.join("b")
    group.look(3)
    assert group.counts() == [4, 4]

    first.works = False
    group.now += TTL_S / 2
    group.look(2)
    assert group.counts() == [4, 4]
    group.now += TTL_S / 2
    group.look(2)
    assert group.counts() == [0, 8]

    first.works = True
    group.look(3)
    assert group.counts() == [4, 4]


def test_a_step_that_is_stuck_is_not_renewed_for_ever(group):
    """
    The step may be in the middle of anything, so its leases are not handed back: they run out. Red if a
    holder renews as long as it can, or releases what is in use.
    """
    stuck, other = group.join("a"), group.join("b")
    group.look(3)
    mine = stuck.begin()
    stuck.works = False
    group.now += TTL_S
    before = dict(Lease.objects.filter(owner="a").values_list("name", "expires_at"))
    group.look(3)

    assert (stuck.holder.held(), stuck.holder.remaining_s()) == (frozenset(), 0.0)
    assert dict(Lease.objects.filter(owner="a").values_list("name", "expires_at")) == before
    Lease.objects.filter(owner="a").update(expires_at=WallClock())
    group.look()
    assert other.holder.held() >= mine


def test_a_member_counts_as_long_as_it_says_by_the_databases_clock():
    for name, role, counts_for_s, age_s in [
        ("fresh", "t", 10.0, 5),
        ("old", "t", 10.0, 11),
        ("idle", "t", 0.0, 0),
        ("other", "x", 10.0, 0),
    ]:
        info = {"counts_for_s": counts_for_s}
        store.beat(name, role=role, host="h", pid=1, version="1", info=info, using="default")
        Worker.objects.filter(id=name).update(beat_at=WallClock(-age_s))
    store.beat("before", role="t", host="h", pid=1, version="0", info={}, using="default")

    assert store.members("t", using="default") == {"fresh"}


# --- between two looks ---------------------------------------------------------------------------


def test_a_step_ends_when_a_lease_in_hand_was_lost_and_won_back(group):
    """What it has read is another's past. Red if remaining_s() looks at the present only."""
    member = group.join("a")
    member.tick()
    member.begin()
    Lease.objects.filter(name=NAMES[0]).update(owner="thief", expires_at=WallClock())
    group.now += TTL_S / 3
    member.tick()
    assert Lease.objects.get(name=NAMES[0]).owner == "a"
    assert member.holder.remaining_s() == 0.0

    member.finish()
    member.begin()
    assert member.holder.remaining_s() > 0


def test_a_lease_taken_by_a_statement_whose_answer_got_lost_is_found(group):
    """Red if only known leases are renewed: this one would lie idle for a term, ours and unknown."""
    member = group.join("a")
    store.ensure(NAMES, using="default")
    store.acquire(NAMES[:3], owner="a", ttl_s=TTL_S, limit=3, using="default")
    store.acquire(NAMES[3:], owner="b", ttl_s=TTL_S, limit=5, using="default")

    member.tick()

    assert (member.holder.held(), member.holder.acquisitions) == (frozenset(NAMES[:3]), 1)


def test_the_databases_clock_steps_forward(group):
    """All leases look expired while their holder may act: at its next renewal it knows, and stops."""
    first, second = group.join("a"), group.join("b")
    first.tick()
    first.begin()
    Lease.objects.update(expires_at=WallClock(-3_600))
    second.tick()
    second.tick()
    taken = second.holder.held()
    assert len(taken) == 4

    group.now += TTL_S / 3
    first.tick()

    assert (first.holder.held() & taken, first.holder.remaining_s()) == (frozenset(), 0.0)
    first.finish()
    group.look(2)
    assert group.counts() == [4, 4]


def test_the_databases_clock_steps_back(group):
    """Terms look an hour long: the next renewal makes them right again, and a released lease is free at once."""
    first, second = group.join("a"), group.join("b")
    first.tick()
    Lease.objects.update(expires_at=WallClock(3_600))
    Worker.objects.update(beat_at=WallClock(3_600))
    group.now += TTL_S / 3
    first.tick()
    assert not Lease.objects.filter(expires_at__gt=WallClock(TTL_S)).exists()

    first.end()
    second.tick()
    assert len(second.holder.held()) == 8


def test_the_wall_clock_of_a_process_does_not_matter(group, monkeypatch):
    """Red if a term is counted with time.time()."""
    first, second = group.join("a"), group.join("b")
    for leap_s in (86_400.0, -86_400.0):
        now = time.time() + leap_s
        monkeypatch.setattr(time, "time", lambda now=now: now)
        group.look(2)
        assert (group.counts(), first.holder.remaining_s()) == ([4, 4], TTL_S * 2 / 3)
    assert second.holder.held()


@pytest.mark.postgres
def test_a_takeover_is_one_statement():
    """Stopped in the middle of a transaction, a process would keep its locks, which every other one skips."""
    store.ensure(NAMES, using="default")
    with CaptureQueriesContext(connection) as queries:
        taken = store.acquire(NAMES, owner="a", ttl_s=TTL_S, limit=3, using="default")

    assert taken == set(NAMES[:3])
    assert [query["sql"].split()[0] for query in queries] == ["SELECT", "--"]


@pytest.mark.parametrize("seed", range(3))
def test_no_lease_is_ever_in_two_hands(group, seed):
    """Random joins, ends, deaths, troubles and steps; then calm, and the parts are fair. Red without ``_in_hand``."""
    dice = random.Random(seed)
    names = iter(range(1_000))
    for _ in range(200):
        members = group.members
        what = dice.choice(["join", "join", "end", "die", "trouble", *["tick"] * 12, *["step"] * 3])
        if what == "join" and len(members) < 5:
            group.join(f"m{dice.randrange(100)}-{next(names)}")
        elif members:
            one = dice.choice(members)
            match what:
                case "tick":
                    one.tick()
                case "step":
                    one.begin() if one.step is None else one.finish()
                case "trouble":
                    one.works = not one.works
                    group.now += TTL_S / 3
                case "end" | "die" if len(members) > 1:
                    one.end() if what == "end" else one.die()
        assert group.nothing_is_shared()
        # The clocks of the holders and of the database go together.
        if what == "trouble":
            living = [member.name for member in group.members]
            Lease.objects.filter(owner__in=living).update(expires_at=WallClock(TTL_S))

    for member in group.members:
        member.works = True
        if member.step:
            member.finish()
    group.now += TTL_S / 3
    group.look(4)
    fair = [share(str(n), list(map(str, range(len(group.members)))), 8) for n in range(len(group.members))]
    assert group.counts() == sorted(fair)

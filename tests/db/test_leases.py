"""Leases: one owner by the database's clock, acting ends at two thirds by the holder's own, freeing is immediate."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from django.db import connection, connections

from jetbridge.leases import store
from jetbridge.leases.heartbeat import Heartbeat
from jetbridge.leases.holder import LeaseHolder
from jetbridge.models import Lease, Worker
from jetbridge.models.clock import WallClock
from jetbridge.runtime.threads import Threads
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)
NAMES = [f"t/{n:02d}" for n in range(8)]
TTL_S = 30.0


def acquire(owner: str, ttl_s: float = TTL_S, limit: int = 100) -> set[str]:
    return store.acquire(NAMES, owner=owner, ttl_s=ttl_s, limit=limit, using="default")


def renew(owner: str, ttl_s: float = TTL_S) -> set[str]:
    return store.renew(NAMES, owner=owner, ttl_s=ttl_s, using="default")


@pytest.fixture(autouse=True)
def _rows() -> None:
    store.ensure(NAMES, using="default")


def epochs() -> set[int]:
    return set(Lease.objects.values_list("epoch", flat=True))


def expire() -> None:
    Lease.objects.update(expires_at=WallClock())


# --- the table -----------------------------------------------------------------------------------


def test_a_held_lease_is_nobody_elses():
    assert acquire("one") == set(NAMES)
    assert acquire("two") == set()
    assert renew("two") == set()
    assert {lease.owner for lease in store.held(using="default")} == {"one"}


def test_a_takeover_raises_the_epoch_and_a_renewal_keeps_it():
    acquire("one")
    renew("one")
    assert epochs() == {1}
    expire()
    assert acquire("two") == set(NAMES)
    assert epochs() == {2}
    assert renew("one") == set()


def test_an_expired_lease_that_nobody_took_is_still_its_owners():
    acquire("one")
    expire()

    assert renew("one") == set(NAMES)
    assert (epochs(), acquire("two")) == ({1}, set())


def test_a_released_lease_is_free_at_once():
    acquire("one")
    store.release(NAMES[:3], owner="one", using="default")

    assert acquire("two") == set(NAMES[:3])
    assert renew("one") == set(NAMES[3:])


def test_nobody_releases_what_is_anothers():
    acquire("one")

    assert store.release(NAMES, owner="two", using="default") == 0
    assert renew("one") == set(NAMES)


def test_a_limit_is_kept():
    assert len(acquire("one", limit=3)) == 3
    assert len(acquire("two")) == 5


def test_only_the_databases_clock_decides(monkeypatch):
    """A host whose clock is a day ahead takes nothing. Red if a time of Python goes into the statements."""
    import datetime as module

    class Tomorrow(module.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + module.timedelta(days=1)

    acquire("one")
    monkeypatch.setattr("datetime.datetime", Tomorrow)
    monkeypatch.setattr("django.utils.timezone.datetime", Tomorrow)

    assert acquire("two") == set()


def test_terms_shorter_than_a_second_run_out():
    """The clock has fractions. Red with CURRENT_TIMESTAMP on SQLite."""
    acquire("one", ttl_s=0.3)
    assert acquire("two") == set()
    eventually(lambda: acquire("two") == set(NAMES), 2)


def test_rows_are_made_once_and_never_reset():
    acquire("one")
    store.ensure([*NAMES, "t/new"], using="default")

    assert Lease.objects.count() == 9
    assert renew("one") == set(NAMES)


@pytest.mark.parametrize("rounds", [15])
def test_contenders_never_share_and_never_deadlock(rounds):
    """Four at once on leases that have run out: each goes to exactly one, and nobody waits for ever."""
    mistakes: list[str] = []
    barrier = threading.Barrier(4)

    def contend(owner: str) -> None:
        try:
            for _ in range(rounds):
                barrier.wait(20)
                got[owner] = acquire(owner, limit=5)
                barrier.wait(20)
                if owner == "a":
                    flat = [name for names in got.values() for name in names]
                    if len(flat) != len(set(flat)):
                        mistakes.append(f"shared: {got}")
                    for other, names in got.items():
                        if store.renew(names, owner=other, ttl_s=TTL_S, using="default") != names:
                            mistakes.append(f"{other} lost {names}")
                    expire()
                barrier.wait(20)
        except BaseException as error:
            mistakes.append(repr(error))
            barrier.abort()
        finally:
            connections.close_all()

    got: dict[str, set[str]] = {}
    threads = [threading.Thread(target=contend, args=(owner,)) for owner in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert mistakes == []


@pytest.mark.postgres
def test_a_contender_skips_rows_that_another_one_has_locked():
    """It takes the rest and does not wait. Red without SKIP LOCKED."""
    from django.db import transaction

    got: list[set[str]] = []

    def contend() -> None:
        got.append(acquire("two"))
        connections.close_all()

    with transaction.atomic():
        list(Lease.objects.filter(name__in=NAMES[:4]).select_for_update())
        thread = threading.Thread(target=contend)
        thread.start()
        thread.join(10)
    assert got == [set(NAMES[4:])]


# --- the holder ----------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class SlowThreads(Threads):
    """The answer takes a while on the holder's clock: a slow database, a slow network."""

    def __init__(self, clock: Clock, answer_s: float) -> None:
        super().__init__("test", 1)
        self.clock, self.answer_s = clock, answer_s

    async def run(self, function, *args, **kwargs):
        result = await super().run(function, *args, **kwargs)
        self.clock.now += self.answer_s
        return result


@pytest.fixture
def holders():
    """``holders(owner, clock, answer_s, working)`` makes a holder; its threads are closed at the end."""
    made: list[Threads] = []

    def make(
        owner: str, clock: Clock, answer_s: float = 0.0, working: Callable[[], bool] = lambda: True
    ) -> LeaseHolder:
        threads = SlowThreads(clock, answer_s)
        made.append(threads)
        return LeaseHolder(
            NAMES, owner=owner, ttl_s=TTL_S, threads=threads, using="default", working=working, clock=clock
        )

    yield make
    for threads in made:
        threads.close()


def tick(holder: LeaseHolder) -> float:
    return asyncio.run(holder.tick())


def test_a_holder_acts_for_two_thirds_of_the_term(holders):
    clock = Clock()
    holder = holders("one", clock)
    assert holder.held() == frozenset()

    assert tick(holder) == pytest.approx(TTL_S / 3)
    assert holder.held() == frozenset(NAMES)
    clock.now += TTL_S * 2 / 3 - 0.001
    assert holder.held() == frozenset(NAMES)
    assert holder.remaining_s() == pytest.approx(0.001)
    clock.now += 0.002
    assert (holder.held(), holder.remaining_s()) == (frozenset(), 0.0)


def test_the_term_counts_from_before_the_renewal_was_sent(holders):
    """The answer took 12 s: of the 20 s, 8 are left. Red if the clock is read after the answer."""
    clock = Clock()
    holder = holders("one", clock, answer_s=12.0)

    tick(holder)

    assert holder.remaining_s() == pytest.approx(8.0)


def test_an_answer_later_than_two_thirds_is_worth_nothing(holders):
    clock = Clock()
    holder = holders("one", clock, answer_s=TTL_S)

    tick(holder)

    assert holder.held() == frozenset()


def test_a_failed_renewal_changes_nothing(holders):
    """While the database is away the holder acts on what it knows, and not a second longer."""
    clock = Clock()
    holder = holders("one", clock)
    tick(holder)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE jetbridge_lease RENAME TO away")
    try:
        clock.now += TTL_S / 3
        with pytest.raises(Exception, match="jetbridge_lease"):
            tick(holder)
        assert holder.remaining_s() == pytest.approx(TTL_S / 3)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE away RENAME TO jetbridge_lease")


def test_a_holder_that_cannot_work_hands_back_after_a_term(holders):
    """
    Another process may see the broker that this one does not. Working again, it asks again, and soon: red if it
    sleeps a third of the term, which is seconds after the end of an outage.
    """
    clock, works = Clock(), [True]
    holder = holders("one", clock, working=lambda: works[0])
    tick(holder)
    assert len(holder.held()) == 8
    works[0] = False
    clock.now += TTL_S / 2
    tick(holder)
    assert acquire("two") == set()
    clock.now += TTL_S / 2
    tick(holder)

    assert holder.held() == frozenset()
    assert acquire("two", limit=3) == set(NAMES[:3])
    assert tick(holder) <= 0.5
    assert renew("one") == set()
    works[0] = True
    assert tick(holder) == 1.0
    assert holder.held() == frozenset(NAMES[3:])


def test_a_short_trouble_hands_nothing_back(holders):
    clock, works = Clock(), [True]
    holder = holders("one", clock, working=lambda: works[0])
    tick(holder)
    works[0] = False
    clock.now += TTL_S - 1
    tick(holder)
    works[0] = True
    tick(holder)
    works[0] = False
    clock.now += TTL_S / 3
    tick(holder)

    assert len(holder.held()) == 8


def test_release_frees_at_once_and_stops_the_holder_first(holders):
    clock = Clock()
    holder = holders("one", clock)
    tick(holder)

    asyncio.run(holder.release())

    assert holder.held() == frozenset()
    assert acquire("two") == set(NAMES)


def test_a_lost_lease_is_noticed_with_the_next_renewal(holders):
    clock = Clock()
    holder = holders("one", clock)
    tick(holder)
    Lease.objects.filter(name=NAMES[0]).update(owner="two", expires_at=WallClock(60))

    clock.now += TTL_S / 3
    tick(holder)

    assert holder.held() == frozenset(NAMES[1:])


def test_an_emptied_table_is_filled_again(holders):
    """Somebody cleans up under a running process. Red if the rows are only made at the start."""
    clock = Clock()
    holder = holders("one", clock)
    tick(holder)
    Lease.objects.all().delete()

    clock.now += TTL_S / 3
    tick(holder)

    assert (len(holder.held()), Lease.objects.count()) == (8, 8)


# --- the workers' table --------------------------------------------------------------------------


def test_a_heartbeat_keeps_one_row_and_its_end_removes_it():
    threads = Threads("test", 1)
    beat = Heartbeat(
        "me", role="relay", version="1", info=lambda: {"buckets": 3}, threads=threads, using="default"
    )
    Worker.objects.create(id="dead", role="relay", host="h", pid=1, version="1", beat_at=WallClock(-7200))
    Worker.objects.create(id="alive", role="relay", host="h", pid=2, version="1", beat_at=WallClock())
    try:
        asyncio.run(beat.tick())
        first = Worker.objects.get(id="me").beat_at
        asyncio.run(beat.tick())
        row = Worker.objects.get(id="me")
        assert (row.role, row.info, row.beat_at >= first) == ("relay", {"buckets": 3}, True)
        asyncio.run(beat.end())
    finally:
        threads.close()

    assert list(Worker.objects.values_list("id", flat=True)) == ["alive"]

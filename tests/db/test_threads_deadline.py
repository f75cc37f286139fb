"""Deadlines of jetbridge's own threads: what hangs is an outage for its caller, and costs no thread for good."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import DatabaseError, InterfaceError, connection, connections, transaction

from jetbridge.models import Lease
from jetbridge.runtime import sessions
from jetbridge.runtime import threads as threads_module
from jetbridge.runtime.threads import Overdue, Threads
from tests.waiting import aeventually, eventually

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def pool() -> Iterator[Threads]:
    pool = Threads("test", 1, deadline_s=1.0)
    yield pool
    pool.close(wait=False)


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[Threads]:
    """The database gives up after 0.6 s, long before the deadline, however slow the machine."""
    monkeypatch.setattr(sessions, "STATEMENT_SHARE", 0.1)
    pool = Threads("test", 1, deadline_s=6.0)
    yield pool
    pool.close(wait=False)


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("jetbridge-test_")]


def rename() -> int:
    return Lease.objects.filter(name="row").update(owner="renamed")


@contextmanager
def somebody_holds_the_row() -> Iterator[None]:
    """A lock for as long as the block lasts, on a session of a bystander."""
    Lease.objects.create(name="row", owner="", expires_at="2026-01-01T00:00:00Z")
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            Lease.objects.filter(name="row").update(owner="bystander")
            held.set()
            assert over.wait(30)
        connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    try:
        yield
    finally:
        over.set()
        thread.join(10)


def test_a_job_that_hangs_is_an_outage_for_its_caller_and_the_next_one_runs(pool):
    """User code in a signal, a deadlock of ours: no session to cut helps there. Red without a deadline."""
    go = threading.Event()

    async def main() -> None:
        with pytest.raises(Overdue, match=r"wait has not ended within 1 s"):
            await pool.run(go.wait)
        assert issubclass(Overdue, InterfaceError)  # what every caller takes for an outage
        assert await pool.run(Lease.objects.count) == 0

    try:
        asyncio.run(main())
    finally:
        go.set()
    eventually(lambda: len(ours()) == 1)  # the one that hung has ended, and has not taken the next job


def test_jobs_behind_one_that_hangs_are_run_after_it(pool):
    """Each has its own deadline, counted from its start."""
    go = threading.Event()

    async def main() -> None:
        hanging = asyncio.create_task(pool.run(go.wait))
        await aeventually(lambda: pool._workers[0]._job is not None)
        assert await asyncio.gather(*(pool.run(Lease.objects.count) for _ in range(3))) == [0, 0, 0]
        with pytest.raises(Overdue):
            await hanging

    try:
        asyncio.run(main())
    finally:
        go.set()


def test_threads_that_never_come_back_are_not_replaced_without_end(pool, monkeypatch):
    """So many, and no more: then the pool refuses, says so, and recovers when one returns."""
    monkeypatch.setattr(threads_module, "LOST_AT_MOST", 2)
    pool._deadline_s = 0.1
    go = threading.Event()

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(Overdue, match="has not ended"):
                await pool.run(go.wait)
        assert pool.are_lost()
        with pytest.raises(Overdue, match="2 threads of 'test' hang"):
            await pool.run(Lease.objects.count)
        assert len(ours()) == 2
        go.set()
        await aeventually(lambda: not pool.are_lost())
        assert await pool.run(Lease.objects.count) == 0

    asyncio.run(main())


def test_a_caller_that_is_cancelled_in_the_queue_is_not_served(pool):
    go, served = threading.Event(), list[int]()

    async def main() -> None:
        first = asyncio.create_task(pool.run(go.wait, 0.5))
        await aeventually(lambda: pool._workers[0]._job is not None)
        second = asyncio.create_task(pool.run(served.append, 1))
        await asyncio.sleep(0)
        second.cancel()
        await first
        await pool.run(int)

    asyncio.run(main())
    assert served == []


@pytest.mark.postgres
def test_a_lock_that_is_held_for_ever_costs_a_statement(limited):
    """The server ends it first, so the session stays, and no backend waits on. Red without limit_this_thread()."""

    def backend() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    async def main() -> None:
        before = await limited.run(backend)
        with pytest.raises(DatabaseError, match="statement timeout"):
            await limited.run(rename)
        assert await limited.run(backend) == before

    with somebody_holds_the_row():
        asyncio.run(main())


@pytest.mark.postgres
def test_a_session_that_others_use_too_is_not_limited(pool, monkeypatch):
    """Behind a pooler a limit of ours would end the project's own long statements; there the deadline cuts."""
    monkeypatch.setitem(connections["default"].settings_dict, "DISABLE_SERVER_SIDE_CURSORS", True)

    async def main() -> None:
        with pytest.raises(Overdue):
            await pool.run(rename)
        assert await pool.run(Lease.objects.count) == 1

    with somebody_holds_the_row():
        asyncio.run(main())
        eventually(lambda: len(ours()) == 1)  # the cut session let the thread go


@pytest.mark.postgres
def test_a_transaction_of_a_stopped_process_is_ended(limited):
    """What it has locked is free for the others: it may be the lease of every bucket."""

    def stopped_in_the_middle() -> None:
        with transaction.atomic():
            Lease.objects.create(name="row", owner="me", expires_at="2026-01-01T00:00:00Z")
            threading.Event().wait(1.0)  # SIGSTOP, as the server sees it
            Lease.objects.count()

    async def main() -> None:
        with pytest.raises(DatabaseError):
            await limited.run(stopped_in_the_middle)
        assert await limited.run(Lease.objects.count) == 0

    asyncio.run(main())


@pytest.mark.sqlite
def test_a_database_that_is_locked_for_ever_is_an_outage(pool):
    """SQLite's own time-out ends the wait in the thread that was left behind."""

    async def main() -> None:
        with pytest.raises(Overdue):
            await pool.run(rename)

    with somebody_holds_the_row():
        asyncio.run(main())
    eventually(lambda: len(ours()) == 1, 25)
    assert Lease.objects.get().owner in ("bystander", "renamed")

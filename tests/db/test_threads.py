"""The pool between loop and database: connections that last, broken ones replaced, no process kept alive."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import OperationalError, connection, connections, transaction

from jetbridge.models import Lease
from jetbridge.runtime.threads import Threads, to_sync
from tests.waiting import aeventually

pytestmark = pytest.mark.django_db(transaction=True)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pool() -> Iterator[Threads]:
    threads = Threads("test", 1)
    yield threads
    threads.close()


def identity() -> int:
    """Which connection this thread has."""
    connection.ensure_connection()
    return id(connection.connection)


def test_a_thread_keeps_its_connection(pool):
    """One per thread, not one per job. Red with close_old_connections() and the default CONN_MAX_AGE."""

    async def main() -> list[int]:
        return [await pool.run(identity) for _ in range(3)]

    assert len(set(asyncio.run(main()))) == 1


def test_results_errors_and_context_come_through(pool):
    name = contextvars.ContextVar("name", default="")

    def fail() -> None:
        raise LookupError("in the thread")

    async def main() -> None:
        name.set("here")
        assert await pool.run(name.get) == "here"
        assert await pool.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(LookupError, match="in the thread"):
            await pool.run(fail)
        assert await pool.run(threading.get_ident) != threading.get_ident()

    asyncio.run(main())


@pytest.mark.postgres
def test_a_connection_that_broke_is_replaced(pool):
    """The next job works, without a job lost in between. Red without _replace_broken_connections."""

    def die() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    async def main() -> None:
        before = await pool.run(identity)
        with pytest.raises(OperationalError):
            await pool.run(die)
        assert await pool.run(Lease.objects.count) == 0
        assert await pool.run(identity) != before

    asyncio.run(main())


@pytest.mark.postgres
def test_a_connection_that_died_between_two_jobs_costs_nothing(pool):
    """
    A restarted server. Red without has_ended(): each thread has such a session, and the first job on each fails; in
    a consumer the events wait a second for each of them after the end of the outage.
    """

    def pid() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    async def main() -> None:
        backend = await pool.run(pid)
        assert await pool.run(pid) == backend
        with connection.cursor() as cursor:
            # The second argument: wait until it has ended.
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])
            assert cursor.fetchone() == (True,)
        assert await pool.run(pid) != backend

    # asyncio.run: the bystander's query above is on purpose in the loop's thread.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        asyncio.run(main())


def test_an_ordinary_error_keeps_the_connection(pool):
    """A query that fails is no reason for a new session."""

    def wrong() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM nowhere")

    async def main() -> None:
        before = await pool.run(identity)
        with pytest.raises(Exception, match="nowhere"):
            await pool.run(wrong)
        assert await pool.run(identity) == before

    asyncio.run(main())


def test_a_transaction_that_was_left_open_does_not_leak_into_the_next_job(pool):
    """Whoever entered atomic() without leaving it must not swallow the next event's commit."""

    def leave_open() -> None:
        transaction.atomic().__enter__()
        Lease.objects.create(name="lost", owner="", expires_at="2026-01-01T00:00:00Z")

    async def main() -> None:
        await pool.run(leave_open)
        assert await pool.run(lambda: connection.in_atomic_block) is False
        assert await pool.run(Lease.objects.count) == 0

    asyncio.run(main())


def test_as_many_jobs_run_as_there_are_threads():
    pool = Threads("test", 3)
    barrier = threading.Barrier(3)

    async def main() -> None:
        await asyncio.gather(*(pool.run(barrier.wait, 10) for _ in range(3)))

    asyncio.run(main())
    pool.close()


def test_closing_closes_the_connections_and_refuses_work(pool):
    closed: list[object] = []

    async def main() -> None:
        await pool.run(identity)
        wrapper = await pool.run(lambda: connections["default"])
        pool.close()
        closed.append(wrapper.connection)
        with pytest.raises(RuntimeError, match="closed"):
            await pool.run(identity)

    asyncio.run(main())
    assert closed == [None]


def test_a_cancelled_caller_does_not_stop_the_thread(pool):
    """What it began, it finishes: a half-done transaction would be the alternative."""
    begun, go, done = threading.Event(), threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        assert go.wait(10)
        done.set()

    async def main() -> None:
        task = asyncio.create_task(pool.run(job))
        await aeventually(begun.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        await aeventually(done.is_set)

    asyncio.run(main())


def test_a_coroutine_runs_in_the_thread_and_its_transaction(pool):
    """Queries of an async handler see the open transaction. Red with asyncio.run()."""

    async def body() -> tuple[int, int]:
        await Lease.objects.acreate(name="async", owner="", expires_at="2026-01-01T00:00:00Z")
        return await Lease.objects.acount(), threading.get_ident()

    def job() -> int:
        with transaction.atomic():
            count, _ = to_sync(body)()
            transaction.set_rollback(True)
        return count

    async def main() -> None:
        assert await pool.run(job) == 1
        assert await pool.run(Lease.objects.count) == 0

    asyncio.run(main())


def test_a_hanging_job_does_not_keep_the_interpreter():
    """The end of a process must not depend on somebody's handler. Red with ThreadPoolExecutor."""
    program = (
        "import asyncio, threading, django\n"
        "django.setup()\n"
        "from jetbridge.runtime.threads import Threads\n"
        "async def main():\n"
        "    pool = Threads('hang', 1)\n"
        "    task = asyncio.create_task(pool.run(threading.Event().wait))\n"
        "    await asyncio.wait([task], timeout=0.1)\n"
        "    pool.close(wait=False)\n"
        "asyncio.run(main())\n"
        "print('end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )

    assert (done.stdout, done.returncode) == ("end\n", 0), done.stderr

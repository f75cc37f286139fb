"""
The only crossing between the event loop and threads.

The loop owns NATS, threads own Django. A :class:`Threads` pool runs plain functions that use the
database; it keeps each thread's connections for as long as they work and replaces them when they do
not. Handlers that are coroutines run on their worker thread through asgiref, so that their queries
stay inside the thread's transaction.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Final, ParamSpec, TypeVar

from asgiref.sync import async_to_sync, sync_to_async
from django.db import DatabaseError, InterfaceError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from jetbridge.runtime import sessions

P = ParamSpec("P")
T = TypeVar("T")
IDLE = 0  # PQTRANS_IDLE of libpq
# Threads that hang beyond their deadline and do not come back when their session is cut: each keeps its memory.
LOST_AT_MOST: Final = 8
GRACE_S: Final = 0.2


class Overdue(InterfaceError):
    """
    A job on a thread has not ended within its deadline; for its caller an outage of the database.

    Its session is cut, so the database rolls back what it had not committed. Whether the last commit came
    through is not known, as after any lost connection.
    """


class Threads:
    """
    ``size`` threads with database connections of their own.

    Not a ``ThreadPoolExecutor``: the interpreter waits for that one's threads when it ends, so one handler
    that hangs would keep a drained process alive for ever.

    Args:
        name: Prefix of the threads' names.
        size: Number of threads, and so of connections per alias in use.
        deadline_s: Seconds that a job may take, counted from its start. One that takes longer loses its session,
            and its thread is replaced. ``None`` for users' code, which may take as long as it likes.
    """

    def __init__(self, name: str, size: int, *, deadline_s: float | None = None) -> None:
        self.name = name
        self.size = size
        self._deadline_s = deadline_s
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._closed = False
        self._numbers = itertools.count()
        self._workers: list[Worker] = []
        self._lost: list[Worker] = []
        self._hire()

    def are_lost(self) -> bool:
        """Whether so many hang that none is replaced any more: nothing is done until one returns."""
        return sum(worker.thread.is_alive() for worker in self._lost) >= LOST_AT_MOST

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Run ``function`` in a thread and return its result; context variables go along.

        A cancelled caller does not stop the thread: what it began, it finishes.

        Raises:
            Overdue: It has not ended within the deadline, or all threads hang.
            RuntimeError: The pool is closed.
        """
        if self._closed:
            raise RuntimeError("These threads are closed; nothing may be run on them any more.")
        self._hire()
        context = contextvars.copy_context()
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(context.run(_with_connections, lambda: function(*args, **kwargs)))
            except BaseException as error:  # the caller's to judge, on its side
                future.set_exception(error)

        job = Job(work=work, name=getattr(function, "__qualname__", repr(function)))
        answer = asyncio.wrap_future(future)
        self._jobs.put(job)
        try:
            if self._deadline_s is not None:
                await self._within(job, answer, self._deadline_s)
            return await answer
        finally:
            answer.cancel()

    async def _within(self, job: Job, answer: asyncio.Future[T], deadline_s: float) -> None:
        """
        Wait for an answer.

        Raises:
            Overdue: There is none.
        """
        while not answer.done():
            begun_at = job.begun_at
            if begun_at is None:  # in front of it are jobs with deadlines of their own
                if self.are_lost():
                    raise Overdue(
                        f"{LOST_AT_MOST} threads of {self.name!r} hang and do not come back, so {job.name} "
                        f"was not run. Look for what they wait for, then restart the process."
                    )
                await asyncio.wait((answer,), timeout=min(deadline_s, 1.0))
                continue
            left_s = begun_at + deadline_s - time.monotonic()
            # Never no time at all: of a process that was stopped meanwhile the answer is there, but not read.
            done, _ = await asyncio.wait((answer,), timeout=max(left_s, GRACE_S))
            if not done and left_s <= GRACE_S and self._replace(job):
                raise Overdue(
                    f"{job.name} has not ended within {deadline_s:g} s: the database does not answer, or somebody "
                    f"holds a lock for that long. Its session was cut."
                )

    def _replace(self, job: Job) -> bool:
        """Take the thread of a job that hangs out of the pool; ``False`` if it has just ended."""
        for worker in self._workers:
            if worker.retire(job):
                self._workers.remove(worker)
                self._lost = [*(one for one in self._lost if one.thread.is_alive()), worker]
                worker.cut()
                self._hire()
                return True
        return False

    def _hire(self) -> None:
        while len(self._workers) < self.size and not self._closed and not self.are_lost():
            worker = Worker(f"jetbridge-{self.name}_{next(self._numbers)}", self._jobs, self._deadline_s)
            self._workers.append(worker)
            worker.thread.start()

    def cut(self) -> None:
        """
        End the transactions of what still runs, for good: rolled back by the database, and no new ones.

        For a process that is about to end. What the jobs notice of it is an outage.
        """
        for worker in self._workers:
            worker.cut(only_transactions=True)

    def close(self, *, wait: bool = True) -> None:
        """Close every thread's connections and end the threads; with ``wait=False`` running ones are left behind."""
        if not self._closed:
            self._closed = True
            for _ in self._workers:
                self._jobs.put(None)
        if wait:
            for worker in self._workers:
                worker.thread.join()


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """Something to do on a thread, and since when it is being done."""

    work: Callable[[], None]
    name: str
    begun_at: float | None = None


class Worker:
    """One thread of a pool, its sessions, and the job it is doing."""

    def __init__(self, name: str, jobs: SimpleQueue[Job | None], deadline_s: float | None) -> None:
        self.thread = Thread(target=self._work, name=name, daemon=True)
        self._jobs = jobs
        self._deadline_s = deadline_s
        self._lock = Lock()
        self._job: Job | None = None
        self._retired = False
        self._sessions: list[BaseDatabaseWrapper] = []

    def retire(self, job: Job) -> bool:
        """If it is still at ``job``: let that be its last one."""
        with self._lock:
            self._retired = self._job is job
            return self._retired

    def cut(self, *, only_transactions: bool = False) -> None:
        """End its sessions under whatever it does, and let it open no new ones."""
        for session in list(self._sessions):
            if session.in_atomic_block or not only_transactions:
                session.connect = _refuse  # type: ignore[method-assign]
                with suppress(Exception):  # it has just ended by itself
                    (sessions.cut if only_transactions else sessions.interrupt)(session)

    def _work(self) -> None:
        if self._deadline_s is not None:
            sessions.limit_this_thread(self._deadline_s)
        self._sessions.extend(connections.all())  # each thread has wrappers of its own, made here
        while not self._retired and (job := self._jobs.get()) is not None:
            self._job = job
            job.begun_at = time.monotonic()
            job.work()
            with self._lock:
                self._job = None
            del job  # or an idle thread keeps the last message's payload
        with suppress(Exception):  # of a session that was cut
            connections.close_all()


def _refuse() -> None:
    raise InterfaceError("This process is ending; it opens no session any more.")


def _with_connections(function: Callable[[], T]) -> T:
    replace_broken_connections()
    try:
        return function()
    except (DatabaseError, InterfaceError):
        replace_broken_connections()
        raise


def replace_broken_connections() -> None:
    """
    Close connections that an error has broken, so that the next query opens a new one.

    Not ``close_old_connections()``: with the default CONN_MAX_AGE of 0 that would open a connection
    per message. A session that a bug left inside a transaction, or with autocommit off, is cleaned up,
    too: ``atomic()`` would be a savepoint of it and never commit.
    """
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            # Closing alone would leave Django's wrapper inside the block, and with it every later job.
            connection.in_atomic_block = connection.closed_in_transaction = False
            connection.close()
        elif _is_in_transaction(connection):
            connection.close()
        elif connection.connection is not None and connection.errors_occurred:
            if connection.is_usable():
                connection.errors_occurred = False
            else:
                connection.close()
        elif sessions.has_ended(connection):
            # After a restart each thread has such a session, and each would cost somebody an attempt and its wait.
            connection.close()


def _is_in_transaction(connection: BaseDatabaseWrapper) -> bool:
    session = connection.connection
    if session is None:
        return False
    if not connection.autocommit:
        return True
    if connection.vendor == "postgresql":
        return bool(not session.closed and session.info.transaction_status != IDLE)
    return bool(getattr(session, "in_transaction", False))


def to_async(function: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    """``function`` as a coroutine function that runs in the thread of the surrounding sync code, if there is one."""
    return sync_to_async(function, thread_sensitive=True)


def to_sync(function: Callable[P, Awaitable[T]]) -> Callable[P, T]:
    """
    A coroutine function as a plain one, run on this thread.

    Never ``asyncio.run``: the handler's ORM calls would then leave this thread and its transaction.
    """
    return async_to_sync(function)

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
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import ParamSpec, TypeVar

from asgiref.sync import async_to_sync, sync_to_async
from django.db import DatabaseError, InterfaceError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from jetbridge.runtime import sessions

P = ParamSpec("P")
T = TypeVar("T")
IDLE = 0  # PQTRANS_IDLE of libpq


class Threads:
    """
    ``size`` threads with database connections of their own.

    Not a ``ThreadPoolExecutor``: the interpreter waits for that one's threads when it ends, so one handler
    that hangs would keep a drained process alive for ever.

    Args:
        name: Prefix of the threads' names.
        size: Number of threads, and so of connections per alias in use.
    """

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closed = False
        self._sessions: list[BaseDatabaseWrapper] = []
        self._threads = [
            Thread(target=self._work, name=f"jetbridge-{name}_{number}", daemon=True)
            for number in range(size)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Run ``function`` in a thread and return its result; context variables go along.

        A cancelled caller does not stop the thread: what it began, it finishes.

        Raises:
            RuntimeError: The pool is closed.
        """
        if self._closed:
            raise RuntimeError("These threads are closed; nothing may be run on them any more.")
        context = contextvars.copy_context()
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(context.run(_with_connections, lambda: function(*args, **kwargs)))
            except BaseException as error:  # the caller's to judge, on its side
                future.set_exception(error)

        self._jobs.put(job)
        return await asyncio.wrap_future(future)

    def cut(self) -> None:
        """
        End the transactions of what still runs, for good: rolled back by the database, and no new ones.

        For a process that is about to end. What the jobs notice of it is an outage.
        """
        for session in list(self._sessions):
            if session.in_atomic_block:
                session.connect = _refuse  # type: ignore[method-assign]
                with suppress(Exception):  # it has just ended by itself
                    sessions.cut(session)

    def close(self, *, wait: bool = True) -> None:
        """Close every thread's connections and end the threads; with ``wait=False`` running ones are left behind."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._jobs.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        self._sessions.extend(connections.all())  # each thread has wrappers of its own, made here
        while (job := self._jobs.get()) is not None:
            job()
            del job  # or an idle thread keeps the last message's payload
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

"""A supervised loop: nothing ends it but stop(), and an outage is one line."""

from __future__ import annotations

import asyncio
import logging

import pytest
from django.db import OperationalError

from jetbridge.runtime import service
from jetbridge.runtime.service import Loop, backoff_s
from tests.waiting import aeventually


def drive(tick, until, *, name: str = "work") -> Loop:
    """Run a loop until ``until(loop)`` is true, then stop it."""
    loop = Loop(name, tick)

    async def main() -> None:
        task = asyncio.create_task(loop.run())
        await aeventually(lambda: until(loop))
        loop.stop()
        async with asyncio.timeout(5):
            await task

    asyncio.run(main())
    return loop


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "BACKOFF_S", (0.001, 0.002))


def test_an_exception_does_not_end_the_loop(caplog):
    calls: list[int] = []

    async def tick() -> float:
        calls.append(1)
        if len(calls) < 4:
            raise RuntimeError("bad day")
        return 0.001

    with caplog.at_level(logging.INFO, "jetbridge.runtime"):
        drive(tick, lambda _: len(calls) >= 6)

    assert caplog.text.count("work failed; trying again.") == 3
    assert caplog.text.count("work works again after 3 failures.") == 1


def test_an_outage_of_the_database_is_one_line(caplog):
    calls: list[int] = []

    async def tick() -> float:
        calls.append(1)
        if len(calls) <= 9:
            raise OperationalError("connection refused\n")
        return 0.001

    with caplog.at_level(logging.INFO, "jetbridge.runtime"):
        drive(tick, lambda _: len(calls) > 9)

    assert caplog.text.count("the database does not answer (connection refused)") == 1
    assert "Traceback" not in caplog.text


def test_waking_ends_the_sleep():
    calls: list[int] = []

    async def tick() -> float:
        calls.append(1)
        return 3600.0

    def until(loop: Loop) -> bool:
        loop.wake()
        return len(calls) >= 5

    drive(tick, until)


def test_stopping_ends_the_sleep_and_finishes_the_tick():
    finished: list[bool] = []

    async def main() -> None:
        begun, go = asyncio.Event(), asyncio.Event()

        async def tick() -> float:
            begun.set()
            await go.wait()
            finished.append(True)
            return 3600.0

        loop = Loop("work", tick)
        task = asyncio.create_task(loop.run())
        await begun.wait()
        loop.stop()
        go.set()
        async with asyncio.timeout(5):
            await task

    asyncio.run(main())
    assert finished == [True]


def test_a_tick_without_pause_lets_others_run():
    """A busy loop must not starve acks and heart-beats. Red if it does not give way."""
    calls: list[int] = []

    async def tick() -> float:
        calls.append(1)
        return 0.0

    drive(tick, lambda _: len(calls) > 50)


def test_backoff_grows_to_its_bound(monkeypatch):
    monkeypatch.setattr(service, "BACKOFF_S", (0.1, 2.0))

    assert all(0.1 <= backoff_s(1) <= 0.2 for _ in range(100))
    assert all(1.0 <= backoff_s(1000) <= 2.0 for _ in range(100))


def test_a_future_that_somebody_else_cancelled_does_not_end_the_loop(caplog):
    """A ``CancelledError`` is no ``Exception``: red without its own clause, and the loop would end in silence."""
    calls: list[int] = []

    async def tick() -> float:
        calls.append(1)
        if len(calls) == 1:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        return 0.001

    drive(tick, lambda _: len(calls) >= 3)

    assert caplog.text.count("work failed; trying again.") == 1


def test_who_calls_exit_in_a_callback_does_not_end_the_loop():
    calls: list[int] = []

    async def tick() -> float:
        calls.append(1)
        if len(calls) == 1:
            raise SystemExit(3)
        return 0.001

    drive(tick, lambda _: len(calls) >= 3)


def test_a_task_that_is_cancelled_ends():
    async def main() -> None:
        task = asyncio.create_task(Loop("work", asyncio.Event().wait).run())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,), timeout=5)
        assert task.cancelled()

    asyncio.run(main())


def test_a_log_handler_that_raises_does_not_end_the_loop():
    """Nor takes the tick with it. Red without suppress() around the log of a failure."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("the log server is away")

    calls: list[int] = []

    async def tick() -> float:
        calls.append(1)
        if len(calls) <= 2:
            raise RuntimeError("bad day")
        return 0.001

    broken = Broken()
    service.logger.addHandler(broken)
    try:
        drive(tick, lambda _: len(calls) >= 4)
    finally:
        service.logger.removeHandler(broken)

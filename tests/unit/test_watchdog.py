"""The thread beside the event loop: what it says of a blocked one, of loops that hang, and of a process that slept."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jetbridge.runtime import loops as loops_module
from jetbridge.runtime.liveness import Liveness
from jetbridge.runtime.loops import Loops
from jetbridge.runtime.watchdog import Watchdog
from tests.waiting import aeventually, eventually

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops_module, "EVENT_LOOP_LIMIT_S", 0.3)
    monkeypatch.setattr(loops_module, "EVENT_LOOP_BEATS_S", 0.05)
    monkeypatch.setattr(loops_module, "Watchdog", lambda liveness: Watchdog(liveness, every_s=0.05))


def test_a_blocked_event_loop_is_found_and_its_line_named(impatient, caplog):
    """Red without the thread: whoever blocks the loop also blocks everything on it that could tell."""
    go, seen = threading.Event(), list[bool]()

    def receiver_that_blocks() -> None:
        go.wait(20)

    async def main() -> None:
        async with Loops() as loops:
            # A bystander, as a probe would be: it lets the loop go only when it has seen it reported.
            def bystander() -> None:
                eventually(lambda: "Stuck: event loop" in caplog.text, 15)
                seen.append(loops.liveness.is_alive())
                go.set()

            thread = threading.Thread(target=bystander)
            thread.start()
            receiver_that_blocks()
            thread.join(20)
            await aeventually(loops.liveness.is_alive)
            await aeventually(lambda: "Not stuck any more: event loop." in caplog.text)

    with caplog.at_level(logging.WARNING, "jetbridge.runtime"):
        asyncio.run(main())

    assert seen == [False]
    assert "in receiver_that_blocks" in caplog.text
    assert caplog.text.count("Stuck: event loop") == 1  # once, and not with each look


def test_a_loop_that_hangs_is_named_with_the_place_it_waits_at(impatient, caplog):
    async def a_query_without_a_deadline() -> None:
        await asyncio.Event().wait()

    async def tick() -> float:
        await a_query_without_a_deadline()
        return 0.0

    async def main() -> None:
        async with Loops() as loops:
            loops.start("work", tick, limit_s=0.2)
            await aeventually(lambda: "Stuck: work" in caplog.text)
            assert loops.liveness.names() == ["work"]

    with caplog.at_level(logging.CRITICAL, "jetbridge.runtime"):
        asyncio.run(main())

    assert "in test_a_loop_that_hangs_is_named_with_the_place_it_waits_at.<locals>.tick" in caplog.text
    assert "a_query_without_a_deadline" in caplog.text


def test_a_loop_that_ends_by_itself_is_stuck(impatient, caplog):
    """Whatever ended it. Red if the end of a task is nobody's business."""

    class Odd(BaseException):
        pass

    async def tick() -> float:
        raise Odd

    async def main() -> None:
        async with Loops() as loops:
            loops.start("work", tick, limit_s=60.0)
            await aeventually(lambda: loops.liveness.names() == ["work"])
            await aeventually(lambda: "Stuck: work, which has ended by itself." in caplog.text)

    with caplog.at_level(logging.CRITICAL, "jetbridge.runtime"):
        asyncio.run(main())


def test_a_log_handler_that_raises_does_not_end_the_watch():
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("the log server is away")

    logger, broken, stuck = logging.getLogger("jetbridge.runtime"), Broken(), [True]
    liveness = Liveness()
    liveness.also("thing", lambda: stuck[0])
    dog = Watchdog(liveness, every_s=0.01)
    logger.addHandler(broken)
    try:
        dog.start()
        eventually(lambda: "thing" in dog._said)
        stuck[0] = False
        eventually(lambda: not dog._said)
    finally:
        dog.stop()
        logger.removeHandler(broken)


def test_a_process_that_was_stopped_is_not_stuck_when_it_goes_on():
    """SIGSTOP for longer than every limit, SIGCONT: nothing hung. Red without stood_still() in the watchdog."""
    program = (
        "import asyncio, logging\n"
        "from jetbridge.runtime import loops\n"
        "from jetbridge.runtime.watchdog import Watchdog\n"
        "loops.EVENT_LOOP_LIMIT_S = 3.0\n"
        "loops.Watchdog = lambda liveness: Watchdog(liveness, every_s=0.2)\n"
        "logging.basicConfig()\n"
        "async def main():\n"
        "    async with loops.Loops():\n"
        "        print('up', flush=True)\n"
        "        await asyncio.get_running_loop().run_in_executor(None, input)\n"
        "        await asyncio.sleep(1.0)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "testproject.settings.tests"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(4.0)
    os.kill(process.pid, signal.SIGCONT)

    _, errors = process.communicate("\n", timeout=20)

    assert process.returncode == 0, errors
    assert "Stuck" not in errors

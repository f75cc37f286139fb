"""The frame of a process: the first signal drains, the second ends it, names are unique."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jetbridge.runtime import supervisor

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """\
import asyncio
from jetbridge.runtime import supervisor

async def main(stop):
    print("up", flush=True)
    await stop.wait()
    print("draining", flush=True)
    {rest}
    return "done"

print(supervisor.run(main), flush=True)
"""


def start(rest: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(rest=rest)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_main_to_drain(number):
    process = start("pass")
    process.send_signal(number)

    assert process.communicate(timeout=10)[0] == "draining\ndone\n"
    assert process.returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_second_signal_ends_the_process(number, code):
    with start("await asyncio.Event().wait()") as process:
        process.send_signal(number)
        assert process.stdout is not None
        assert process.stdout.readline() == "draining\n"
        process.send_signal(number)

        assert process.wait(10) == code


def test_the_handlers_are_gone_afterwards():
    """A command that calls it keeps its own reaction to Ctrl-C."""
    before = signal.getsignal(signal.SIGTERM)

    async def main(_stop) -> int:
        return 7

    assert supervisor.run(main) == 7
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_main_raises_comes_out():
    async def main(_stop) -> None:
        raise LookupError("x")

    with pytest.raises(LookupError):
        supervisor.run(main)


def test_a_process_id_names_host_and_pid_and_is_never_used_twice():
    first, second = supervisor.process_id(), supervisor.process_id()

    assert first != second
    assert f":{os.getpid()}:" in first
    assert len(first) <= 128

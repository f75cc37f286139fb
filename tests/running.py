"""
Relays and consumers that keep running while a test acts: in a thread of this process, or as real processes.

In a thread a handler is a function of the test and can be stopped at any point; a process can be killed.
Both use the run's test database, so that the test sees every row.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from django.db import connections
from nats.aio.client import Client

from jetbridge.conf import Settings
from jetbridge.consumer.process import run_consumer
from jetbridge.relay.process import run_relay
from testproject.processes import Guard
from tests.waiting import eventually
from tests.worlds import World

ROOT = Path(__file__).resolve().parents[1]
END_S = 30.0


class Running:
    """``main(stop)`` on an event loop in a thread, until :meth:`stop`."""

    def __init__(self, main: Callable[[asyncio.Event], Awaitable[Any]]) -> None:
        self._main = main
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._begun = threading.Event()
        self._error: BaseException | None = None
        self.report: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._begun.wait(END_S)

    def _run(self) -> None:
        async def body() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            self._begun.set()
            self.report = await self._main(self._stop)

        try:
            asyncio.run(body())
        except BaseException as error:
            self._error = error
        finally:
            connections.close_all()

    def ask_to_stop(self) -> None:
        """What SIGTERM does; returns at once."""
        assert self._loop is not None
        assert self._stop is not None
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> Any:
        """Ask, wait, and return the report; raises what ``main`` raised."""
        self.ask_to_stop()
        self._thread.join(END_S)
        assert not self._thread.is_alive(), f"did not end within {END_S:g} s"
        if self._error is not None:
            raise self._error
        return self.report


@contextmanager
def _running(
    main: Callable[[Settings, asyncio.Event], Awaitable[Any]], settings: Settings
) -> Iterator[Running]:
    running = Running(lambda stop: main(settings, stop))
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def relaying(world: World, **keys: Any) -> Iterator[Running]:
    """A relay of the shop that runs until the end of the block; the settings are the shop's meanwhile."""
    with (
        world.as_shop(**keys) as settings,
        _running(lambda s, stop: run_relay(s, using="default", stop=stop), settings) as running,
    ):
        yield running


@contextmanager
def consuming(world: World, **keys: Any) -> Iterator[Running]:
    """A consumer of billing that runs until the end of the block; the settings are billing's meanwhile."""
    with (
        world.as_billing(**keys) as settings,
        _running(lambda s, stop: run_consumer(s, stop=stop), settings) as running,
    ):
        yield running


class Process:
    """One management command as a process of its own."""

    def __init__(self, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
        self._guard = Guard(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def said(self) -> str:
        """What it has printed."""
        return self._out.read_text(errors="replace")

    @property
    def last_line(self) -> dict[str, Any]:
        """The JSON that a one-shot run ends with."""
        document: dict[str, Any] = json.loads(self._out.read_text().splitlines()[-1])
        return document

    def says(self, words: str, timeout_s: float = 30.0) -> Self:
        """Wait until its log holds ``words``."""

        def said() -> bool:
            assert self._process.poll() is None or words in self.log, f"It ended:\n{self.log[-3000:]}"
            return words in self.log

        eventually(said, timeout_s, what=f"the log says {words!r}")
        return self

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def poll(self) -> int | None:
        """As :meth:`wait`, without waiting: ``None`` while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float = 30.0) -> int:
        """The exit code; a signal's number is negative."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"It did not end within {timeout_s:g} s:\n{self.log[-3000:]}") from None

    def terminate(self, timeout_s: float = 30.0) -> int:
        self.send(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        if self._process.poll() is None:
            self.kill()
        self._guard.release()


def api(world: World, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One JetStream API call of an all-powerful bystander."""

    async def main(client: Client) -> dict[str, Any]:
        answer = await client.request(f"$JS.API.{subject}", json.dumps(body or {}).encode(), timeout=5)
        document: dict[str, Any] = json.loads(answer.data)
        assert "error" not in document, document
        return document

    return world.nats(main)


def durable(world: World) -> dict[str, Any]:
    """INFO of billing's durable in the shop's stream: ``num_ack_pending``, ``num_pending``, ``num_redelivered``."""
    return api(world, f"CONSUMER.INFO.jetbridge-{world.shop}.{world.billing}-workers")


def numbers(world: World, subject: str = ">") -> list[int]:
    """``payload["n"]`` of what lies in the shop's stream, in order."""
    return [json.loads(message.body)["payload"]["n"] for message in world.stored(subject=subject)]


SETTINGS = """\
import json
import os

from testproject.settings.tests import *
from testproject.settings.tests import INSTALLED_APPS

_given = json.loads(os.environ["LAB"])
DATABASES = _given["databases"]
JETBRIDGE = _given["jetbridge"]
INSTALLED_APPS = [*INSTALLED_APPS, "lab"]
"""


class Processes:
    """
    Starts commands whose handlers are the text a test gives.

    Args:
        folder: For the settings, the handlers and the logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: list[Process] = []
        self._databases = dict[str, dict[str, Any]]()

    def start(
        self,
        command: str,
        *arguments: str,
        keys: Mapping[str, Any],
        handlers: str = "",
        databases: Mapping[str, Any] | None = None,
    ) -> Process:
        """
        Args:
            keys: ``JETBRIDGE``.
            handlers: Source of ``lab/handlers.py``.
            databases: ``DATABASES``; by default the run's test database.
        """
        home = self.folder / f"process-{len(self._made)}"
        (home / "lab").mkdir(parents=True)
        (home / "lab" / "__init__.py").touch()
        (home / "lab" / "handlers.py").write_text(handlers)
        (home / "lab_settings.py").write_text(SETTINGS)
        given = {"databases": databases or databases_of_tests(), "jetbridge": dict(keys)}
        environment = {
            **os.environ,
            "LAB": json.dumps(given),
            "LAB_DIR": str(self.folder),
            "PYTHONPATH": str(home),
            "DJANGO_SETTINGS_MODULE": "lab_settings",
        }
        process = Process([sys.executable, "manage.py", command, *arguments], environment, home)
        self._made.append(process)
        return process

    def relay(self, world: World, *arguments: str, **keys: Any) -> Process:
        """``jetbridge_relay`` of the shop."""
        return self.start("jetbridge_relay", *arguments, keys={**world.publisher, **keys})

    def consumer(self, world: World, handlers: str, *arguments: str, **keys: Any) -> Process:
        """``jetbridge_consume`` of billing."""
        return self.start("jetbridge_consume", *arguments, keys={**world.consumer, **keys}, handlers=handlers)

    def end(self) -> None:
        for process in self._made:
            process.end()


def databases_of_tests(**options: Any) -> dict[str, Any]:
    """``DATABASES`` for a process that shares this run's test databases; ``options`` are the driver's."""
    wanted = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")
    found = {}
    for alias in connections:
        known = connections[alias].settings_dict
        found[alias] = {name: known[name] for name in wanted if known.get(name)}
        found[alias]["OPTIONS"] = {**known.get("OPTIONS", {}), **options}
    return found

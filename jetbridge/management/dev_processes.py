"""
What ``jetbridge_dev`` starts: child processes whose lines carry a name, and the embedded server.

Everything here is synchronous and called from one loop; only reading a child's output has a thread.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from jetbridge.errors import BrokerUnreachable
from jetbridge.jetstream import store_lock
from jetbridge.jetstream.embedded import LAUNCHER, LOCK_FILE, EmbeddedServer, EmbeddedServerError

RESTART_S: Final = (0.5, 10.0)
STEADY_S: Final = 5.0
SERVER_RETRY_S: Final = 2.0
READ_REST_S: Final = 2.0

Say = Callable[[str, str], None]
"""``say(name, line)``: one line of one speaker; may be called from any thread."""


class Child:
    """
    A management command that is kept running.

    Args:
        name: Stands before each of its lines.
        command: Complete argument vector.
        once: It has a job to finish: after exit code 0 it is done, until :meth:`restart`.
    """

    def __init__(self, name: str, command: Sequence[str], *, say: Say, once: bool = False) -> None:
        self.name = name
        self.once = once
        self._command = list(command)
        self._say = say
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._started_at = 0.0
        self._next_start: float | None = 0.0
        self._restarting = False
        self._failures = 0

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tick(self) -> None:
        """Start it when it is time to, notice its end."""
        now = time.monotonic()
        if self._process is not None and (status := self._process.poll()) is not None:
            self._gone()
            self._plan(status, now)
        if self._process is None and self._next_start is not None and now >= self._next_start:
            self._start(now)

    def restart(self) -> None:
        """As soon as it has ended, start it again; what is running is asked to end."""
        self._failures = 0
        self._next_start = 0.0
        self._restarting = True
        self.terminate()

    def terminate(self) -> None:
        """Ask it to drain and end (SIGTERM)."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def wait(self, timeout_s: float) -> None:
        """Wait for its end and its last lines; kill it when the time is up."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            self._say(self.name, "does not end; killed")
            self._process.kill()
            self._process.wait()
        self._gone()

    def _plan(self, status: int, now: float) -> None:
        if self._restarting:
            return
        if status == 0 and self.once:
            self._next_start = None
            return
        self._failures = 1 if now - self._started_at > STEADY_S else self._failures + 1
        delay_s = min(RESTART_S[1], RESTART_S[0] * 2 ** (self._failures - 1))
        self._next_start = now + delay_s
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit code {status}"
        self._say(self.name, f"{how}; next start in {delay_s:g} s, or when the code changes")

    def _start(self, now: float) -> None:
        self._started_at = now
        self._restarting = False
        # Started from the main thread, which lives as long as we do: LAUNCHER ends the child with the thread that
        # forked it, so not even SIGKILL of this command leaves a relay behind.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), *self._command],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C in the terminal is for us alone: we end the children in order.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=[self._process], daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self._say(self.name, line.rstrip())

    def _gone(self) -> None:
        # A grandchild may hold the pipe open for ever; the child's own lines are there at once.
        if self._reader is not None:
            self._reader.join(READ_REST_S)
        self._process = self._reader = None


class Server:
    """
    The embedded nats-server: ours if the folder is free, else the one that somebody else runs there.

    Two services developed side by side share a folder. Whoever comes first owns the server; when that one
    ends, another takes over, with the same store.
    """

    def __init__(self, folder: Path, *, say: Say) -> None:
        self._folder = folder
        self._server = EmbeddedServer(folder)
        self._say = say
        self._was_mine = False
        self._shared = False
        self._next_try = 0.0

    def tick(self) -> None:
        """
        See that there is a server.

        Raises:
            BrokerUnreachable: The first start failed; later ones are tried again.
        """
        if self._server.is_running or time.monotonic() < self._next_try:
            return
        if self._is_anothers():
            if not self._shared:
                self._say("nats", f"using the server that runs in {self._folder} already")
            self._shared = True
            return
        self._start()

    def stop(self) -> None:
        self._server.stop()

    def kill(self) -> None:
        self._server.kill()

    def _start(self) -> None:
        if self._was_mine:
            self._say("nats", "the server is gone; starting it again")
        try:
            self._server.start()
        except EmbeddedServerError as fault:
            if self._is_anothers():
                return  # taken in this very moment; the next tick says so
            if not (self._was_mine or self._shared):
                raise BrokerUnreachable(str(fault)) from fault
            self._say("nats", f"{fault} Trying again.")
            self._next_try = time.monotonic() + SERVER_RETRY_S
            return
        self._was_mine, self._shared = True, False
        self._say("nats", f"{self._server.url}, store in {self._folder}")

    def _is_anothers(self) -> bool:
        return not self._server.is_running and store_lock.is_locked(self._folder / LOCK_FILE)


def ends_at_once(number: int, children: Sequence[Child], server: Server | None) -> None:
    """The second Ctrl-C: nobody is asked any more."""
    for child in children:
        child.kill()
    if server is not None:
        server.kill()
    os._exit(128 + number)


SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

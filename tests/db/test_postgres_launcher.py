"""The PostgreSQL launcher: a real server from a wheel, also for root, that never outlives its parent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from testproject.postgres import Postgres, PostgresError
from testproject.postgres_files import FilesError
from tests.broker.test_servers import alive
from tests.waiting import eventually

pytestmark = pytest.mark.postgres
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder the server's user can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def server():
    with open_folder() as folder, Postgres(folder / "data", fsync=False) as running:
        yield running
        running.stop()


def ask(server: Postgres, sql: str, database: str = "postgres") -> object:
    with psycopg.connect(f"{server.url}/{database}", autocommit=True) as connection:
        row = connection.execute(sql).fetchone()
        assert row is not None
        return row[0]


def test_it_runs_as_an_ordinary_user_on_the_loopback_only(server):
    owner = Path(f"/proc/{server.pid}").stat().st_uid if Path("/proc").exists() else 1

    assert owner != 0
    assert ask(server, "SHOW listen_addresses") == "127.0.0.1"
    assert ask(server, "SHOW unix_socket_directories") == ""
    assert ask(server, "SHOW server_encoding") == "UTF8"


def test_fsync_is_chosen_by_the_caller(server):
    assert ask(server, "SHOW fsync") == "off"


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_committed_data_survives_a_restart_on_the_same_port(server, mode):
    port, database = server.port, f"restart_{mode}"
    url = server.create_database(database)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")

    server.restart(mode)

    assert server.port == port
    assert ask(server, "SELECT n FROM kept", database) == 7


def test_committed_data_survives_a_kill_with_clients_connected(server):
    url = server.create_database("killed")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    client = psycopg.connect(url)

    server.kill()
    with pytest.raises(psycopg.OperationalError):
        client.execute("SELECT 1")
    server.start()

    assert ask(server, "SELECT n FROM kept", "killed") == 7


def test_a_wrong_setting_is_named():
    with open_folder() as folder, pytest.raises(PostgresError, match="no_such_setting"):
        Postgres(folder / "data", settings={"no_such_setting": "1"}).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run as another user")
def test_a_closed_folder_gets_a_link_and_stays_closed(tmp_path):
    """Opening every parent folder to the world would be the other way."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)

    with Postgres(closed / "data", fsync=False) as server:
        real = server.data_dir.resolve()
        assert ask(server, "SHOW data_directory") == str(real)
    try:
        assert server.data_dir.is_symlink()
        assert closed.stat().st_mode & 0o777 == 0o700
        assert (server.data_dir / "PG_VERSION").exists()
    finally:
        shutil.rmtree(real)


def test_a_database_that_exists_is_an_error(server):
    with pytest.raises(PostgresError, match="already exists"):
        server.create_database("postgres")


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "letters.txt").write_text("mine")

    with pytest.raises(FilesError, match=r"letters\.txt"):
        Postgres(tmp_path).start()
    assert (tmp_path / "letters.txt").read_text() == "mine"


def test_it_dies_with_a_killed_parent():
    """SIGKILL runs no exit hook, so the server must be told by somebody else."""
    program = (
        "import sys; from pathlib import Path; from testproject.postgres import Postgres;"
        "print(Postgres(Path(sys.argv[1])).start().pid, flush=True); sys.stdin.read()"
    )
    with open_folder() as folder:
        parent = subprocess.Popen(
            [sys.executable, "-c", program, f"{folder}/data"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)

        parent.send_signal(signal.SIGKILL)
        parent.communicate()

        eventually(lambda: not alive(child), what="PostgreSQL has ended")

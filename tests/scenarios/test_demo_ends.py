"""The demo from outside: what it places, how it is called, and that nothing survives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testproject.demo.orders import MIN_ORDERS, Way, orders_of, plan
from testproject.postgres import Postgres
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
VENDOR = os.environ.get("JETBRIDGE_TEST_DB") or "sqlite"


@pytest.mark.parametrize("orders", [MIN_ORDERS, 61, 300])
def test_the_seed_decides_what_is_placed(orders: int) -> None:
    planned = orders_of(plan(orders, 1))

    assert plan(orders, 1) == plan(orders, 1) != plan(orders, 2)
    assert len({order.number for order in planned}) == orders
    assert {order.way for order in planned} == set(Way)
    assert sum(order.way is Way.FAILING for order in planned) == 1


def test_a_second_copy_comes_after_the_first() -> None:
    seen: set[str] = set()
    for step in plan(300, 3):
        assert step.again == (step.order.number in seen)
        seen.add(step.order.number)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--db", "mysql"],
        ["--orders", "1"],
        ["--orders", "many"],
        ["--json", "/nowhere/x"],
        ["--dir", str(ROOT)],
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_was_expected(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "testproject.demo", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert arguments[1] in done.stderr


@pytest.mark.sqlite
def test_out_of_time_is_exit_code_6(tmp_path: Path) -> None:
    """After the preparations there is a verdict all the same, which says what it waited for."""
    result = tmp_path / "demo.json"
    command = [sys.executable, "-m", "testproject.demo", "--dir", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--json", result, "--orders", "100000", "--timeout", "10"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 6, done.stdout + done.stderr
    assert "imed out waiting for" in done.stdout + done.stderr
    assert not result.exists() or json.loads(result.read_text())["ok"] is False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_survives_the_demo_however_it_ends(server_dir: Path, how: signal.Signals) -> None:
    """Red now and then if the signal is an exception and nothing else: the import system may drop it."""
    folder = server_dir / f"demo-{how.name}"
    with subprocess.Popen(
        [sys.executable, "-m", "testproject.demo", "--db", VENDOR, "--dir", folder],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert any("Workers started" in line for line in running.stdout)
        assert len(family(folder)) >= 5

        running.send_signal(how)
        said, _ = running.communicate(timeout=30)

    assert running.returncode == (-how if how is signal.SIGKILL else 128 + how), said
    eventually(lambda: family(folder) == [], 15, what="every child to have ended")


def test_interrupted_while_it_is_imported_it_ends_without_a_traceback(tmp_path: Path) -> None:
    """Ctrl-C in the first second, when nothing runs yet. Red if Python's own words are all there is."""
    with subprocess.Popen(
        [sys.executable, "-m", "testproject.demo", "--dir", tmp_path / "run"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert "jetbridge demo:" in running.stdout.readline()

        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=30)

    assert running.returncode == 130
    assert "Interrupted" in said
    assert "Traceback" not in said


@pytest.mark.postgres
def test_the_server_of_a_finished_demo_can_be_started_again_to_recount(server_dir: Path) -> None:
    import psycopg

    folder = server_dir / "again"
    with Postgres(folder, fsync=False) as server:
        url = server.create_database("orders")
    command = [sys.executable, "-m", "testproject.postgres", str(folder), "--port", str(server.port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith(server.url)
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)

        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 0


@pytest.mark.postgres
def test_no_server_is_made_where_there_was_none(tmp_path: Path) -> None:
    """A typo in the folder's name is not a new, empty cluster."""
    done = subprocess.run(
        [sys.executable, "-m", "testproject.postgres", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert list(tmp_path.iterdir()) == []


def family(folder: Path) -> list[str]:
    """Command lines of processes that speak of the folder, in their arguments or their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
            about = line + (process / "environ").read_bytes()
        except OSError:
            continue
        if bytes(folder) in about and b"testproject.demo" not in line:
            found.append(f"{process.name} {line.decode(errors='replace')}")
    return found

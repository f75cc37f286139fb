"""
The kill matrix in the suite: each step once, with one fault, in runs side by side. ``make matrix`` runs all of it.

A failure prints the command that replays exactly the run that failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import VENDOR
from tests.servers import NatsServer, Postgres

ROOT = Path(__file__).resolve().parents[2]
# Another fault for each step every day; the same in all runs of a continuous integration.
SEED = 1 if os.environ.get("CI") else int(time.time() // 86_400)
Matrix = Callable[..., tuple[int, str, dict[str, Any]]]


@pytest.fixture
def matrix(nats_server: NatsServer, request: pytest.FixtureRequest, tmp_path: Path) -> Matrix:
    """``matrix(*arguments)`` runs the command on this run's servers: exit code, what it said, its document."""
    arguments = ["--db", VENDOR, "--nats", nats_server.url, "--seed", str(SEED)]
    if VENDOR == "postgres":
        server: Postgres = request.getfixturevalue("postgres_server")
        arguments += ["--postgres", server.url]

    def run(*more: str) -> tuple[int, str, dict[str, Any]]:
        file = tmp_path / "verdict.json"
        command = [sys.executable, "-m", "tests.matrix", *arguments, "--json", str(file), *more]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        said = done.stderr + done.stdout
        assert file.exists(), said
        return done.returncode, said, json.loads(file.read_text())

    return run


def test_every_point_is_in_the_product() -> None:
    """A function that got another name is said here, in a moment, and not as a fault that never happened."""
    from tests.matrix.steps import STEPS

    gone = [step.name for step in STEPS if not step.point.exists]

    assert gone == []


@pytest.mark.timeout(900)
def test_no_step_loses_or_doubles_an_event(matrix: Matrix) -> None:
    """
    Kill, stop or delay between every two steps: lost 0, ghosts 0, doubled 0, stuck 0, and each fault did happen.

    What it guards is shown by the planted bugs below: each is one guard removed.
    """
    code, said, verdict = matrix("--rotate")

    assert verdict["failures"] == [], said
    assert code == 0, said
    assert len({cell["step"] for cell in verdict["cells"]}) >= 50


@pytest.mark.timeout(300)
def test_the_verdict_names_every_planted_bug(matrix: Matrix) -> None:
    """
    An ack before the commit, a row that is dropped, an effect without a look into the inbox, a publish that
    survives its rollback, no acks, the newest first, starts that cost attempts, a fault that never happens.
    """
    code, said, verdict = matrix("--prove")

    assert code == 0, said
    assert verdict["runs"] == 8
    assert "MISSED" not in said

"""The command that measures a long outage, with a short one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import VENDOR
from tests.running import ROOT


def outage(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.outage", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.parametrize(
    "of",
    [pytest.param("nats", marks=pytest.mark.sqlite), pytest.param("postgres", marks=pytest.mark.postgres)],
)
def test_an_outage_costs_no_attempt_and_ends_within_two_seconds(tmp_path, of):
    """
    Longer than a lease, so that relay and consumer have handed theirs back, or lost them, when the server returns.
    Red (first event after 2.7 s, with the default lease) if a holder that gave up sleeps a third of its term.
    """
    file = tmp_path / "verdict.json"

    # The command's own bound is two seconds. Here another test run may have both processors.
    done = outage(
        "--first-event",
        "6",
        "--of",
        of,
        "--db",
        VENDOR,
        "--minutes",
        "0.1",
        "--lease",
        "4",
        "--json",
        str(file),
    )

    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads(file.read_text())
    assert verdict["ok"]
    assert 6 <= verdict["outage_s"] < 30
    assert verdict["events"]["committed"] == verdict["events"]["handled"] > 20
    assert verdict["writer_failures"] > 0 or of == "nats"
    assert f"{of} away for " in done.stdout


def test_a_file_has_no_server_that_could_go_away():
    done = outage("--of", "postgres", "--db", "sqlite")

    assert (done.returncode, done.stdout) == (2, "")
    assert "an SQLite file has no server" in done.stderr

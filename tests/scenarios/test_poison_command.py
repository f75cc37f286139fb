"""The command that puts poison among events, with a few of them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.running import ROOT


def poison(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.poison", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


@pytest.mark.postgres
@pytest.mark.timeout(180)
def test_two_poisons_die_alone_beside_slow_neighbours(tmp_path):
    """
    Two consumers of eight threads, one standing by: one event in a thousand must not cost the others anything.
    """
    file = tmp_path / "verdict.json"

    done = poison(
        *("--events", "500", "--keys", "50", "--poisons", "exit,SIGSEGV", "--consumers", "2"),
        *("--slow-neighbours", "--lease", "1", "--timeout", "140", "--json", str(file)),
    )

    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads(file.read_text())
    assert verdict["ok"]
    assert verdict["events"]["effects"] == 498
    assert sorted(verdict["deaths"]) == ["-11", "1"]
    assert "2 poison among 498 events" in done.stdout


def test_an_unknown_kind_of_death_is_refused():
    done = poison("--poisons", "boredom")

    assert (done.returncode, done.stdout) == (2, "")
    assert "'boredom' is none of exit, SIGSEGV" in done.stderr

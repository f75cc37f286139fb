"""The README's five minutes, carried out: a project from ``startproject``, its blocks as they stand, real servers."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks, commands
from tests.docs.projects import Shell
from tests.servers import NatsServer
from tests.waiting import eventually

pytestmark = pytest.mark.sqlite  # the project has a database of its own; once is enough

INVOICES = "from shop.models import Invoice; print(Invoice.objects.count())"
PLACE = "from shop.services import place_order; place_order('9.90')"


def steps() -> list[Block]:
    """The blocks of the second screen, in order."""
    return [block for block in blocks(ROOT / "README.md") if block.section.startswith("In your project")]


def runs_on(words: list[str]) -> bool:
    """Whether a command of the README is one that does not end."""
    return any(word in ("jetbridge_dev", "jetbridge_relay", "jetbridge_consume") for word in words)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(folder=tmp_path)


@pytest.fixture
def project(shell: Shell) -> Iterator[Shell]:
    """The project as it is before the first command that goes on running."""
    for block in steps():
        if block.language == "python":
            shell.write(block)
            continue
        for words in commands(block):
            if words[0] == "pip":
                continue  # this environment has it; test_shell_blocks checks the extra
            if runs_on(words):
                yield shell
                return
            shell.run(words)
    raise AssertionError("The README never starts jetbridge.")


def shell_c(shell: Shell, code: str) -> str:
    return shell.run(["python", "manage.py", "shell", "-v", "0", "-c", code]).strip()


def test_the_readme_works_with_a_server_of_your_own(project, nats_server: NatsServer):
    """Provision, publish, relay, consume: the invoice is there, once."""
    assert "no issues" in project.run(["python", "manage.py", "check"])
    started = False
    shell_c(project, PLACE)
    for block in steps():
        for words in commands(block) if block.language == "bash" else ():
            if words[0] == "export" and words[1].startswith("NATS_URLS="):
                project.environment["NATS_URLS"] = nats_server.url
                started = True
            elif started:
                once = ["--until-empty", "--timeout", "30"] if runs_on(words) else []
                project.run([*words, *once])

    assert started, "The README no longer shows how to name a server."
    assert shell_c(project, INVOICES) == "1"


def test_the_readme_works_with_jetbridge_dev(project, tmp_path):
    """One terminal runs everything; the commands for the second terminal show the invoice."""
    in_dev = [
        block for block in steps() if any("jetbridge_dev" in words for words in map(tuple, commands(block)))
    ]
    following = steps()[steps().index(in_dev[0]) + 1]
    place, look = commands(following)
    log = tmp_path / "dev.log"
    dev = project.start(["python", "manage.py", "jetbridge_dev"], log)
    try:
        project.run(place)
        eventually(lambda: "9.90" in project.run(look), 40, interval_s=0.5, what=f"an invoice; see {log}")

        status = json.loads(project.run(["python", "manage.py", "jetbridge_status", "--format", "json"]))
        assert status["app"] == "shop"
    except AssertionError as failure:
        raise AssertionError(f"{failure}\njetbridge_dev said:\n{log.read_text()}") from failure
    finally:
        dev.send_signal(signal.SIGTERM)
        dev.wait(30)

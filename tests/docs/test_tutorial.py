"""The tutorial, carried out: two projects from ``startproject``, every command as it stands, a real nats-server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks, commands
from tests.docs.projects import Shell
from tests.servers import NatsServer

pytestmark = pytest.mark.sqlite  # the projects have databases of their own; once is enough

INSTALLING = {"pip", ".", "nats-server"}


def chapters() -> dict[str, list[Block]]:
    """The blocks of each chapter."""
    found: dict[str, list[Block]] = {}
    for block in blocks(ROOT / "docs/tutorial.md"):
        found.setdefault(block.section.partition(". ")[0], []).append(block)
    return found


def carry_out(shell: Shell, chapter: list[Block]) -> list[str]:
    """Write its files, run its commands; returns what each command printed."""
    printed = []
    for block in chapter:
        if block.language == "python":
            shell.write(block)
            continue
        for words in commands(block):
            if words[0] in INSTALLING or words[:3] == ["python", "-m", "venv"]:
                continue
            output = shell.run(
                words, check="jetbridge_consume" not in words
            )  # it ends with 3 for a dead letter
            if words[0] != "cd":
                printed.append(output)
    return printed


def last_line(output: str) -> dict[str, int]:
    found: dict[str, int] = json.loads(output.strip().splitlines()[-1])
    return found


@pytest.mark.timeout(180)
def test_the_tutorial_works_as_it_stands(tmp_path: Path, nats_server: NatsServer):
    shell = Shell(folder=tmp_path)
    shell.environment["NATS_URLS"] = nats_server.url
    chapter = chapters()
    assert list(chapter) == ["1", "2", "3", "4", "5", "6", "7"]

    for number in ("1", "2", "3"):
        carry_out(shell, chapter[number])

    placed, status, relayed, consumed, invoices = carry_out(shell, chapter["4"])
    assert "placed order 1" in placed
    assert "orders" in status
    assert last_line(relayed)["published"] == 1
    assert last_line(consumed)["handled"] == 1
    assert invoices.count("'order_id'") == 1
    assert last_line(shell.run(["python", "manage.py", "jetbridge_consume", "--until-empty"]))["handled"] == 0

    _, relayed = carry_out(shell, chapter["5"])
    assert '"published": 0' in relayed

    _, _, consumed, listed, shown, noticed = carry_out(shell, chapter["6"])
    assert '"dead": 1' in consumed
    assert "invoices.create_invoice" in listed
    assert "above the limit" in shown
    assert last_line(noticed)["published"] == 1

    _, consumed, invoices = carry_out(shell, chapter["7"])
    assert last_line(consumed)["handled"] == 1
    assert invoices.count("'order_id'") == 2
    open_now = json.loads(shell.run(["python", "manage.py", "jetbridge_dlq", "list", "--format", "json"]))
    assert open_now["count"] == 0

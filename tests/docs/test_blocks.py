"""No code block of the documentation is only text: each is run, parsed, or compared with what is there."""

from __future__ import annotations

import ast
import configparser
import json
import re
import shlex
import textwrap
import tomllib
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class
from django.core.management.base import CommandError
from django.db import models

from jetbridge import conf, registry
from jetbridge.models import DeadLetterState, InboxState, OutboxState
from testproject.settings.base import sqlite
from tests.docs.pages import ROOT, Block, all_blocks, blocks, commands, text_of

LANGUAGES = {"python", "bash", "json", "mermaid", "text", "ini"}
# Carried out whole, in a project of their own.
CARRIED_OUT = ("README.md", "docs/tutorial.md")
PLAIN_PROGRAMS = {"cd", "export", ".", "nats-server"}


def named(found: list[Block]) -> list[Any]:
    return [pytest.param(block, id=str(block)) for block in found]


def test_every_block_says_its_language():
    strange = [str(block) for block in all_blocks() if block.language not in LANGUAGES]
    assert strange == []


# --- Python --------------------------------------------------------------------------------------


@pytest.fixture
def own_registry(monkeypatch) -> Iterator[None]:
    """What a block declares is forgotten."""
    known = dict(registry.registry._handlers)
    yield
    registry.registry._handlers.clear()
    registry.registry._handlers.update(known)


def python_blocks() -> list[Block]:
    return [b for b in all_blocks("python") if str(b.page.relative_to(ROOT)) not in CARRIED_OUT]


@pytest.mark.django_db
@pytest.mark.parametrize("block", named(python_blocks()))
def test_python_runs(block, own_registry, tmp_path):
    """In the test project, as the app "orders" that publishes to "billing"; tests in a block run, too."""
    namespace: dict[str, Any] = {"__name__": "docs", "BASE_DIR": tmp_path}

    exec(compile("\n" * block.line + block.text, str(block.page), "exec"), namespace)

    if "JETBRIDGE" in namespace:
        _, faults = conf.read(namespace["JETBRIDGE"], databases={"default": {}}, base_dir=tmp_path)
        assert faults == []
    if "DATABASES" in namespace:
        assert namespace["DATABASES"]["default"]["OPTIONS"].keys() == sqlite(tmp_path)["OPTIONS"].keys()
    for name, value in namespace.items():
        if name.startswith("test_") and callable(value):
            value()


@pytest.mark.parametrize("block", named(all_blocks("python")))
def test_python_of_the_project_pages_compiles(block):
    ast.parse(block.text)


# --- Shell ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", named(all_blocks("bash")))
def test_shell_commands_and_their_options_exist(block):
    for words in commands(block):
        check_command(words)


def check_command(words: list[str]) -> None:
    """
    Raises:
        AssertionError: No such program, command, target, extra or option.
    """
    match words:
        case ["python", "manage.py", name, *arguments] | ["django-admin", name, *arguments]:
            parse_options(name, arguments)
        case ["make", *arguments]:
            for argument in arguments:
                check_make(argument)
        case ["pip", "install", requirement]:
            found = re.fullmatch(r"(?:/path/to/)?jetbridge\[(\w+)\]", requirement)
            assert found, f"pip installs something unknown: {requirement}"
            assert found[1] in project()["optional-dependencies"]
        case ["python", "-m", "venv", _]:
            pass
        case ["python", script] if script.endswith(".py"):
            assert (ROOT / script).is_file()
        case [program, *_]:
            assert program in PLAIN_PROGRAMS, f"Nobody checks {' '.join(words)!r}"


def parse_options(name: str, arguments: list[str]) -> None:
    """With the command's own parser."""
    assert name in get_commands(), f"There is no command {name!r}"
    command = load_command_class(get_commands()[name], name)
    parser: ArgumentParser = command.create_parser("manage.py", name)
    try:
        parser.parse_args(arguments)
    except (CommandError, SystemExit) as fault:
        raise AssertionError(f"{name} {' '.join(arguments)}: {fault}") from fault


def check_make(argument: str) -> None:
    makefile = text_of("Makefile")
    name, is_variable, _ = argument.partition("=")
    pattern = rf"^{name} \?=" if is_variable else rf"^{name}:.*## "
    assert re.search(pattern, makefile, re.M), f"The Makefile has no {argument!r}"


def test_commands_in_sentences_exist():
    """``manage.py jetbridge_…`` outside blocks."""
    found = {
        name
        for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for name in re.findall(r"`(jetbridge_[a-z]+)\b", page.read_text(encoding="utf-8"))
    }
    assert found - set(get_commands()) == set()


def project() -> dict[str, Any]:
    return dict(tomllib.loads(text_of("pyproject.toml"))["project"])


# --- Data and pictures ---------------------------------------------------------------------------


@pytest.mark.parametrize("block", named(all_blocks("json")))
def test_json_is_json(block):
    assert isinstance(json.loads(block.text), dict)


@pytest.mark.parametrize("block", named(all_blocks("ini")))
def test_unit_files_start_commands_that_exist(block):
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(block.text)

    start = shlex.split(unit["Service"]["ExecStart"])
    assert start[1] == "manage.py"
    parse_options(start[2], start[3:])


STATES: dict[str, type[models.TextChoices]] = {
    "OutboxState": OutboxState,
    "InboxState": InboxState,
    "DeadLetterState": DeadLetterState,
}
UNUSED = {"InboxState": {"skipped"}}


@pytest.mark.parametrize("name", STATES)
def test_state_pictures_show_the_states_of_the_tables(name):
    """No state is missing and none is invented; what the page calls unused must be said there."""
    page = ROOT / "docs/explanation/how-an-event-flows.md"
    after = page.read_text(encoding="utf-8").partition(f"<!-- states: {name} -->")[2]
    picture = re.search(r"```mermaid\n(.*?)```", after, re.S)
    assert picture is not None

    shown = {
        state
        for line in picture[1].splitlines()
        if (arrow := re.match(r" +(\S+) --> (\S+?):? ", line + " "))
        for state in arrow.groups()
    } - {"[*]"}
    assert shown == {str(state.value) for state in STATES[name]} - UNUSED.get(name, set())
    for state in UNUSED.get(name, ()):
        assert f"`{state}`" in after


def test_every_picture_is_of_a_known_kind():
    kinds = {block.text.split(maxsplit=1)[0] for block in all_blocks("mermaid")}
    assert kinds <= {"stateDiagram-v2", "flowchart", "sequenceDiagram"}


def test_printed_permissions_are_what_the_page_shows(settings):
    from jetbridge.conf import get_settings
    from jetbridge.jetstream.permissions import render

    settings.JETBRIDGE = {"APP_NAME": "orders", "DESTINATIONS": ["billing"], "SOURCES": ["billing"]}
    shown = [block.text.strip() for block in blocks(ROOT / "docs/how-to/permissions.md", "text")]

    assert shown == [render(get_settings(), "relay"), render(get_settings(), "worker")]


def test_the_sample_body_is_what_is_written():
    """The page's body, decoded and encoded again, is the same, in the same order."""
    from jetbridge import envelope
    from jetbridge.envelope import Position

    sample = blocks(ROOT / "docs/reference/wire-format.md", "json")[0].text
    compact = json.dumps(json.loads(sample), separators=(",", ":")).encode()
    place = Position(subject="orders.sync.billing", stream="s", sequence=1, stored_ns=1)

    assert envelope.encode(envelope.decode(compact, {}, place, app="billing")) == compact


def test_the_helpers_see_what_they_should(tmp_path: Path):
    """A parser of pages that finds nothing would make every test above pass."""
    page = tmp_path / "page.md"
    page.write_text(
        textwrap.dedent(
            """\
            # A title

            ```bash
            make demo
            python manage.py shell -c "
            print(1)
            "
            ```
            """
        )
    )
    [block] = blocks(page)
    assert (block.language, block.line, block.section) == ("bash", 3, "A title")
    assert [words[0] for words in commands(block)] == ["make", "python"]
    with pytest.raises(AssertionError):
        check_command(["make", "no-such-target"])
    with pytest.raises(AssertionError):
        check_command(["python", "manage.py", "jetbridge_relay", "--no-such-option"])
    assert len(all_blocks()) > 40

"""The reference lists what the code has, all of it and nothing else."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class
from django.dispatch import Signal

import jetbridge
from jetbridge import checks, signals, testing
from jetbridge.conf import OPTIONS
from jetbridge.errors import Reject, Retry, Snooze
from jetbridge.management.exit_codes import ExitCode
from tests.docs.pages import ROOT, blocks, sections, text_of

OURS = sorted(
    name for name, app in get_commands().items() if name.startswith("jetbridge_") and app == "jetbridge"
)
COMMANDS_PAGE = "docs/reference/commands.md"


# --- Settings ------------------------------------------------------------------------------------


def test_the_settings_page_is_current():
    """tools/render_settings.py would write what is committed."""
    done = subprocess.run(
        [sys.executable, "tools/render_settings.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_settings_named_in_other_pages_exist():
    """`SOME_KEY` in a sentence is a key of JETBRIDGE, or one of the few others."""
    ours = {option.key for option in OPTIONS}
    others = {
        "INSTALLED_APPS",
        "ATOMIC_REQUESTS",
        "USE_TZ",
        "BASE_DIR",
        "DISABLE_SERVER_SIDE_CURSORS",
        "INVOICE_LIMIT",
        "JET_BRIDGE",
        "SILENCED_SYSTEM_CHECKS",
    }
    unknown = {
        f"{page.name}: {name}"
        for page in (ROOT / "docs").rglob("*.md")
        for name in re.findall(r"`([A-Z]+_[A-Z_]+)`", page.read_text(encoding="utf-8"))
        if name not in ours | others
    }
    assert unknown == set()


# --- Commands ------------------------------------------------------------------------------------


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Long options of a parser and of its sub-commands, without those of every Django command."""
    found: set[str] = set()
    for action in parser._actions:
        found |= {name for name in action.option_strings if name.startswith("--")}
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                found |= options_of(sub)
    return found - EVERY_COMMAND


def parser_of(name: str) -> argparse.ArgumentParser:
    command = load_command_class("jetbridge", name)
    parser: argparse.ArgumentParser = command.create_parser("manage.py", name)
    return parser


EVERY_COMMAND = {
    "--help",
    "--version",
    "--verbosity",
    "--settings",
    "--pythonpath",
    "--traceback",
    "--no-color",
    "--force-color",
    "--skip-checks",
    "--format",
}


def test_every_command_has_its_section():
    described = {title for title in sections(COMMANDS_PAGE) if title.startswith("jetbridge_")}
    assert described == set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_every_option_is_described(name):
    """In a table row of the command's section; and no row is about an option that is gone."""
    section = sections(COMMANDS_PAGE)[name]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    described = {option for row in rows for option in re.findall(r"`(--[a-z-]+)`", row)}

    assert described == options_of(parser_of(name))


def test_every_exit_code_is_described():
    page = text_of(COMMANDS_PAGE)
    table = page[page.index("| Exit code") : page.index("## ")]
    described = {int(number) for number in re.findall(r"\b(\d+)\b(?=[,\d ]*\|)", table)}
    assert described == {int(code) for code in ExitCode}


def test_every_threshold_of_status_is_described():
    from jetbridge.management.thresholds import MEASURES

    section = sections(COMMANDS_PAGE)["jetbridge_status"]
    table = section[section.index("| Threshold") :].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)} == set(MEASURES)


def test_sample_documents_have_the_keys_of_the_commands():
    """The JSON blocks of provision, relay and consume, in the order of the page."""
    from jetbridge.consumer import process as consumer
    from jetbridge.consumer.consumer import Totals as Handled
    from jetbridge.jetstream.provision_report import ProvisionReport, StreamResult
    from jetbridge.management.commands import jetbridge_consume, jetbridge_relay
    from jetbridge.relay import process as relay
    from jetbridge.relay.relay import Totals as Published

    provisioned = ProvisionReport(
        mode="apply",
        stream=StreamResult(name="s", action="created"),
        consumers=(),
        drift=(),
        notices=(),
    )
    relayed = relay.RelayReport(totals=Published(), left=0, finished=True)
    consumed = consumer.ConsumeReport(totals=Handled(), left=0, finished=True)
    documents = [
        provisioned.document(),
        jetbridge_relay._outcome(relayed, one_shot=True).document,
        jetbridge_consume._outcome(consumed, one_shot=True).document,
    ]

    shown = [json.loads(block.text) for block in blocks(ROOT / COMMANDS_PAGE, "json")]
    assert [set(sample) - {"schema"} for sample in shown] == [set(document) for document in documents]


# --- Signals -------------------------------------------------------------------------------------


def sent_keys() -> dict[str, set[str]]:
    """Signal → the keywords of every place in the package that sends it."""
    found: dict[str, set[str]] = {}
    for file in Path(jetbridge.__path__[0]).rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match call:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="signals"), attr="send"),
                    args=[ast.Attribute(attr=name)],
                    keywords=keywords,
                ):
                    keys = {keyword.arg for keyword in keywords if keyword.arg}
                    assert found.setdefault(name, keys) == keys, f"{name} is sent with different keys"
    return found


def test_every_signal_is_listed_with_its_keys():
    rows = [
        line.split("|")
        for line in text_of("docs/reference/signals.md").splitlines()
        if line.startswith("| `")
    ]
    listed = {row[1].strip(" `"): set(re.findall(r"`(\w+)`", row[3])) for row in rows}

    assert listed == sent_keys()
    assert listed.keys() == {name for name, value in vars(signals).items() if isinstance(value, Signal)}


# --- Checks --------------------------------------------------------------------------------------


def test_every_check_is_listed():
    in_code = set(re.findall(r'id="(jetbridge\.[EW]\d+)"', inspect.getsource(checks)))
    listed = re.findall(r"^\| `(jetbridge\.[EW]\d+)`", text_of("docs/reference/checks.md"), re.M)

    assert sorted(listed) == sorted(in_code)


# --- API -----------------------------------------------------------------------------------------


def test_every_public_name_is_described():
    page = text_of("docs/reference/api.md")
    assert [
        name for name in jetbridge.__all__ if f"## {name}\n" not in page and f"| `{name}` |" not in page
    ] == []


@pytest.mark.parametrize("name", ["publish", "handler"])
def test_every_argument_is_described(name):
    described = re.findall(r"^\| `(\w+)` \|", sections("docs/reference/api.md")[name], re.M)
    assert described == list(inspect.signature(getattr(jetbridge, name)).parameters)


@pytest.mark.parametrize("name", ["publish_many", "apublish_many"])
def test_the_arguments_of_the_many_forms_are_the_same(name):
    assert list(inspect.signature(getattr(jetbridge, name)).parameters) == [
        "events",
        "to",
        "delay",
        "at",
        "using",
    ]


@pytest.mark.parametrize("verdict", [Retry, Snooze, Reject])
def test_every_verdict_is_described(verdict):
    assert verdict.__name__ in sections("docs/reference/api.md")


@pytest.mark.parametrize("kind", [jetbridge.Event, jetbridge.Delivery])
def test_every_attribute_is_described(kind):
    section = sections("docs/reference/api.md")[kind.__name__]
    own = {
        name
        for name in kind.__dataclass_fields__
        if kind is jetbridge.Event or not hasattr(jetbridge.Event, name)
    }
    assert {name for name in own if f"`{name}`" not in section} == set()


def test_the_test_helpers_are_described():
    page = text_of("docs/how-to/testing.md")
    assert [name for name in testing.__all__ if name not in page] == []
    arguments = inspect.signature(testing.deliver).parameters
    assert [name for name in arguments if name != "event" and f"`{name}`" not in page] == []


# --- Reasons -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["docs/how-to/dead-letters.md", "docs/reference/wire-format.md"])
def test_every_reason_of_a_dead_letter_is_listed(page):
    from jetbridge import retry

    reasons = {value for name, value in vars(retry).items() if name.startswith("REASON_")}
    assert {reason for reason in reasons if f"`{reason}`" not in text_of(page)} == set()

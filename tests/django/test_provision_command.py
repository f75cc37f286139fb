"""``manage.py jetbridge_provision``: output, exit codes, and the base that all commands share."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from testproject.processes import free_port
from tests.servers import NatsServer

ROOT = Path(__file__).resolve().parents[2]


class Command:
    """``jetbridge_provision`` of one app, in this process."""

    def __init__(self, url: str) -> None:
        tail = uuid.uuid4().hex[:8]
        self.app, self.peer = f"orders-{tail}", f"billing-{tail}"
        self.settings: dict[str, Any] = {
            "APP_NAME": self.app,
            "NATS_URLS": [url],
            "DESTINATIONS": [self.peer],
            "SOURCES": [self.peer],
        }

    def of_peer(self) -> dict[str, Any]:
        keys = {"APP_NAME": self.peer, "DESTINATIONS": [self.app], "SOURCES": [self.app]}
        return {**self.settings, **keys}

    def __call__(self, *arguments: str, settings: dict[str, Any] | None = None) -> tuple[int, str]:
        """Exit code and stdout."""
        stdout = io.StringIO()
        with override_settings(JETBRIDGE=settings or self.settings):
            try:
                call_command("jetbridge_provision", *arguments, stdout=stdout)
            except SystemExit as ended:
                return int(ended.code or 0), stdout.getvalue()
        return 0, stdout.getvalue()

    def error(self, *arguments: str, settings: dict[str, Any] | None = None) -> CommandError:
        """The error it ends with."""
        with pytest.raises(CommandError) as raised:
            self(*arguments, settings=settings)
        return raised.value


@pytest.fixture
def provision(nats_server: NatsServer) -> Command:
    return Command(nats_server.url)


def test_the_document_has_the_keys_of_the_interface(provision: Command) -> None:
    code, text = provision("--format", "json")
    document = json.loads(text)

    assert code == 3
    assert document == {
        "schema": 1,
        "stream": {"name": f"jetbridge-{provision.app}", "action": "created"},
        "consumers": [
            {
                "stream": f"jetbridge-{provision.peer}",
                "name": f"{provision.app}-workers",
                "action": "missing",
            }
        ],
        "drift": [
            {
                "what": f"stream jetbridge-{provision.peer}",
                "wanted": f"takes {provision.peer}.sync.{provision.app}",
                "found": "missing",
            }
        ],
        "warnings": [],
    }


def test_two_services_in_either_order_end_at_zero(provision: Command) -> None:
    codes = [provision()[0], provision(settings=provision.of_peer())[0], provision()[0], provision()[0]]

    assert codes == [3, 0, 0, 0]


def test_plan_says_and_check_demands(provision: Command) -> None:
    provision(settings=provision.of_peer())

    planned, checked, done, checked_again = (
        provision("--plan"),
        provision("--check"),
        provision(),
        provision("--check"),
    )

    assert [one[0] for one in (planned, checked, done, checked_again)] == [0, 3, 0, 0]
    assert f"stream jetbridge-{provision.app}: create\n" in planned[1]
    assert f"stream jetbridge-{provision.app}: created\n" in done[1]
    assert f"stream jetbridge-{provision.app}: unchanged\n" in checked_again[1]


def test_plan_shows_old_and_new_values(provision: Command) -> None:
    provision(settings=provision.of_peer())
    provision()

    code, text = provision("--plan", settings={**provision.settings, "MAX_ACK_PENDING": 400})

    assert code == 0
    assert "  max_ack_pending: 1000 -> 400\n" in text


def test_a_problem_says_what_to_do(provision: Command) -> None:
    code, text = provision()

    assert code == 3
    assert f"PROBLEM stream jetbridge-{provision.peer}: " in text
    assert "Provision its publisher, then run this again, or use --wait." in text


def test_waiting_ends_with_the_report(provision: Command, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    code, text = provision("--wait", "0.6", "--format", "json")

    assert code == 3
    assert time.monotonic() - started >= 0.6
    assert json.loads(text)["consumers"][0]["action"] == "missing"
    assert f"Waiting for stream jetbridge-{provision.peer}" in capsys.readouterr().err


def test_an_unreachable_broker_is_exit_4_within_seconds() -> None:
    """Also an error is one document on stdout."""
    provision = Command(f"nats://user:geheim@127.0.0.1:{free_port()}")
    stdout = io.StringIO()
    started = time.monotonic()

    with override_settings(JETBRIDGE=provision.settings), pytest.raises(CommandError) as raised:
        call_command("jetbridge_provision", "--format", "json", stdout=stdout)

    assert raised.value.returncode == 4
    assert time.monotonic() - started < 8
    assert json.loads(stdout.getvalue()) == {"schema": 1, "error": {"code": 4, "text": str(raised.value)}}
    assert "NATS cannot be reached" in str(raised.value)
    assert "geheim" not in str(raised.value)


def test_an_embedded_broker_that_is_not_running_names_the_remedy(tmp_path: Path) -> None:
    provision = Command("unused")
    started = time.monotonic()

    error = provision.error(
        settings={"APP_NAME": "orders", "NATS_URLS": "embedded", "EMBEDDED_DIR": str(tmp_path)}
    )

    assert error.returncode == 4
    assert "jetbridge_dev" in str(error)
    assert time.monotonic() - started < 2


def test_settings_faults_are_exit_2_and_all_named() -> None:
    error = Command("unused").error(settings={"APP_NAME": "no spaces", "LEASE_S": "long", "LEASES": 1})

    assert error.returncode == 2
    assert {
        word
        for word in ("APP_NAME", "LEASE_S", "LEASES")
        if f'"{word}"' in str(error) or f"'{word}'" in str(error)
    } == {
        "APP_NAME",
        "LEASE_S",
        "LEASES",
    }


@pytest.mark.parametrize("role", ["relay", "worker", "admin"])
def test_permissions_are_printed_without_a_server(role: str) -> None:
    provision = Command(f"nats://127.0.0.1:{free_port()}")

    code, text = provision("--print-permissions", role)
    _, document = provision("--print-permissions", role, "--format", "json")

    assert code == 0
    assert f"user: {provision.app}_{role}" in text
    parsed = json.loads(document)
    assert (parsed["schema"], parsed["role"]) == (1, role)
    publish, subscribe = (parsed["permissions"][name] for name in ("publish", "subscribe"))
    own = [one for one in subscribe if not one.startswith("$JS.EVENT.ADVISORY.CONSUMER.")]
    assert own == [f"_INBOX_{provision.app}_{role}.>"]
    assert (len(subscribe) > 1) is (role == "worker")
    assert all(f'"{subject}"' in text for subject in publish + subscribe)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--wait", "soon"], "expected a number of seconds from 0 to 86400, got 'soon'"),
        (["--print-permissions", "root"], "invalid choice: 'root'"),
        (["--plan", "--check"], "not allowed with argument"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_usage_faults_are_exit_2(
    arguments: list[str], words: str, make_services: Callable[[str], dict[str, str]]
) -> None:
    result = manage(make_services("nats://127.0.0.1:1"), "jetbridge_provision", *arguments)

    assert result.returncode == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_the_command_line_prints_one_document_and_logs_to_stderr(
    nats_server: NatsServer,
    make_services: Callable[[str], dict[str, str]],
    make_nats_server: Callable[..., NatsServer],
) -> None:
    """As a deploy job sees it: a real process, its streams and its exit code."""
    environment = make_services(make_nats_server().url)

    result = manage(environment, "jetbridge_provision", "--format", "json")

    assert result.returncode == 3, result.stderr
    assert json.loads(result.stdout)["stream"] == {"name": "jetbridge-orders", "action": "created"}
    assert "Connected to" in result.stderr


def manage(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "manage.py", *arguments, "--settings", "testproject.settings.orders"]
    environment = {**os.environ, **environment}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )

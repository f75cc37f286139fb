"""``manage.py check`` with jetbridge installed: all faults at once, without a database and without a broker."""

from __future__ import annotations

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings


def check(*arguments: str, **settings: object) -> str:
    """The text of the failed check, or ``""``. Only ours: from Django 6.1 on, others ask the database."""
    with override_settings(**settings):
        try:
            call_command("check", "--tag", "jetbridge", *arguments)
        except SystemCheckError as error:
            return str(error)
    return ""


def test_sound_settings_pass():
    assert check(JETBRIDGE={"APP_NAME": "orders"}) == ""


def test_all_faults_are_listed_with_hints():
    text = check(JETBRIDGE={"APP_NAME": "a b", "LEASE_S": 0, "ON_REFUSED": "cry", "NATS_URL": "x"})

    assert text.count("(jetbridge.E001)") == 4
    assert "Did you mean 'NATS_URLS'?" in text
    assert "HINT: jetbridge.conf.OPTIONS lists every key" in text


def test_a_missing_setting_is_named():
    assert 'JETBRIDGE must be a dict with at least "APP_NAME"' in check(JETBRIDGE=None)


def test_the_embedded_server_is_refused_for_deployment():
    keys = {"APP_NAME": "orders", "NATS_URLS": "embedded"}

    assert check(JETBRIDGE=keys) == ""
    assert "(jetbridge.E010)" in check("--deploy", "--fail-level", "ERROR", JETBRIDGE=keys)


def test_a_process_says_the_same(processes):
    """As a deploy job sees it; the database does not exist."""
    process = processes.start(
        "check",
        "--tag",
        "jetbridge",
        keys={"APP_NAME": "no spaces", "STREAMS": 1},
        databases={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/nowhere/x.sqlite3"}},
    )

    assert process.wait() == 1
    assert process.log.count("(jetbridge.E001)") == 2


@pytest.mark.parametrize("mode", [None, "DEFERRED"])
def test_sqlite_without_an_immediate_lock_is_refused(processes, mode):
    options = {} if mode is None else {"transaction_mode": mode}
    process = processes.start(
        "check",
        "--tag",
        "jetbridge",
        keys={"APP_NAME": "orders"},
        databases={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": "/nowhere/x.sqlite3",
                "OPTIONS": options,
            }
        },
    )

    assert process.wait() == 1
    assert "(jetbridge.E002)" in process.log
    assert "(jetbridge.E003)" in process.log


def test_a_command_without_tables_says_migrate(processes, tmp_path):
    """Forgotten migrations are one line with the remedy. Red if the fault is not told from an outage."""
    options = {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL;"}
    process = processes.start(
        "jetbridge_dlq",
        "list",
        keys={"APP_NAME": "orders"},
        databases={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(tmp_path / "empty.sqlite3"),
                "OPTIONS": options,
            }
        },
    )

    assert process.wait() == 1
    assert "Run: manage.py migrate" in process.log
    assert "Traceback" not in process.log

"""System checks: each finds its fault, says what to do, and opens no connection."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from django.test import override_settings

from jetbridge import checks, conf
from jetbridge.registry import handler
from tests.worlds import no_handlers


@pytest.fixture(autouse=True)
def _empty_registry() -> Iterator[None]:
    with no_handlers():
        yield


def settings(**keys) -> conf.Settings:
    with override_settings(JETBRIDGE={"APP_NAME": "orders", **keys}):
        return conf.get_settings()


def database(vendor: str, options: dict[str, object], name: str = "/x.sqlite3"):
    return SimpleNamespace(
        vendor=vendor, alias="default", display_name=vendor, settings_dict={"OPTIONS": options, "NAME": name}
    )


def found(connection, **keys) -> list[str]:
    return [
        str(message.id).removeprefix("jetbridge.")
        for message in checks._check_database(connection, settings(**keys))
    ]


GOOD = {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL;"}


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (GOOD, []),
        ({**GOOD, "transaction_mode": "immediate"}, []),
        ({**GOOD, "init_command": "pragma JOURNAL_MODE = wal;"}, []),
        ({**GOOD, "transaction_mode": "DEFERRED"}, ["E002"]),
        ({**GOOD, "transaction_mode": None}, ["E002"]),
        ({**GOOD, "init_command": "PRAGMA synchronous=NORMAL;"}, ["E003"]),
        ({}, ["E002", "E003"]),
    ],
)
def test_sqlite_needs_wal_and_an_immediate_lock(options, ids):
    assert found(database("sqlite", options)) == ids


@pytest.mark.parametrize("name", [":memory:", "file:memorydb_default?mode=memory&cache=shared"])
def test_a_database_in_memory_has_no_wal(name):
    assert found(database("sqlite", {"transaction_mode": "IMMEDIATE"}, name)) == []


@pytest.mark.parametrize(
    ("pool", "ids"),
    [
        (None, []),
        ({"max_size": 11}, []),
        ({"max_size": 10}, ["W001"]),
        (True, ["W001"]),
        ({"min_size": 4}, ["W001"]),
    ],
)
def test_a_pool_must_have_a_connection_for_every_thread(pool, ids):
    assert found(database("postgresql", {"pool": pool} if pool else {}), CONCURRENCY=8) == ids


def test_an_unknown_database_is_named():
    assert found(database("oracle", {})) == ["E004"]


def test_handlers_that_can_never_run_are_found():
    handler("a.b", using="elsewhere", name="t.using")(lambda event: None)
    handler("a.b", source="stranger", name="t.source")(lambda event: None)

    messages = checks._check_handlers(settings(SOURCES=["billing"]))

    assert [message.id for message in messages] == ["jetbridge.E005", "jetbridge.W002"]
    assert "'elsewhere'" in messages[0].msg
    assert "'stranger'" in messages[1].msg
    assert all("test_checks.py" in str(message.hint) for message in messages)


def test_every_fault_of_the_setting_is_a_message_of_its_own():
    with override_settings(JETBRIDGE={"LEASE_S": "x", "NOPE": 1}):
        messages = checks.check_settings(None)

    assert [message.id for message in messages] == ["jetbridge.E001"] * 3
    assert all(message.hint for message in messages)


def test_the_embedded_server_is_for_development():
    with override_settings(JETBRIDGE={"APP_NAME": "orders", "NATS_URLS": "embedded"}):
        assert [message.id for message in checks.check_deployment(None)] == ["jetbridge.E010"]
    with override_settings(JETBRIDGE={"APP_NAME": "orders"}):
        assert checks.check_deployment(None) == []


@pytest.mark.parametrize("name", ["JET_BRIDGE", "JETBRIDGE_CONFIG"])
def test_a_near_miss_of_the_name_is_found(name):
    with override_settings(**{name: {}}):
        assert [message.id for message in checks.check_near_misses(None)] == ["jetbridge.W003"]
    assert checks.check_near_misses(None) == []


def test_no_check_opens_a_connection():
    """They run while the database is away; pytest-django fails any query of a test without the mark."""
    assert [message.id for message in checks.check_settings(None)] in ([], ["jetbridge.W004"])

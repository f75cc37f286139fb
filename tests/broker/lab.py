"""Short words for the adapter's tests: a connection, a stream, a durable, a puller that runs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from jetbridge.jetstream.connection import Connection, ConnectionOptions
from jetbridge.jetstream.publisher import Outgoing
from jetbridge.jetstream.puller import Incoming, Puller

_numbers = itertools.count(1)


def options(url: str, *more: str, **changes: object) -> ConnectionOptions:
    """Options against ``url`` with an inbox ``_INBOX_t_relay``."""
    wanted: dict[str, object] = {"urls": (url, *more), "name": "t", "inbox_prefix": "_INBOX_t_relay"}
    return ConnectionOptions(**{**wanted, **changes})  # type: ignore[arg-type]


@asynccontextmanager
async def connected(url: str, *more: str, **changes: object) -> AsyncIterator[Connection]:
    """A connection that is ready."""
    connection = Connection(options(url, *more, **changes))
    await connection.start()
    try:
        assert await connection.ready(5), connection.last_error
        yield connection
    finally:
        await connection.close()


def unique(prefix: str = "s") -> str:
    return f"{prefix}{next(_numbers)}"


async def make_stream(connection: Connection, name: str, **config: object) -> None:
    """A work queue on ``<name>.>``."""
    wanted = {"name": name, "subjects": [f"{name}.>"], "retention": "workqueue", "storage": "file"}
    answer = await connection.api(f"STREAM.CREATE.{name}", {**wanted, "discard": "new", **config})
    assert "error" not in answer, answer


async def make_durable(connection: Connection, stream: str, name: str = "w", **config: object) -> None:
    wanted = {"name": name, "durable_name": name, "ack_policy": "explicit", "ack_wait": 2_000_000_000}
    body = {"stream_name": stream, "config": {**wanted, **config}}
    answer = await connection.api(f"CONSUMER.CREATE.{stream}.{name}", body)
    assert "error" not in answer, answer


async def stored(connection: Connection, stream: str) -> int:
    """Messages in the stream."""
    answer = await connection.api(f"STREAM.INFO.{stream}")
    return answer["state"]["messages"]  # type: ignore[index, no-any-return]


async def bodies(connection: Connection, stream: str) -> list[bytes]:
    """Bodies in the stream in order, read without a consumer."""
    import base64

    found: list[bytes] = []
    sequence = 1
    while True:
        answer = await connection.api(f"STREAM.MSG.GET.{stream}", {"seq": sequence, "next_by_subj": ">"})
        if "error" in answer:
            return found
        message: dict[str, str] = answer["message"]  # type: ignore[assignment]
        found.append(base64.b64decode(message.get("data", "")))
        sequence = int(message["seq"]) + 1


async def ack_pending(connection: Connection, stream: str, name: str = "w") -> int:
    answer = await connection.api(f"CONSUMER.INFO.{stream}.{name}")
    return answer["num_ack_pending"]  # type: ignore[return-value]


def message(
    subject: str, body: bytes | str = b"x", *, id: str = "", lane: object = None, **headers: str
) -> Outgoing:
    headers = {**({"Nats-Msg-Id": id} if id else {}), **headers}
    data = body if isinstance(body, bytes) else body.encode()
    return Outgoing(subject=subject, headers=headers, body=data, lane=lane)


@asynccontextmanager
async def pulling(
    connection: Connection,
    stream: str,
    deliver: Callable[[Incoming], None],
    *,
    credit: Callable[[], int] = lambda: 100,
    consumer: str = "w",
    expires_s: float = 5.0,
    heartbeat_s: float = 0.5,
    max_batch: int = 256,
) -> AsyncIterator[Puller]:
    """A puller at work; cut off at the end (tests of stopping stop it themselves)."""
    puller = Puller(
        connection,
        stream=stream,
        consumer=consumer,
        credit=credit,
        deliver=deliver,
        expires_s=expires_s,
        heartbeat_s=heartbeat_s,
        max_batch=max_batch,
    )
    task = asyncio.create_task(puller.run())
    try:
        yield puller
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

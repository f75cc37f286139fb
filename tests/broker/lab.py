"""Short words for the adapter's tests: a connection, a stream, a durable, a puller that runs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from jetbridge.jetstream.connection import Connection, ConnectionOptions
from jetbridge.jetstream.publisher import Outgoing, Result, Stored, WindowPublisher
from jetbridge.jetstream.puller import Incoming, Puller
from tests.servers import NatsServer
from tests.waiting import eventually

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


async def make_durable(connection: Connection, stream: str, **config: object) -> None:
    """A pull consumer ``w`` of the whole stream, with explicit acks."""
    name = "w"
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


class Sink:
    """Collects deliveries; ``free`` slots are given back by hand or, with ``auto``, at once with an ack."""

    def __init__(self, connection, *, free: int = 1_000_000, auto: bool = False) -> None:
        self.connection = connection
        self.free = free
        self.auto = auto
        self.got: list[Incoming] = []

    def credit(self) -> int:
        return self.free

    def deliver(self, incoming: Incoming) -> None:
        self.got.append(incoming)
        if self.auto:
            self.connection.send(incoming.reply, b"+ACK")
        else:
            self.free -= 1

    @property
    def bodies(self) -> list[bytes]:
        return [incoming.body for incoming in self.got]


@asynccontextmanager
async def queue(server, *, messages: int = 0, **durable: int):
    """A connection, a fresh stream with its durable ``w``, and a publisher."""
    async with connected(server.url) as connection:
        s = unique("q")
        await make_stream(connection, s)
        await make_durable(connection, s, **durable)
        publisher = WindowPublisher(connection)
        await put(publisher, s, messages)
        yield connection, s, publisher


async def put(publisher: WindowPublisher, stream: str, count: int) -> None:
    results = await publisher.publish([message(f"{stream}.a", str(n)) for n in range(count)], deadline_s=10)
    assert all(isinstance(result, Stored) for result in results), results[:3]


def kinds(results: list[Result]) -> list[str]:
    return [type(result).__name__ for result in results]


def freeze(server: NatsServer) -> None:
    """SIGSTOP, and wait until each of its threads has stopped: on a busy machine one may still answer a moment."""
    server.sigstop()
    tasks = Path(f"/proc/{server.pid}/task")
    if tasks.exists():
        eventually(
            lambda: all(
                stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in tasks.glob("*/stat")
            ),
            interval_s=0.001,
        )

"""
The NATS side of a run: one nats-server, or three that keep the stream three times (R3), and questions to it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nats
import nats.errors
from nats.aio.client import Client

from testproject.nats_server import NatsServer
from testproject.processes import free_port
from tests.chaos.terms import TERMS

T = TypeVar("T")
READY_S = 30.0
# The shortest that the server accepts; with the short grace it lets its clients go within seconds.
_LAME_DUCK = 'lame_duck_duration: "30s"\nlame_duck_grace_period: "1s"\n'


class BrokerTrouble(RuntimeError):
    """The servers did not come up, or no one answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """
    What is left in the stream.

    Attributes:
        left: Event ids of messages that nobody has settled.
        notices: Dead letter notices, which nobody reads.
        pending, ack_pending: Of all durables together: not yet delivered, delivered and not acked.
    """

    left: tuple[str, ...]
    notices: int
    pending: int
    ack_pending: int


class Broker:
    """
    Args:
        folder: Each server has a folder of its own in it.
        size: 1, or 3 for a cluster.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.size = size
        routes = [free_port() for _ in range(size)]
        self.nodes = [
            NatsServer(folder / f"nats-{number}", extra=_LAME_DUCK + _cluster(number, routes))
            for number in range(size)
        ]

    @property
    def urls(self) -> str:
        return ",".join(node.url for node in self.nodes)

    @property
    def replicas(self) -> int:
        return self.size

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        self.wait_until_ready()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def wait_until_ready(self, timeout_s: float = READY_S) -> None:
        """
        Until JetStream answers; a cluster elects its leader first.

        Raises:
            BrokerTrouble: It did not, in time.
        """

        async def main() -> None:
            async with asyncio.timeout(timeout_s):
                while True:
                    with contextlib.suppress(BrokerTrouble, nats.errors.Error, OSError, TimeoutError):
                        if await self._is_ready():
                            return
                    await asyncio.sleep(0.1)

        try:
            asyncio.run(main())
        except TimeoutError:
            raise BrokerTrouble(f"JetStream did not answer within {timeout_s:g} s.") from None

    async def _is_ready(self) -> bool:
        async def ask(client: Client) -> bool:
            answer = await client.request("$JS.API.INFO", b"", timeout=1.0)
            return "error" not in json.loads(answer.data)

        return await self._with_client(ask)

    def leader(self) -> NatsServer | None:
        """The server that leads the stream; ``None`` while there is none."""
        if self.size == 1:
            return self.nodes[0]
        with contextlib.suppress(BrokerTrouble):
            name = self.api(f"STREAM.INFO.{TERMS.stream}").get("cluster", {}).get("leader")
            return next((node for node in self.nodes if node.folder.name == name), None)
        return None

    def api(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """
        One call of the JetStream API.

        Raises:
            BrokerTrouble: No answer, or an error.
        """

        async def main(client: Client) -> dict[str, Any]:
            return await _api(client, subject, body)

        return self._run(main)

    def state(self) -> StreamState:
        """
        Raises:
            BrokerTrouble: No answer, or an error.
        """

        async def main(client: Client) -> StreamState:
            info = await _api(client, f"STREAM.INFO.{TERMS.stream}", {"subjects_filter": ">"})
            subjects: dict[str, int] = info["state"].get("subjects") or {}
            notices = sum(n for subject, n in subjects.items() if subject.endswith(".dlq"))
            durables = [await _api(client, f"CONSUMER.INFO.{TERMS.stream}.{name}") for name in TERMS.durables]
            return StreamState(
                left=tuple(await _left(client)) if sum(subjects.values()) > notices else (),
                notices=notices,
                pending=sum(durable["num_pending"] for durable in durables),
                ack_pending=sum(durable["num_ack_pending"] for durable in durables),
            )

        return self._run(main)

    def _run(self, use: Callable[[Client], Awaitable[T]]) -> T:
        async def main() -> T:
            async with asyncio.timeout(10.0):
                return await self._with_client(use)

        try:
            return asyncio.run(main())
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise BrokerTrouble(f"The broker does not answer: {error!r}") from error

    async def _with_client(self, use: Callable[[Client], Awaitable[T]]) -> T:
        async def quiet(error: Exception) -> None:
            """Refused connections are this program's everyday life."""

        urls = [node.url for node in self.nodes if node.running]
        if not urls:
            raise BrokerTrouble("No server is running.")
        client = await nats.connect(
            urls, allow_reconnect=False, connect_timeout=1, max_reconnect_attempts=1, error_cb=quiet
        )
        try:
            return await use(client)
        finally:
            await client.close()


async def _api(client: Client, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    answer = await client.request(f"$JS.API.{subject}", json.dumps(body or {}).encode(), timeout=3.0)
    document: dict[str, Any] = json.loads(answer.data)
    if "error" in document:
        raise BrokerTrouble(f"{subject}: {document['error']}")
    return document


async def _left(client: Client, most: int = 1_000) -> list[str]:
    """Event ids of unsettled messages, oldest first; read by sequence, so nothing is consumed."""
    found: list[str] = []
    sequence = 1
    while len(found) < most:
        request = {"seq": sequence, "next_by_subj": f"{TERMS.app}.sync.{TERMS.app}.*"}
        try:
            message = (await _api(client, f"STREAM.MSG.GET.{TERMS.stream}", request))["message"]
        except BrokerTrouble:
            break
        found.append(str(json.loads(base64.b64decode(message["data"]))["event_id"]))
        sequence = message["seq"] + 1
    return found


def _cluster(number: int, routes: list[int]) -> str:
    if len(routes) == 1:
        return ""
    others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
    return f'cluster {{ name: chaos, listen: "127.0.0.1:{routes[number]}", routes: [{others}] }}\n'

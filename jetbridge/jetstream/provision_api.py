"""The few calls of the JetStream API that provisioning reads with, and the shapes of their answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from jetbridge.errors import BrokerUnreachable
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.denials import PermissionDenied
from jetbridge.jetstream.provision_spec import Config, StreamFound, filters_of

Answer = Mapping[str, object]

# Stream not found, consumer not found.
ABSENT: Final = (10059, 10014)
# JetStream is off, is off for this account, or its cluster has no leader.
UNAVAILABLE: Final = (503, 10008, 10039, 10076)


class JetStreamApi:
    """
    Raw calls on one connection.

    Every method raises ``BrokerUnreachable`` when there is no answer or no JetStream, and ``PermissionDenied``,
    which names the subject, unless it says otherwise.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # Once for all: between two connections it is unknown, and what is unknown would be left out of a request.
        self.version = connection.server_version
        if not any(self.version):
            raise BrokerUnreachable(connection.last_error or "Not connected.")

    async def call(self, subject: str, body: Answer | None = None) -> Answer:
        """Any call; ``subject`` without ``$JS.API``. An ``error`` in the answer is the caller's to look at."""
        answer = await self._connection.api(subject, body)
        code, text = error_of(answer)
        if code in UNAVAILABLE:
            raise BrokerUnreachable(
                f"JetStream does not work on this server or account: {text} (error {code})."
            )
        return answer

    async def stream(self, name: str, count: str = "") -> StreamFound | None:
        """A stream, ``None`` if it is not there. Messages are counted per subject below ``count``."""
        answer = await self.call(f"STREAM.INFO.{name}", {"subjects_filter": count} if count else None)
        if self._absent(answer, f"stream {name}"):
            return None
        return found_stream(answer)

    async def consumer(self, stream: str, name: str) -> Config | None:
        """Configuration of a durable, ``None`` if it is not there."""
        answer = await self.call(f"CONSUMER.INFO.{stream}.{name}")
        return None if self._absent(answer, f"durable {name}") else config_of(answer)

    async def consumers(self, stream: str) -> dict[str, tuple[str, ...]] | None:
        """Filters of the stream's consumers by name, ``None`` where this user may not list them."""
        found: dict[str, tuple[str, ...]] = {}
        while True:
            try:
                answer = await self.call(f"CONSUMER.LIST.{stream}", {"offset": len(found)})
            except PermissionDenied:
                return None
            page = answer.get("consumers")
            if not isinstance(page, list) or not page:
                return found
            for one in page:
                found[str(one["name"])] = filters_of(config_of(one))
            total = answer.get("total")
            if not isinstance(total, int) or len(found) >= total:
                return found

    async def streams_with(self, subject: str) -> list[str]:
        """Streams that take ``subject``; empty where this user may not ask."""
        try:
            answer = await self.call("STREAM.NAMES", {"subject": subject})
        except PermissionDenied:
            return []
        names = answer.get("streams")
        return [str(one) for one in names] if isinstance(names, list) else []

    def _absent(self, answer: Answer, what: str) -> bool:
        code, text = error_of(answer)
        if code and code not in ABSENT:
            raise BrokerUnreachable(f"Reading {what} failed: {text} (error {code}).")
        return bool(code)


def error_of(answer: Answer) -> tuple[int, str]:
    """Code and text of an API error; ``(0, "")`` for a good answer."""
    error = answer.get("error")
    if not isinstance(error, Mapping):
        return 0, ""
    return int(error.get("err_code") or error.get("code") or 500), str(error.get("description", ""))


def config_of(answer: Answer) -> Config:
    """The configuration in an answer."""
    config = answer.get("config")
    return config if isinstance(config, Mapping) else {}


def found_stream(info: Answer) -> StreamFound:
    """A STREAM.INFO answer."""
    state, cluster = info.get("state"), info.get("cluster")
    counts = state.get("subjects") if isinstance(state, Mapping) else None
    return StreamFound(
        config=config_of(info),
        messages={str(key): int(value) for key, value in counts.items()}
        if isinstance(counts, Mapping)
        else {},
        clustered=isinstance(cluster, Mapping) and bool(cluster.get("name")),
    )

"""
The view of NATS: INFO of the own stream and the own durables, nothing else.

Whoever looks may have the permissions of any role, or none: what cannot be read is ``None``, never an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from jetbridge import topology
from jetbridge.conf import Settings
from jetbridge.errors import JetbridgeError
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.options import options_for
from jetbridge.monitor.views import ConsumerView, NatsView, StreamView

# Each role may use only its own reply inbox, and status cannot know whose credentials it was given.
ROLES: Final = ("worker", "relay", "admin")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Durable:
    stream: str
    name: str


async def look(settings: Settings, *, timeout_s: float) -> NatsView:
    """
    Ask the broker.

    Args:
        timeout_s: Longest wait for the connection, and again for the answers. Never raises for either.
    """
    trouble = ""
    for role in ROLES:
        connection = Connection(options_for(settings, role))
        await connection.start()
        try:
            if await connection.ready(timeout_s):
                return await _ask(connection, settings, timeout_s)
            trouble = connection.denied or connection.last_error or f"no answer within {timeout_s:g} s"
            if not connection.denied:
                break
        finally:
            await connection.close()
    return _unreachable(settings, trouble)


async def _ask(connection: Connection, settings: Settings, timeout_s: float) -> NatsView:
    version = ".".join(map(str, connection.server_version))
    durables = own_durables(settings)
    stream, *consumers = await asyncio.gather(
        _info(connection, f"STREAM.INFO.{settings.stream}", timeout_s),
        *(_info(connection, f"CONSUMER.INFO.{one.stream}.{one.name}", timeout_s) for one in durables),
    )
    state = stream.get("state")
    return NatsView(
        reachable=True,
        server_version=version,
        streams=[
            StreamView(
                name=settings.stream,
                messages=_number(state, "messages") if isinstance(state, Mapping) else None,
            )
        ],
        consumers=[
            ConsumerView(
                stream=one.stream,
                name=one.name,
                pending=_number(info, "num_pending"),
                ack_pending=_number(info, "num_ack_pending"),
                redelivered=_number(info, "num_redelivered"),
            )
            for one, info in zip(durables, consumers, strict=True)
        ],
    )


def own_durables(settings: Settings) -> list[_Durable]:
    """One per source, or one per partition of it."""
    return [
        _Durable(stream=source.stream, name=topology.durable_name(settings.app_name, number))
        for source in settings.sources.values()
        for number in ([None] if source.partitions == 1 else range(source.partitions))
    ]


async def _info(connection: Connection, subject: str, timeout_s: float) -> Mapping[str, object]:
    """An INFO answer; empty if there is none, if this user may not ask, or if the thing is not there."""
    try:
        answer = await connection.api(subject, timeout_s=timeout_s)
    except (JetbridgeError, TimeoutError, ValueError):
        return {}
    return {} if "error" in answer else answer


def _number(info: Mapping[str, object], name: str) -> int | None:
    value = info.get(name)
    return value if isinstance(value, int) else None


def _unreachable(settings: Settings, trouble: str) -> NatsView:
    return NatsView(
        reachable=False,
        server_version=None,
        streams=[StreamView(name=settings.stream, messages=None)],
        consumers=[
            ConsumerView(stream=one.stream, name=one.name, pending=None, ack_pending=None, redelivered=None)
            for one in own_durables(settings)
        ],
        trouble=trouble,
    )

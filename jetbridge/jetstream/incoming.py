"""A delivered message and the reply subject that says everything about its delivery. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from jetbridge.jetstream.wire import read_headers

ACK_PREFIX: Final = "$JS.ACK."
_OLD_TOKENS: Final = 9
_NEW_TOKENS: Final = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """
    One delivery.

    Args:
        reply: Where its ack goes.
        headers: Names in their original case.
        sequence: In the stream. Repeats when the stream is created again; together with ``stored_ns`` it does not.
        consumer_sequence: Grows by one with each delivery of the durable. A jump means deliveries we did not see.
        delivered: 1 on the first delivery.
        stored_ns: When the stream stored it, nanoseconds since 1970.
        pending: Messages of the durable that were never delivered yet.
    """

    subject: str
    reply: str
    headers: Mapping[str, str]
    body: bytes
    stream: str
    consumer: str
    sequence: int
    consumer_sequence: int
    delivered: int
    stored_ns: int
    pending: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryInfo:
    """What a reply subject says."""

    stream: str
    consumer: str
    delivered: int
    sequence: int
    consumer_sequence: int
    stored_ns: int
    pending: int


def read_reply(reply: str) -> DeliveryInfo:
    """
    Parse ``$JS.ACK.<stream>.<consumer>.<delivered>.<seq>.<consumer seq>.<ns>.<pending>``, or the second format, which
    has domain and account hash before the stream and may have one more token at its end.

    Raises:
        ValueError: It is neither.
    """
    tokens = reply.split(".")
    if not reply.startswith(ACK_PREFIX) or (len(tokens) != _OLD_TOKENS and len(tokens) < _NEW_TOKENS):
        raise ValueError(f"{reply[:200]!r} is not the reply subject of a JetStream delivery.")
    at = 2 if len(tokens) == _OLD_TOKENS else 4
    stream, consumer, delivered, sequence, consumer_sequence, stored_ns, pending = tokens[at : at + 7]
    return DeliveryInfo(
        stream=stream,
        consumer=consumer,
        delivered=int(delivered),
        sequence=int(sequence),
        consumer_sequence=int(consumer_sequence),
        stored_ns=int(stored_ns),
        pending=int(pending),
    )


def read_incoming(subject: str, reply: str, body: bytes, headers: bytes) -> Incoming:
    """
    A delivery from its four parts on the wire.

    Raises:
        ValueError: As :func:`read_reply`.
    """
    info = read_reply(reply)
    return Incoming(
        subject=subject,
        reply=reply,
        headers=read_headers(headers) if headers else {},
        body=body,
        stream=info.stream,
        consumer=info.consumer,
        sequence=info.sequence,
        consumer_sequence=info.consumer_sequence,
        delivered=info.delivered,
        stored_ns=info.stored_ns,
        pending=info.pending,
    )

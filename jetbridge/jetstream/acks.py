"""
Settling a delivery. Plain publishes: a lost ack costs one redelivery, which the inbox recognises.

Each returns whether the frame was queued on a living connection, and never raises.
"""

from __future__ import annotations

from typing import Final

from jetbridge.jetstream.connection import Connection

MAX_REASON_CHARS: Final = 512


async def ack(connection: Connection, reply: str) -> bool:
    """Done. Send it only after the commit it stands for."""
    return _settle(connection, reply, b"+ACK")


async def nak(connection: Connection, reply: str, delay_s: float | None = None) -> bool:
    """Deliver again, at once or after ``delay_s``; meanwhile it occupies ``max_ack_pending``."""
    if not delay_s or delay_s <= 0:
        return _settle(connection, reply, b"-NAK")
    return _settle(connection, reply, b'-NAK {"delay": %d}' % int(delay_s * 1e9))


async def term(connection: Connection, reply: str, reason: str) -> bool:
    """Never deliver again; ``reason`` goes into the server's advisory. On a work queue this deletes the message."""
    text = " ".join(reason.split())[:MAX_REASON_CHARS]
    return _settle(connection, reply, b"+TERM %b" % text.encode("ascii", "replace"))


async def in_progress(connection: Connection, reply: str) -> bool:
    """Start ``ack_wait`` again."""
    return _settle(connection, reply, b"+WPI")


def _settle(connection: Connection, reply: str, body: bytes) -> bool:
    try:
        return connection.send(reply, body)
    except ValueError:  # not a reply subject of a delivery
        return False

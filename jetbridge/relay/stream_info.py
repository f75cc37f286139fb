"""
What the own stream says of itself: when it was created, which is its identity, since sequences repeat in a re-created
one; and what it takes.
"""

from __future__ import annotations

import logging
from datetime import datetime

from django.utils.dateparse import parse_datetime

from jetbridge.errors import JetbridgeError
from jetbridge.jetstream.connection import Connection

SUBJECTS_S = 1.0

logger = logging.getLogger("jetbridge.relay")


async def created_at(connection: Connection, stream: str) -> datetime | None:
    """The creation time of ``stream``, or ``None`` if the server does not tell; publishing goes on either way."""
    try:
        answer = await connection.api(f"STREAM.INFO.{stream}")
    except (JetbridgeError, TimeoutError) as error:
        logger.warning("INFO of the stream %s could not be read: %s", stream, error)
        return None
    created = answer.get("created")
    # Nanoseconds on the wire, of which a datetime holds six digits.
    return parse_datetime(f"{created[:26].rstrip('Z')}Z") if isinstance(created, str) else None


async def subjects(connection: Connection, stream: str) -> list[str]:
    """What ``stream`` takes; nothing if it does not tell now, or does not exist."""
    try:
        config = (await connection.api(f"STREAM.INFO.{stream}", timeout_s=SUBJECTS_S)).get("config")
    except (JetbridgeError, TimeoutError):
        return []
    found = config.get("subjects") if isinstance(config, dict) else None
    return [str(one) for one in found] if isinstance(found, list) else []

"""
What the server tells about messages of our durables that it will not deliver again.

A durable that we provisioned gives up nothing. One that somebody else made may have a finite ``max_deliver``, and
anybody with the right to may terminate a message. The server says so once, to whoever listens at that moment, and the
message of a work queue then lies in the stream for ever, neither pending nor delivered.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from jetbridge.errors import BrokerUnreachable
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.incoming import Incoming
from jetbridge.jetstream.logs import logger
from jetbridge.jetstream.wire import read_headers

PREFIX: Final = "$JS.EVENT.ADVISORY.CONSUMER"
USED_UP: Final = "MAX_DELIVERIES"
TERMINATED: Final = "MSG_TERMINATED"
MAX_HEARD: Final = 10_000
NO_MESSAGE: Final = 10037
NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Advisory:
    """
    One message that a durable will not deliver again.

    Args:
        is_terminated: Somebody ended it; otherwise its deliveries are used up.
        reason: What was said when it was terminated.
    """

    stream: str
    durable: str
    sequence: int
    deliveries: int
    is_terminated: bool
    reason: str = ""


class Advisories:
    """Listens for some durables from the first session of ``connection`` on, before anything is pulled on it."""

    def __init__(self, connection: Connection, durables: Iterable[tuple[str, str]]) -> None:
        self._heard: dict[Advisory, None] = {}
        self._said_denied = False
        for stream, durable in durables:
            for subject in advisory_subjects(stream, durable):
                connection.listen(subject, self._on_advisory, on_denied=self._on_denied)

    def take(self) -> list[Advisory]:
        """What was heard since the last time, in order and without repeats."""
        heard, self._heard = list(self._heard), {}
        return heard

    def _on_advisory(self, subject: bytes, _reply: bytes, body: bytes, _headers: bytes) -> None:
        advisory = read_advisory(subject.decode("utf-8", "replace"), body)
        if advisory is not None and len(self._heard) < MAX_HEARD:
            self._heard[advisory] = None

    def _on_denied(self) -> None:
        if not self._said_denied:
            self._said_denied = True
            logger.info(
                "This NATS user may not listen to the advisories of its durables; a message that a durable gives up "
                "would go unnoticed. jetbridge_provision --print-permissions worker shows what to allow."
            )


def advisory_subjects(stream: str, durable: str) -> tuple[str, str]:
    """Where the server tells of the messages of one durable."""
    return f"{PREFIX}.{USED_UP}.{stream}.{durable}", f"{PREFIX}.{TERMINATED}.{stream}.{durable}"


def read_advisory(subject: str, body: bytes) -> Advisory | None:
    """
    An advisory; ``None`` for anything else: any user with the right to publish there can send what he likes.

    Stream and durable are the subject's, which the server checks.
    """
    kind, _, place = subject.removeprefix(f"{PREFIX}.").partition(".")
    stream, _, durable = place.partition(".")
    try:
        said = json.loads(body)
        if kind not in (USED_UP, TERMINATED) or (said["stream"], said["consumer"]) != (stream, durable):
            return None
        return Advisory(
            stream=stream,
            durable=durable,
            sequence=int(said["stream_seq"]),
            deliveries=int(said["deliveries"]),
            is_terminated=kind == TERMINATED,
            reason=str(said.get("reason", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


async def read_stored(connection: Connection, advisory: Advisory) -> Incoming | None:
    """
    The message as it lies in the stream; ``None`` if it is not there any more.

    Raises:
        BrokerUnreachable: No answer, or not now.
        PermissionDenied: This user may not read messages by their sequence.
    """
    answer = await connection.api(f"STREAM.MSG.GET.{advisory.stream}", {"seq": advisory.sequence})
    error, message = answer.get("error"), answer.get("message")
    if isinstance(error, Mapping):
        if error.get("err_code") == NO_MESSAGE:
            return None
        raise BrokerUnreachable(f"Reading a message of {advisory.stream} failed: {error.get('description')}.")
    if not isinstance(message, Mapping):
        raise BrokerUnreachable(f"Reading a message of {advisory.stream} gave an answer without a message.")
    block = base64.b64decode(str(message.get("hdrs", "")))
    return Incoming(
        subject=str(message["subject"]),
        reply="",
        headers=read_headers(block) if block else {},
        body=base64.b64decode(str(message.get("data", ""))),
        stream=advisory.stream,
        consumer=advisory.durable,
        sequence=advisory.sequence,
        consumer_sequence=0,
        delivered=advisory.deliveries,
        stored_ns=to_ns(str(message["time"])),
        pending=0,
    )


def to_ns(instant: str) -> int:
    """
    ``2026-11-22T02:51:40.123456789Z`` as nanoseconds since 1970, exactly as a reply subject has them.

    They are part of the identity of a message without an id, so a rounded one would be another message.
    """
    whole, _, fraction = instant.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * NS + int(fraction.ljust(9, "0") or 0)

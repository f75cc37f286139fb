"""What goes into a publish and what comes out of it. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Final

from jetbridge.jetstream.wire import read_status


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """
    One message to store.

    Args:
        headers: Sent in this order and exactly this case.
        lane: Messages with an equal lane are stored in the order given; ``None`` has no order.
    """

    subject: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes
    lane: Hashable | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """The stream has it; ``duplicate`` means it had it before (same message id within the window)."""

    stream: str
    sequence: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """It is not stored. ``err_code`` is JetStream's number, 0 where another part of the server refused."""

    code: int
    err_code: int
    description: str


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """It was sent, and may or may not be stored."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """It never left this process."""

    reason: str


Result = Stored | Refused | NoAnswer | NotSent

NO_RESPONDERS: Final = Refused(503, 0, "no responders")

# What nearly every answer looks like: a sixth of the time of the JSON parser, which reads the rest.
_PLAIN: Final = re.compile(rb'\{"stream":"([^"\\]+)","seq":([1-9]\d*)(,"duplicate":true)?\}')


def read_ack(body: bytes, headers: bytes) -> Stored | Refused | NoAnswer:
    """
    The stream's answer to a publish.

    An empty answer, or one of something that is no stream, is no answer: it says nothing about the message.
    """
    plain = _PLAIN.fullmatch(body)
    if plain is not None:
        return Stored(plain[1].decode(), int(plain[2]), plain[3] is not None)
    if not body:
        status, text = read_status(headers) if headers else (0, "")
        return (
            NO_RESPONDERS
            if status == 503
            else NoAnswer(f"the answer was empty ({status} {text})".replace(" (0 )", ""))
        )
    try:
        answer = json.loads(body)
        if "error" in answer:
            error = answer["error"]
            return Refused(
                int(error["code"]), int(error.get("err_code", 0)), str(error.get("description", ""))
            )
        sequence = int(answer["seq"])
        if sequence > 0:
            return Stored(str(answer["stream"]), sequence, answer.get("duplicate") is True)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return NoAnswer(f"the answer is not a stream's: {body[:80]!r}")

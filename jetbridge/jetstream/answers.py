"""What becomes of the one answer that a request waits for. The first outcome counts, later ones are ignored."""

from __future__ import annotations

import asyncio
from typing import Final

from jetbridge.errors import BrokerUnreachable
from jetbridge.jetstream import wire
from jetbridge.jetstream.denials import Denial, PermissionDenied

NO_RESPONDERS: Final = 503


def fail(answer: asyncio.Future[bytes], error: Exception) -> None:
    """There will be no answer."""
    if not answer.done():
        answer.set_exception(error)


def deny(answer: asyncio.Future[bytes], subject: str, denial: Denial) -> None:
    """The server refused something; perhaps it was this."""
    if not denial.is_subscription and denial.subject == subject.lower():
        fail(answer, PermissionDenied(subject))


def give(answer: asyncio.Future[bytes], subject: str, data: bytes, headers: bytes) -> None:
    """Something came back: an answer, or the word that nobody listens."""
    if headers and wire.read_status(headers)[0] == NO_RESPONDERS:
        fail(
            answer,
            BrokerUnreachable(
                f"Nobody answers {subject}: JetStream is off for this account, or has no leader."
            ),
        )
    elif not answer.done():
        answer.set_result(data)

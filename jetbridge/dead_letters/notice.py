"""The message that tells the world of a dead letter, on ``<app>.sync.dlq``. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from jetbridge import envelope, partition, text, topology
from jetbridge.conf import Settings
from jetbridge.outbox.drafts import Draft, header_bytes
from jetbridge.received import Received

MAX_MESSAGE_CHARS = 500
_NAME: Final = re.compile(r"[!-9;-~]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_FACTS: Final = ("x-dlq-", "x-dead-letter", "x-deliveries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an event was given up. ``traceback`` is for the table only."""

    reason: str
    error_class: str
    error: str
    traceback: str
    attempts: int
    starts: int = 0


def notice(received: Received, failure: Failure, *, message_id: str, settings: Settings) -> Draft:
    """
    The original body and headers with the facts of the failure.

    Everything in it is ASCII and short: a Ruby peer fails on a non-ASCII header, and headers count
    towards the size the server accepts.
    """
    deliveries = max(
        1, failure.attempts, failure.starts
    )  # one that reached no handler has been delivered, too
    context = {
        "event_id": received.event_id,
        "reason": failure.reason,
        "error_class": failure.error_class,
        "error_message": text.storable(failure.error, MAX_MESSAGE_CHARS),
        "deliveries": deliveries,
        "original_subject": received.subject,
        "sequence": received.sequence,
        "consumer": topology.durable_of(received.subject),
        "stream": received.stream,
        "published_at": envelope.format_instant(datetime.now(UTC).replace(microsecond=0)),
    }
    headers = _original(received.headers) | {
        "x-dead-letter": "true",
        "x-dlq-reason": failure.reason,
        "x-deliveries": str(deliveries),
        "x-dlq-context": json.dumps(context, separators=(",", ":")),
        "Nats-TTL": f"{settings.dlq_ttl_s:.0f}s",
    }
    return Draft(
        event_id=received.event_id,
        message_id=message_id,
        kind="dead_letter",
        event_type=received.event_type,
        destination=topology.DEAD_LETTERS,
        subject=topology.dlq_subject(settings.app_name),
        key="",
        bucket=partition.bucket("", received.event_id),
        headers=headers,
        body=received.body,
        causation_id="",
        correlation_id="",
    )


def _original(headers: Mapping[str, str]) -> dict[str, str]:
    """What can be sent of a foreign message's headers, without facts of an earlier dead letter."""
    return {
        name: value
        for name, value in envelope.copied_headers(headers).items()
        if _NAME.fullmatch(name) and _VALUE.fullmatch(value) and not name.lower().startswith(_FACTS)
    }


def is_sendable(row: Draft, settings: Settings) -> bool:
    """Whether a notice fits into a message; one that does not is born refused."""
    headers = envelope.wire_headers(row.message_id, row.headers)
    return len(row.body) + header_bytes(headers) <= settings.max_payload_bytes

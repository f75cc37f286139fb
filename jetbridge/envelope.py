"""
The wire contract: an event to body and headers, and back.

Encoding happens once, in ``publish()``; the relay copies bytes. Decoding is lenient where other
languages differ (see ``docs/reference/wire-format.md``) and strict where a guess could lose an event.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast
from urllib.parse import quote, unquote

from django.core.serializers.json import DjangoJSONEncoder
from django.utils.dateparse import parse_datetime

from jetbridge import text
from jetbridge.errors import MalformedMessage
from jetbridge.event import JSON, Event

MESSAGE_ID: Final = "Nats-Msg-Id"
EVENT_ID: Final = "nats-msg-id"
KEY: Final = "Jetbridge-Key"
CAUSATION_ID: Final = "Jetbridge-Causation-Id"
CORRELATION_ID: Final = "Jetbridge-Correlation-Id"
CONTENT_TYPE: Final = "Content-Type"
_ORDER: Final = (EVENT_ID, KEY, CAUSATION_ID, CORRELATION_ID, "traceparent", "tracestate", CONTENT_TYPE)

_django: Final = DjangoJSONEncoder()


def _default(value: object) -> object:
    """What Django's encoder knows, and every mapping: ``payload`` is one, and need not be a ``dict``."""
    return dict(value) if isinstance(value, Mapping) else _django.default(value)


_encoder: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a received message lies. ``stored_ns`` makes a re-created stream's sequence a different one."""

    subject: str
    stream: str
    sequence: int
    stored_ns: int


def encode(event: Event) -> bytes:
    """
    The body of a complete event: the members and their order are the contract.

    Raises:
        ValueError: Something in it is no JSON (NaN, a set, a lone surrogate); the text says what.
    """
    assert event.occurred_at is not None
    members = {
        "event_id": event.event_id,
        "schema_version": event.schema_version,
        "event_type": event.type,
        "producer": event.producer,
        "resource_id": event.resource_id,
        "occurred_at": format_instant(event.occurred_at),
        "trace_id": event.trace_id,
        "resource_type": event.resource_type,
        "payload": event.payload,
    }
    try:
        return _encoder.encode(members).encode()
    except (TypeError, ValueError, RecursionError) as error:
        where = _unencodable(event.payload, "payload") or "payload"
        raise ValueError(
            f"{where} cannot be encoded as JSON: {error}. Give strings, numbers, lists and dicts, or what Django's "
            f"JSON encoder knows (dates, Decimal, UUID)."
        ) from error


def _unencodable(value: object, path: str, depth: int = 20) -> str:
    """The path of the first member that no encoder takes, ``""`` if it cannot be told."""
    members: Iterable[tuple[str, object]] = ()
    if isinstance(value, Mapping):
        members = ((f"{path}[{key!r}]", member) for key, member in value.items())
    elif isinstance(value, (list, tuple)):
        members = ((f"{path}[{number}]", member) for number, member in enumerate(value))
    for inner, member in members:
        try:
            _encoder.encode(member).encode()
        except (TypeError, ValueError, RecursionError):
            return (_unencodable(member, inner, depth - 1) if depth else "") or inner
    return ""


def format_instant(instant: datetime) -> str:
    """ISO 8601 in UTC with a ``Z``; fractions of a second only where there are any."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def default_key(resource_type: str, resource_id: str) -> str:
    """``<resource_type>:<resource_id>``; an event without a resource id has no key."""
    return f"{resource_type}:{resource_id}" if resource_id else ""


def wire_headers(message_id: str, headers: Mapping[str, str]) -> dict[str, str]:
    """
    The headers of a message in the order of the contract.

    ``Nats-Msg-Id`` comes first because the gem's inbox takes the last of the two spellings, and the
    server matches this one byte for byte.
    """
    ordered = {MESSAGE_ID: message_id} if message_id else {}
    for name in _ORDER:
        if name in headers:
            ordered[name] = headers[name]
    for name in sorted(headers.keys() - ordered.keys()):
        ordered[name] = headers[name]
    return ordered


def event_headers(event: Event) -> dict[str, str]:
    """What jetbridge itself writes into the headers of a complete event, without ``Nats-Msg-Id``."""
    headers = {EVENT_ID: str(event.event_id)}
    if event.key and event.key != default_key(event.resource_type or "", str(event.resource_id or "")):
        headers[KEY] = quote(str(event.key), safe="")
    if event.causation_id:
        headers[CAUSATION_ID] = quote(event.causation_id, safe=_VISIBLE)
    if event.correlation_id:
        headers[CORRELATION_ID] = quote(event.correlation_id, safe=_VISIBLE)
    return headers | dict(event.headers)


_VISIBLE: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")


def copied_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers for a copy of a message: every ``Nats-*`` goes, or batch headers would swallow the copy."""
    return {name: value for name, value in headers.items() if not name.lower().startswith("nats-")}


def parse_body(body: bytes) -> dict[str, JSON]:
    """
    The members of a body.

    Raises:
        MalformedMessage: Not UTF-8, not JSON, or not an object.
    """
    try:
        members = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise MalformedMessage(f"The body is not UTF-8: {error.reason} at byte {error.start}.") from error
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"The body is not JSON: {error}") from error
    if not isinstance(members, dict):
        raise MalformedMessage(f"The body must be a JSON object, got {type(members).__name__}.")
    return members


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def decode(body: bytes, headers: Mapping[str, str], position: Position, *, app: str) -> Event:
    """
    The event in a message.

    Args:
        body: As received.
        headers: As received; names are compared without case.
        position: Where the message lies; the last resort for an id.
        app: The consuming app, whose name ends a ``Nats-Msg-Id``.

    Raises:
        MalformedMessage: The text says what was found and what was expected.
    """
    members = parse_body(body)
    resource_type = _text(members, "resource_type")
    resource_id = _text(members, "resource_id")
    key = header(headers, KEY)
    event_type = _event_type(members, resource_type)
    resource_type = resource_type or default_resource_type(event_type)
    event_id = event_id_of(members, headers, position, app=app)
    return Event(
        type=event_type,
        payload=_payload(members),
        resource_type=resource_type,
        resource_id=resource_id,
        key=unquote(key) if key else default_key(resource_type, resource_id),
        headers=copied_headers(headers),
        event_id=event_id,
        occurred_at=_instant(members.get("occurred_at") or members.get("produced_at")),
        trace_id=_text(members, "trace_id"),
        producer=_text(members, "producer"),
        schema_version=_version(members.get("schema_version", 1)),
        causation_id=unquote(header(headers, CAUSATION_ID)),
        correlation_id=unquote(header(headers, CORRELATION_ID)) or event_id,
    )


def default_resource_type(event_type: str) -> str:
    """The type up to its first dot, else ``event``."""
    return event_type.split(".", 1)[0] if "." in event_type else "event"


def header(headers: Mapping[str, str], name: str) -> str:
    """The value of a header whatever its case, or ``""``."""
    if name in headers:
        return headers[name]
    lowered = name.lower()
    return next((value for found, value in headers.items() if found.lower() == lowered), "")


def event_id_of(
    members: Mapping[str, JSON], headers: Mapping[str, str], position: Position, *, app: str
) -> str:
    """
    The identity of an event: body, ``nats-msg-id``, ``Nats-Msg-Id`` less ``:<app>``, else its position.

    Raises:
        MalformedMessage: The id cannot be a key of the inbox.
    """
    found = _text(members, "event_id") or headers.get(EVENT_ID, "") or _id_from_message_id(headers, app)
    if not found:
        return f"{position.stream}:{position.sequence}:{position.stored_ns}"
    if len(found) > text.MAX_NAME_CHARS or not text.is_storable(found):
        raise MalformedMessage(
            f"event_id must have at most {text.MAX_NAME_CHARS} characters, without NUL and lone surrogates; "
            f"got {len(found)} characters starting {found[:40]!r}."
        )
    return found


def _id_from_message_id(headers: Mapping[str, str], app: str) -> str:
    value = header(headers, MESSAGE_ID)
    return value.removesuffix(f":{app}")


def _text(members: Mapping[str, JSON], name: str) -> str:
    value = members.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise MalformedMessage(f"{name} must be a string, got {type(value).__name__}.")


def _event_type(members: Mapping[str, JSON], resource_type: str) -> str:
    """Both styles: ``user.created``, and ``created`` with the resource type ``user``."""
    value = members.get("event_type")
    if not isinstance(value, str) or not value:
        raise MalformedMessage(f"event_type must be a non-empty string, got {_shown(value)}.")
    full = f"{resource_type}.{value}" if "." not in value and resource_type not in ("", "event") else value
    if len(full) > text.MAX_NAME_CHARS or not text.is_storable(full):
        raise MalformedMessage(
            f"event_type must have at most {text.MAX_NAME_CHARS} characters, without NUL and lone surrogates; "
            f"got {_shown(full)}."
        )
    return full


def _shown(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}…"


def _payload(members: Mapping[str, JSON]) -> Mapping[str, JSON]:
    payload = members.get("payload")
    if not isinstance(payload, dict):
        raise MalformedMessage(f"payload must be a JSON object, got {_shown(payload)}.")
    return cast("Mapping[str, JSON]", payload)


def _version(value: JSON) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return 1
    try:
        return int(value)
    except (ValueError, OverflowError):
        return 1


def _instant(value: JSON) -> datetime | None:
    """An instant in UTC, or ``None`` where it cannot be read: no reason to refuse the event."""
    if not isinstance(value, str):
        return None
    try:
        parsed = parse_datetime(value)
        if parsed is None:
            return None
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None

"""
From the arguments of ``publish()`` to rows: defaults, validation, encoding. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from django.conf import settings as django_settings
from django.utils import timezone

from jetbridge import envelope, ids, partition, text, topology
from jetbridge.conf import Destination, Settings
from jetbridge.context import Handling
from jetbridge.errors import EventTooLarge, InvalidEvent, UnknownDestination
from jetbridge.event import Event

_TYPE: Final = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]*")
RESERVED_HEADERS: Final = ("nats-", "jetbridge-", "x-dlq-", "x-dead-letter", "x-deliveries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One row to be: the content columns of the outbox."""

    event_id: str
    message_id: str
    kind: str
    event_type: str
    destination: str
    subject: str
    key: str
    bucket: int
    headers: Mapping[str, str]
    body: bytes
    causation_id: str
    correlation_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a row goes. ``destination`` is what follows ``<app>.sync.`` in the subject."""

    destination: str
    subject: str
    message_id: bool


def targets(settings: Settings, to: str | Sequence[str] | None, subject: str | None) -> list[Target]:
    """
    The rows' addresses.

    Raises:
        UnknownDestination: Lists the configured names.
        InvalidEvent: The subject lies outside the app's own stream.
    """
    if subject is not None:
        return [_override(settings, to, subject)]
    names = _destination_names(settings, to)
    return [
        Target(
            destination=d.name, subject=topology.subject(settings.app_name, d.name), message_id=d.message_id
        )
        for d in (_destination(settings, name) for name in names)
    ]


def _override(settings: Settings, to: str | Sequence[str] | None, subject: str) -> Target:
    try:
        checked = topology.check_subject(subject, settings.app_name)
    except ValueError as error:
        raise InvalidEvent(str(error)) from None
    destination = checked.removeprefix(topology.subject(settings.app_name, ""))
    if to is not None:
        names = _destination_names(settings, to)
        if len(names) != 1:
            raise InvalidEvent(f"subject= needs exactly one destination in to=, got {names!r}.")
        option = _destination(settings, names[0])
        return Target(destination=destination, subject=checked, message_id=option.message_id)
    return Target(destination=destination, subject=checked, message_id=True)


def _destination_names(settings: Settings, to: str | Sequence[str] | None) -> list[str]:
    if to is None:
        if len(settings.destinations) == 1:
            return list(settings.destinations)
        raise UnknownDestination(
            f"to= may be left out only with exactly one destination. {_choices(settings)}"
        )
    try:
        names = [to] if isinstance(to, str) else list(dict.fromkeys(to))
    except TypeError:
        raise UnknownDestination(
            f"to= must be a name or a list of names, got {to!r}. {_choices(settings)}"
        ) from None
    if not names:
        raise UnknownDestination(f"to= names no destination. {_choices(settings)}")
    return names


def _destination(settings: Settings, name: str) -> Destination:
    try:
        return settings.destinations[name]
    except (KeyError, TypeError):
        raise UnknownDestination(
            f"to={name!r} is not a destination of {settings.app_name!r}. {_choices(settings)}"
        ) from None


def _choices(settings: Settings) -> str:
    names = ", ".join(map(repr, settings.destinations)) or "none"
    return f'JETBRIDGE["DESTINATIONS"]: {names}.'


def complete(event: Event, settings: Settings, cause: Handling | None) -> Event:
    """
    ``event`` with every default filled in and every member checked.

    Raises:
        InvalidEvent: Says which argument, what was found and what was expected.
    """
    try:
        return _complete(event, settings, cause)
    except InvalidEvent:
        raise
    except ValueError as error:
        raise InvalidEvent(str(error)) from error


def _complete(event: Event, settings: Settings, cause: Handling | None) -> Event:
    event_type = _name("type", event.type)
    if _TYPE.fullmatch(event_type) is None:
        raise InvalidEvent(f"type must be dotted tokens without spaces, '*' and '>', got {event_type!r}.")
    if not isinstance(event.payload, Mapping):
        raise InvalidEvent(f"payload must be a mapping (a JSON object), got {type(event.payload).__name__}.")
    resource_type = event.resource_type or envelope.default_resource_type(event_type)
    resource_id = _resource_id(event)
    return replace(
        event,
        resource_type=_name("resource_type", resource_type),
        resource_id=resource_id,
        key=_key(event.key, resource_type, resource_id),
        headers=check_headers(event.headers),
        event_id=_event_id(event.event_id),
        occurred_at=_occurred_at(event.occurred_at),
        trace_id=_given("trace_id", event.trace_id) or _inherited(cause, "trace_id") or ids.new_trace_id(),
        producer=settings.app_name,
        schema_version=1,
        causation_id=_given("causation_id", event.causation_id) or _inherited(cause, "event_id"),
        correlation_id=_given("correlation_id", event.correlation_id) or _inherited(cause, "correlation_id"),
    )


def _event_id(value: object) -> str:
    if value is None:
        return ids.new_event_id()
    return ids.check_event_id(str(value) if isinstance(value, UUID) else value)


def _name(what: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidEvent(f"{what} must be a non-empty string, got {value!r}.")
    if len(value) > text.MAX_NAME_CHARS:
        raise InvalidEvent(f"{what} must have at most {text.MAX_NAME_CHARS} characters, got {len(value)}.")
    if not text.is_storable(value):
        raise InvalidEvent(f"{what} must not contain NUL or lone surrogates, got {value!r}.")
    return value


def _resource_id(event: Event) -> str:
    value: object = event.payload.get("id") if event.resource_id is None else event.resource_id
    if isinstance(value, bool) or not isinstance(value, (str, int, UUID)):
        if event.resource_id is not None:
            raise InvalidEvent(f"resource_id must be a string, an integer or a UUID, got {value!r}.")
        return ""
    return _name("resource_id", str(value)) if str(value) else ""


def _key(key: object, resource_type: str, resource_id: str) -> str:
    """An empty key is no key given: a handler that forwards ``key=event.key`` must not fail on some events."""
    if key is None or key == "":
        default = envelope.default_key(resource_type, resource_id)
        return _name("The default key (resource type and id)", default) if default else ""
    if isinstance(key, (int, UUID)) and not isinstance(key, bool):
        key = str(key)
    return _name("key", key)


def _given(what: str, value: object) -> str:
    """What the caller said, if anything."""
    return "" if value is None or value == "" else _name(what, value)


def _inherited(cause: Handling | None, member: str) -> str:
    """What comes from the handled event: foreign text, which must not make the handler's own publish fail."""
    value = getattr(cause.delivery, member) if cause is not None else None
    return text.storable(value or "", text.MAX_NAME_CHARS)


def _occurred_at(value: object) -> datetime:
    return datetime.now(UTC) if value is None else aware("occurred_at", value)


def aware(what: str, value: object) -> datetime:
    """
    An aware datetime in UTC. A naive one is local time under ``USE_TZ=False`` and an error otherwise:
    guessing a zone moves events by hours.
    """
    if not isinstance(value, datetime):
        raise InvalidEvent(f"{what} must be a datetime, got {value!r}.")
    if timezone.is_naive(value):
        if django_settings.USE_TZ:
            raise InvalidEvent(
                f"{what} must be an aware datetime under USE_TZ, such as timezone.now(); got the naive "
                f"{value.isoformat()}."
            )
        value = timezone.make_aware(value)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidEvent(
            f"{what} must lie within the years 1 to 9999 in UTC, got {value.isoformat()}."
        ) from None


def check_headers(headers: object) -> dict[str, str]:
    """A caller's headers: ASCII, and none of the names that carry meaning on the wire."""
    if not isinstance(headers, Mapping):
        raise InvalidEvent(f"headers must be a mapping of strings, got {type(headers).__name__}.")
    for name, value in headers.items():
        if not isinstance(name, str) or _HEADER_NAME.fullmatch(name) is None:
            raise InvalidEvent(f"A header name must be an ASCII token, got {name!r}.")
        if name.lower().startswith(RESERVED_HEADERS):
            raise InvalidEvent(
                f"The header {name!r} is reserved; names must not start with {', '.join(RESERVED_HEADERS)}."
            )
        if not isinstance(value, str) or _HEADER_VALUE.fullmatch(value) is None:
            raise InvalidEvent(f"The header {name!r} must be a string of printable ASCII, got {value!r}.")
    return dict(headers)


def drafts(
    event: Event, addresses: Sequence[Target], settings: Settings, *, kind: str = "event"
) -> list[Draft]:
    """
    The rows of one complete event, encoded once.

    Raises:
        InvalidEvent: The payload is no JSON.
        EventTooLarge: Body and headers exceed ``MAX_PAYLOAD_BYTES``.
    """
    try:
        body = envelope.encode(event)
    except ValueError as error:
        raise InvalidEvent(f"Event {event.type!r}: {error}") from error
    headers = envelope.event_headers(event)
    event_id, key = str(event.event_id or ""), str(event.key or "")
    rows = [
        Draft(
            event_id=event_id,
            message_id=f"{event_id}:{address.destination}" if address.message_id else "",
            kind=kind,
            event_type=event.type,
            destination=address.destination,
            subject=address.subject,
            key=key,
            bucket=partition.bucket(key, event_id),
            headers=headers,
            body=body,
            causation_id=event.causation_id,
            correlation_id=event.correlation_id,
        )
        for address in addresses
    ]
    for row in rows:
        _check_size(row, settings.max_payload_bytes)
    return rows


def _check_size(row: Draft, limit: int) -> None:
    size = len(row.body) + header_bytes(envelope.wire_headers(row.message_id, row.headers))
    if size > limit:
        raise EventTooLarge(
            f"Event {row.event_type!r} has {size:,} bytes with its headers, at most {limit:,} are allowed "
            f'(JETBRIDGE["MAX_PAYLOAD_BYTES"]). Publish a reference to the data instead.'
        )


def header_bytes(headers: Mapping[str, str]) -> int:
    """Bytes of a NATS header block: the server counts them towards its ``max_payload``."""
    return len("NATS/1.0\r\n\r\n") + sum(
        len(name) + len(value) + len(": \r\n") for name, value in headers.items()
    )

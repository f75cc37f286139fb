"""Handlers run as the consumer runs them, in the thread and the transaction of the test."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from jetbridge import conf, envelope, received, topology
from jetbridge.conf import Settings
from jetbridge.consumer.execute import Job, Settled, Settlement, Wait, execute
from jetbridge.envelope import Position
from jetbridge.errors import JetbridgeError
from jetbridge.event import Delivery, Event
from jetbridge.inbox import unit_of_work
from jetbridge.inbox.unit_of_work import Crashed, Duplicate, Failed, NotAlone, NotYet, Processed, Work
from jetbridge.outbox import drafts
from jetbridge.outbox.drafts import RESERVED_HEADERS
from jetbridge.received import Received
from jetbridge.registry import Handler, registry

_sequences: Final = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    What one handler did with the event.

    Attributes:
        handler: Its name.
        result: ``handled``, ``duplicate`` (this event had its effect before), and with ``raises=False`` also
            ``retry`` (the consumer would try again in ``delay_s``) and ``dead`` (there is a dead letter now).
        delay_s: Seconds until the next attempt; 0 where there is none.
    """

    handler: str
    result: Literal["handled", "duplicate", "retry", "dead"]
    delay_s: float = 0.0


class NoHandler(JetbridgeError):
    """Nobody here handles the event that a test delivers."""


def deliver(
    event: Event,
    *,
    source: str | None = None,
    handler: str | Callable[..., Any] | None = None,
    raises: bool = True,
) -> list[Outcome]:
    """
    Hand an event to its handlers as the consumer would: encoded and decoded, then for each handler inbox row
    and handler in one transaction. Nothing goes through NATS.

    The same ``event_id`` twice is a duplicate the second time, as with a broker that delivers twice.

    Args:
        event: Type and payload suffice; one from :func:`published` is fine, too.
        source: The app it comes from. Default: the one of ``SOURCES`` if there is exactly one.
        handler: Only this one, by name or as the function.
        raises: Whether the exception of a handler is raised here; its transaction is rolled back, and what was
            done by earlier handlers stays. With ``False`` a failure is recorded as the consumer does, as a
            retry or a dead letter.

    Raises:
        NoHandler: No handler wants the event.
        Exception: What a handler raised, also ``Retry``, ``Snooze`` and ``Reject``.
    """
    settings = conf.get_settings()
    message = _message(event, _source(event, source, settings), settings)
    handlers = _handlers(message, handler)
    return [_run(message, one, settings, raises=raises) for one in handlers]


def _source(event: Event, source: str | None, settings: Settings) -> str:
    if source is not None:
        return topology.check_token(source, "source")
    if isinstance(event, Delivery) and event.source:
        return event.source
    if len(settings.sources) == 1:
        return next(iter(settings.sources))
    known = ", ".join(map(repr, settings.sources)) or "none"
    raise ValueError(f'source= may be left out only with exactly one app in JETBRIDGE["SOURCES"]: {known}.')


def _message(event: Event, source: str, settings: Settings) -> Received:
    """The event as it would arrive, through the wire format: a payload that does not survive it shows here."""
    plain = Event(
        type=event.type,
        payload=event.payload,
        resource_type=event.resource_type,
        resource_id=event.resource_id,
        key=event.key or None,
        headers=_own_headers(event.headers),
        event_id=event.event_id,
        occurred_at=event.occurred_at,
        trace_id=event.trace_id,
        causation_id=event.causation_id,
        correlation_id=event.correlation_id,
    )
    address = drafts.Target(
        destination=settings.app_name,
        subject=topology.subject(source, settings.app_name),
        message_id=True,
    )
    sender = _as(source, settings)
    row = drafts.drafts(drafts.complete(plain, sender, None), [address], sender)[0]
    place = Position(
        subject=row.subject,
        stream=topology.stream_name(source),
        sequence=next(_sequences),
        stored_ns=time.time_ns(),
    )
    headers = envelope.wire_headers(row.message_id, row.headers)
    return received.read(row.body, headers, place, app=settings.app_name)


def _as(source: str, settings: Settings) -> Settings:
    return replace(settings, app_name=source)


def _own_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """A received event also has the headers that jetbridge writes itself; they are made anew."""
    return {name: value for name, value in headers.items() if not name.lower().startswith(RESERVED_HEADERS)}


def _handlers(message: Received, chosen: str | Callable[..., Any] | None) -> Sequence[Handler]:
    matching = registry.matching(message.event_type, message.source)
    wanted = [one for one in matching if chosen is None or chosen in (one.name, one.function)]
    if wanted:
        return wanted
    known = (
        "\n".join(
            f"  {one.name}: {', '.join(one.patterns)} from {one.source or 'any app'}"
            for one in registry.all()
        )
        or "  none; is the module with your handlers imported?"
    )
    whom = "No handler wants" if chosen is None else f"The handler {chosen!r} does not want"
    raise NoHandler(f"{whom} {message.event_type!r} from {message.source!r}. Handlers:\n{known}")


def _run(message: Received, handler: Handler, settings: Settings, *, raises: bool) -> Outcome:
    using = handler.using or settings.databases[0]
    if not raises:
        job = Job(received=message, handler=handler, handler_name=handler.name, using=using)
        return _recorded(execute(job, settings), handler.name)
    match unit_of_work.attempt(Work(received=message, handler=handler, using=using), settings):
        case Processed():
            return Outcome(handler=handler.name, result="handled")
        case Duplicate():
            return Outcome(handler=handler.name, result="duplicate")
        case NotYet(delay_s=delay_s):
            return Outcome(handler=handler.name, result="retry", delay_s=delay_s)
        case NotAlone() | Crashed():
            return Outcome(handler=handler.name, result="retry")
        case Failed(error=error):
            raise error


def _recorded(settlement: Settlement, name: str) -> Outcome:
    match settlement:
        case Wait(delay_s=delay_s):
            return Outcome(handler=name, result="retry", delay_s=delay_s)
        case NotAlone():
            return Outcome(handler=name, result="retry")
        case Settled(how="dead"):
            return Outcome(handler=name, result="dead")
        case Settled(how="duplicate"):
            return Outcome(handler=name, result="duplicate")
        case _:
            return Outcome(handler=name, result="handled")

"""From a message to the jobs it means. Pure, but for the registry it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jetbridge import patterns, received
from jetbridge.conf import Settings
from jetbridge.consumer.execute import Job
from jetbridge.deferred.store import DeferredRecord
from jetbridge.envelope import Position
from jetbridge.jetstream.incoming import Incoming
from jetbridge.received import Received
from jetbridge.registry import Registry


def jobs_of(incoming: Incoming, registry: Registry, settings: Settings) -> Sequence[Job]:
    """
    One job per handler that wants the event; one without a handler for a message that must become a
    dead letter; none for an event that is to be ignored.
    """
    position = Position(
        subject=incoming.subject,
        stream=incoming.stream,
        sequence=incoming.sequence,
        stored_ns=incoming.stored_ns,
    )
    message = received.read(incoming.body, incoming.headers, position, app=settings.app_name)
    if message.event is None:
        return [_unhandled(message, settings)]
    handlers = registry.matching(message.event_type, message.source)
    if handlers:
        return [
            Job(
                received=message,
                handler=handler,
                handler_name=handler.name,
                using=handler.using or settings.databases[0],
                suspect=incoming.delivered > 1,
            )
            for handler in handlers
        ]
    if settings.unknown_events == "ignore" or is_ignored(message.event_type, settings):
        return []
    return [_unhandled(message, settings)]


def is_ignored(event_type: str, settings: Settings) -> bool:
    """Whether the settings say to drop an event that nobody wants."""
    return any(patterns.matches(pattern, event_type) for pattern in settings.ignored_events)


def _unhandled(message: Received, settings: Settings) -> Job:
    return Job(received=message, handler=None, handler_name="", using=settings.databases[0])


def job_of_deferred(record: DeferredRecord, registry: Registry, settings: Settings, *, using: str) -> Job:
    """
    The job of a stored message. Its identity is the row's: one without any id was named after its
    place in the stream, and must keep that name.
    """
    position = Position(subject=record.subject, stream=record.stream, sequence=record.sequence, stored_ns=0)
    message = received.read(record.body, record.headers, position, app=settings.app_name)
    event = message.event and replace(message.event, event_id=record.event_id)
    message = replace(message, source=record.source, event_id=record.event_id, event=event)
    handler = registry.get(record.handler) if event is not None else None
    return Job(
        received=message,
        handler=handler,
        handler_name=record.handler,
        using=using,
        redriven=True,
        suspect=True,  # nothing counts its deliveries
    )

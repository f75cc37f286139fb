"""
Redrive: run a dead letter again, locally.

Nothing goes through the broker, so neither its duplicate window nor another app's stream can swallow
it: the inbox row is re-opened and the stored message put at the head of its key's queue in the
deferred table, from where the running consumer takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from django.db import transaction

from jetbridge import received
from jetbridge.conf import Settings
from jetbridge.dead_letters import store
from jetbridge.dead_letters.store import DeadLetterRecord, DeadLetterSummary
from jetbridge.deferred import store as deferred
from jetbridge.envelope import Position
from jetbridge.inbox import store as inbox
from jetbridge.models import DeadLetterState
from jetbridge.models.deferred import DeferredKind
from jetbridge.registry import registry

NO_INBOX_ROW: Final = "its inbox row is gone or no longer dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A dead letter that was left as it is, and why."""

    id: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Acted:
    """What an act did."""

    ids: Sequence[int]
    skipped: Sequence[Skipped]


class _Refused(Exception):
    """Rolls one dead letter's redrive back; the text says why."""


def redrive(
    letters: Sequence[DeadLetterSummary], *, by: str, note: str = "", settings: Settings, using: str
) -> Acted:
    """
    Re-open dead letters, each in its own transaction, in the order in which they were published.

    Args:
        letters: What to redrive; those not open are skipped.
        by: Who asked, for the record.
        note: Why, for the record.
    """
    done: list[int] = []
    skipped: list[Skipped] = []
    for letter in _in_order(letters):
        try:
            with transaction.atomic(using=using):
                _redrive_one(letter.id, by, note, settings, using)
            done.append(letter.id)
        except _Refused as refused:
            skipped.append(Skipped(id=letter.id, why=str(refused)))
    return Acted(ids=done, skipped=skipped)


def rehearse(letters: Sequence[DeadLetterSummary], *, settings: Settings, using: str) -> Acted:
    """What :func:`redrive` would do at this moment, with the same refusals. Reads only."""
    ready: list[int] = []
    skipped: list[Skipped] = []
    for letter in _in_order(letters):
        try:
            _check_one(letter.id, settings, using)
            ready.append(letter.id)
        except _Refused as refused:
            skipped.append(Skipped(id=letter.id, why=str(refused)))
    return Acted(ids=ready, skipped=skipped)


def _in_order(letters: Sequence[DeadLetterSummary]) -> list[DeadLetterSummary]:
    return sorted(letters, key=lambda item: (item.stream, item.sequence, item.id))


def _check_one(dead_letter_id: int, settings: Settings, using: str) -> None:
    letter, targets = _targets(dead_letter_id, settings, using)
    if letter.handler and not inbox.can_reopen(letter.handler, letter.source, letter.event_id, using=using):
        raise _Refused(NO_INBOX_ROW)
    for handler, alias in targets:
        if deferred.waits_for(handler=handler, source=letter.source, event_id=letter.event_id, using=alias):
            raise _Refused(_already_waits(handler))


def _already_waits(handler: str) -> str:
    return f"it already waits to be handled by {handler!r}"


def _targets(
    dead_letter_id: int, settings: Settings, using: str
) -> tuple[DeadLetterRecord, list[tuple[str, str]]]:
    """The whole letter, and who would handle it on which database."""
    # Read here, one at a time: bodies of thousands of letters do not fit into memory.
    letter = store.get(dead_letter_id, using=using)
    if letter is None:
        raise _Refused("it is gone")
    if letter.state != DeadLetterState.OPEN:
        raise _Refused(f"it is {letter.state}, only an open dead letter can be redriven")
    if letter.source not in settings.sources:
        raise _Refused(f"{letter.source!r} is not in SOURCES any more, so no consumer would run it")
    return letter, [(letter.handler, using)] if letter.handler else _handlers_now(letter, settings)


def _redrive_one(dead_letter_id: int, by: str, note: str, settings: Settings, using: str) -> None:
    letter, targets = _targets(dead_letter_id, settings, using)
    # Locks in the order hold, inbox, dead letter: every act on them takes the same, so none deadlock.
    if letter.handler and not inbox.reopen(letter.handler, letter.source, letter.event_id, using=using):
        raise _Refused(NO_INBOX_ROW)
    if not store.reopen(letter.id, by=by, note=note, using=using):
        raise _Refused("someone else has just taken it")
    for handler, alias in targets:
        _defer(letter, handler, alias)
    if not letter.handler:
        store.resolve_redriven(handler="", source=letter.source, event_id=letter.event_id, using=using)


def _handlers_now(letter: DeadLetterRecord, settings: Settings) -> list[tuple[str, str]]:
    """
    Who would handle a message that reached nobody (malformed before an edit, unknown before a deploy), and on
    which database: a deferred message runs on the one it lies in.
    """
    place = Position(subject=letter.subject, stream=letter.stream, sequence=letter.sequence, stored_ns=0)
    message = received.read(letter.body, letter.headers, place, app=settings.app_name)
    if message.event is None:
        raise _Refused(f"it is still malformed: {message.fault}")
    handlers = registry.matching(message.event_type, message.source)
    if not handlers:
        raise _Refused(f"no handler wants {message.event_type!r} from {message.source!r}")
    return [(handler.name, handler.using or settings.databases[0]) for handler in handlers]


def _defer(letter: DeadLetterRecord, handler: str, using: str) -> None:
    added = deferred.add(
        handler=handler,
        source=letter.source,
        event_id=letter.event_id,
        key=letter.key,
        event_type=letter.event_type,
        subject=letter.subject,
        stream=letter.stream,
        sequence=letter.sequence,
        headers=letter.headers,
        body=letter.body,
        kind=DeferredKind.REDRIVE,
        using=using,
    )
    if not added:
        raise _Refused(_already_waits(handler))


def completed(*, handler: str, source: str, event_id: str, using: str) -> None:
    """The redriven message is settled; inside the transaction that settles it."""
    deferred.remove(handler=handler, source=source, event_id=event_id, using=using)
    store.resolve_redriven(handler=handler, source=source, event_id=event_id, using=using)

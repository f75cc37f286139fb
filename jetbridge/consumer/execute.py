"""
One attempt on a worker thread, and what follows from it in the database.

Everything here is synchronous; the loop only learns whether the item is settled or has to wait.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from django.db import DatabaseError, InterfaceError, connections, transaction

from jetbridge import retry, text
from jetbridge.conf import Settings
from jetbridge.dead_letters import redrive
from jetbridge.dead_letters import store as dead_letters
from jetbridge.errors import JetbridgeError, MalformedMessage
from jetbridge.inbox import store as inbox
from jetbridge.inbox import unit_of_work
from jetbridge.inbox.rows import Overtaken, Seen
from jetbridge.inbox.unit_of_work import Crashed, Duplicate, Failed, NotAlone, NotYet, Processed, Work
from jetbridge.received import Received
from jetbridge.registry import Handler
from jetbridge.retry import Again, GiveUp

logger = logging.getLogger("jetbridge.consumer")
_jitter: Final = random.Random()
LOST_RACE_DELAY_S: Final = 0.2
MAX_TOLD_CHARS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Nothing more to do: ``how`` is ``handled``, ``duplicate``, ``dead`` or ``abandoned``."""

    how: str


ABANDONED: Final = Settled(how="abandoned")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """
    Try again after ``delay_s``; until then nothing of its lane runs.

    Attributes:
        said: The log knows of it already.
        away: The database is, and nothing else would get further.
        heard: The database has answered since the attempt ended.
    """

    delay_s: float
    why: str
    said: bool = False
    away: bool = False
    heard: bool = True


Settlement: TypeAlias = Settled | Wait | NotAlone


class UnknownEvent(JetbridgeError):
    """No handler wants an event."""


class ProcessDied(JetbridgeError):
    """The processes that handled an event died, and said nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """
    One message for one handler.

    Attributes:
        handler: ``None`` for a message that reaches no handler: malformed, or unknown.
        handler_name: Key of the inbox; ``""`` without a handler.
        redriven: It comes out of the deferred table.
        suspect: It may have been started before, by a process that is gone.
    """

    received: Received
    handler: Handler | None
    handler_name: str
    using: str
    redriven: bool = False
    suspect: bool = False


def execute(
    job: Job,
    settings: Settings,
    *,
    owner: str = "",
    alone: bool = True,
    is_ours: Callable[[], bool] = lambda: True,
) -> Settlement:
    """
    Attempt a job once and record the outcome.

    Args:
        owner: Name of this process.
        alone: Nothing else runs in it; ``NotAlone`` is the answer if that is needed.
        is_ours: Whether the message still belongs to this process. Asked before a failure is recorded: what
            another has by now is not for us to give up.

    Raises:
        DatabaseError, InterfaceError: The outcome could not be recorded. Nothing is settled then, and
            the same job may be executed again.
    """
    if job.handler is None:
        return _without_handler(job, settings)
    work = Work(
        received=job.received,
        handler=job.handler,
        using=job.using,
        redriven=job.redriven,
        suspect=job.suspect,
        owner=owner,
        alone=alone,
        also=_also(job),
    )
    match unit_of_work.attempt(work, settings):
        case Processed():
            return Settled(how="handled")
        case Duplicate():
            return Settled(how="duplicate")
        case NotYet(delay_s=delay_s):
            return Wait(delay_s=delay_s, why="its next attempt is not due")
        case Failed() as failed:
            return _failed(job, job.handler, failed, owner, settings, is_ours)
        case NotAlone() as not_alone:
            return not_alone
        case Crashed() if not is_ours():
            return ABANDONED
        case Crashed() as crashed:
            return _crashed(job, crashed, settings)


def _also(job: Job) -> Callable[[], None] | None:
    if not job.redriven:
        return None
    return lambda: redrive.completed(
        handler=job.handler_name, source=job.received.source, event_id=job.received.event_id, using=job.using
    )


def _abandoned(job: Job, failed: Failed, owner: str) -> Settled:
    """Its new owner tries it, with as many attempts as there were."""
    logger.info(
        "%s failed on %s (%s), which is another's by now: not recorded.",
        job.handler_name,
        _named(job.received),
        _told(failed.error),
    )
    if failed.is_recorded:
        _take_back(job, owner)
    return ABANDONED


def _failed(
    job: Job,
    handler: Handler,
    failed: Failed,
    owner: str,
    settings: Settings,
    is_ours: Callable[[], bool],
) -> Settlement:
    error = failed.error
    verdict = retry.decide(error, failed.attempt, handler.policy(settings), _jitter)
    outage = isinstance(verdict, Again) and not verdict.spends and _outage(error, job.using)
    if failed.session_lost or outage:
        if failed.is_recorded:
            _take_back(job, owner)
        return _outlast(failed)
    if not is_ours():
        return _abandoned(job, failed, owner)
    match verdict:
        case GiveUp(reason=reason):
            return _give_up(
                job, error, reason, failed.attempt, settings, is_started=failed.is_recorded, seen=failed.seen
            )
        case Again(delay_s=delay_s, spends=spends):
            recorded = inbox.record_failure(
                job.received,
                job.handler_name,
                attempt=failed.attempt,
                spends=spends,
                delay_s=delay_s,
                error=error,
                started_by=owner if failed.is_recorded else None,
                generation=failed.seen.generation if failed.seen is not None else 0,
                using=job.using,
            )
            if recorded:
                _say_failed(job, failed, delay_s, spends=spends)
            # Not recorded: another copy has moved on. The next look at the row tells what it did.
            return Wait(
                delay_s=delay_s if recorded else LOST_RACE_DELAY_S,
                why=_told(error),
                said=recorded,
            )


def _outlast(failed: Failed) -> Wait:
    """Nothing to record, and nowhere to record it."""
    why = _told(failed.error)
    if failed.session_lost:
        return Wait(delay_s=retry.OUTAGE_DELAY_S, why=f"the database ended the session ({why})", heard=False)
    # Only an error before the handler is the whole database's; the handler may speak with another.
    away = failed.seen is None and retry.is_away(failed.error)
    return Wait(delay_s=retry.OUTAGE_DELAY_S, why=why, away=away, heard=not away)


def _say_failed(job: Job, failed: Failed, delay_s: float, *, spends: bool) -> None:
    """A counted failure with its traceback, so that nobody has to look into a table for the line of a bug."""
    logger.log(
        logging.WARNING if spends else logging.INFO,
        "%s failed on %s, attempt %d (%s); again in %.1f s.",
        job.handler_name,
        _named(job.received),
        failed.attempt,
        _told(failed.error),
        delay_s,
        exc_info=_shown(failed.error) if spends else None,
    )


def _named(received: Received) -> str:
    return f"{received.event_type or 'a malformed message'} {received.source}/{received.event_id}"


def _told(error: BaseException) -> str:
    said = text.storable(text.of_error(error).strip(), MAX_TOLD_CHARS)
    return f"{text.class_of(error).rpartition('.')[2]}: {said}"


def _shown(error: BaseException) -> BaseException | None:
    """``error`` for the log, if there is a traceback that can be made: not every logging handler survives others."""
    return error if text.has_traceback(error) else None


def _outage(error: BaseException, using: str) -> bool:
    """
    Whether the database is what failed, so that there is nothing to record and nowhere to record it.

    A handler may have closed its session, which says nothing: recording opens another, or fails as in an outage.
    """
    session = connections[using]
    return retry.is_outage(error) or (session.connection is not None and not session.is_usable())


def _take_back(job: Job, owner: str) -> None:
    """A start that came to nothing. With the database away the row keeps our name, and so is not held against it."""
    try:
        inbox.take_back(job.received, job.handler_name, owner=owner, using=job.using)
    except (DatabaseError, InterfaceError):
        logger.info("The database does not answer; the start of %s stays recorded.", job.handler_name)


def _crashed(job: Job, crashed: Crashed, settings: Settings) -> Settlement:
    times = "once" if crashed.deaths == 1 else f"{crashed.deaths} times"
    error = ProcessDied(
        f"The process died {times} while handler {job.handler_name!r} handled this event, MAX_STARTS is "
        f"{settings.max_starts}. Look for the out-of-memory killer, os._exit() and crashes in C code; then redrive."
    )
    return _give_up(job, error, retry.REASON_CRASHED, crashed.attempts, settings, is_started=True)


def _give_up(
    job: Job,
    error: BaseException,
    reason: str,
    attempt: int,
    settings: Settings,
    *,
    is_started: bool = False,
    seen: Seen | None = None,
) -> Settlement:
    try:
        buried = dead_letters.bury(
            job.received,
            job.handler_name,
            error,
            reason=reason,
            attempt=attempt,
            is_started=is_started,
            seen=seen,
            settings=settings,
            using=job.using,
        )
    except Overtaken:
        return Wait(delay_s=LOST_RACE_DELAY_S, why="another copy has moved on")
    if buried is None:
        return Settled(how="duplicate")
    logger.error(
        "Dead letter %d: %s of %s, %s (%s). See: manage.py jetbridge_dlq show %d",
        buried,
        _named(job.received),
        job.handler_name or "no handler",
        reason,
        _told(error),
        buried,
        exc_info=_shown(error),
    )
    return Settled(how="dead")


def _without_handler(job: Job, settings: Settings) -> Settlement:
    message = job.received
    error: JetbridgeError
    if message.event is None:
        error, reason = MalformedMessage(message.fault), retry.REASON_MALFORMED
    elif job.handler_name:
        error, reason = (
            UnknownEvent(f"No handler is named {job.handler_name!r} any more."),
            retry.REASON_UNKNOWN,
        )
    else:
        error, reason = (
            UnknownEvent(f"No handler wants {message.event_type!r} from {message.source!r}."),
            retry.REASON_UNKNOWN,
        )
    settlement = _give_up(job, error, reason, 0, settings)
    if settlement == Settled(how="duplicate"):
        with transaction.atomic(using=job.using):
            inbox.count_duplicate(message, job.handler_name, using=job.using)
            if also := _also(job):  # or a stored message whose handler is gone would be dispatched for ever
                also()
    return settlement

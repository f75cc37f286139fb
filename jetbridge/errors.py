"""
Every exception a caller can meet, as one tree.

    JetbridgeError
    ├── InvalidEvent            publish() was given something that cannot become an event
    │   ├── UnknownDestination  no such name in DESTINATIONS, or no single default
    │   └── EventTooLarge       larger than MAX_PAYLOAD_BYTES once encoded
    ├── WrongDatabase           publishing on an alias whose transaction is not the open one
    ├── NotInTransaction        REQUIRE_ATOMIC is on and no transaction is open
    ├── MalformedMessage        bytes from the broker that are no envelope
    ├── DuplicateHandler        two handlers claim one inbox name
    ├── HandlerLeftRollback     a handler returned with its transaction marked for rollback
    ├── BrokerUnreachable       a one-shot command could not reach NATS
    └── Verdict                 raised by handlers to say what happens next
        ├── Retry               again, spends an attempt
        ├── Snooze              later, spends none
        └── Reject              dead letter at once
"""

from __future__ import annotations

from datetime import timedelta


class JetbridgeError(Exception):
    """Base of all errors raised by jetbridge."""


class InvalidEvent(JetbridgeError, ValueError):
    """An argument of ``publish()`` cannot be sent; nothing was written."""


class UnknownDestination(InvalidEvent):
    """``to=`` names no configured destination, or was left out where there are several."""


class EventTooLarge(InvalidEvent):
    """The encoded event exceeds ``MAX_PAYLOAD_BYTES``; nothing was written."""


class WrongDatabase(JetbridgeError):
    """Only another database alias is inside ``atomic()``: the event would not share its fate."""


class NotInTransaction(JetbridgeError):
    """``REQUIRE_ATOMIC`` is on and the caller is not inside ``atomic()``."""


class MalformedMessage(JetbridgeError, ValueError):
    """Bytes received from the broker do not form an envelope; the text says why."""


class DuplicateHandler(JetbridgeError):
    """Two handlers have the same name, which is the key of the inbox."""


class HandlerLeftRollback(JetbridgeError):
    """A handler returned normally, but its transaction can only be rolled back."""


class BrokerUnreachable(JetbridgeError):
    """NATS did not answer in time; the text names the (redacted) addresses."""


class Verdict(JetbridgeError):
    """Base of the exceptions by which a handler decides its own outcome."""


def _checked_delay(delay: object) -> float:
    if isinstance(delay, timedelta):
        delay = delay.total_seconds()
    if isinstance(delay, bool) or not isinstance(delay, (int, float)) or not 0 <= delay < 10**9:
        raise ValueError(f"delay must be a timedelta or a number of seconds from 0 to 1e9, got {delay!r}.")
    return float(delay)


class Retry(Verdict):
    """
    Try again after ``delay`` seconds (default: the handler's backoff). Spends an attempt.

    Args:
        reason: Shown to operators while the event waits.
        delay: Seconds to wait, ``None`` for the handler's own backoff.
    """

    def __init__(
        self, reason: str = "the handler asked for a retry", *, delay: float | timedelta | None = None
    ) -> None:
        super().__init__(reason)
        self.delay = None if delay is None else _checked_delay(delay)


class Snooze(Verdict):
    """
    Run again after ``delay`` seconds without spending an attempt.

    Args:
        delay: Seconds to wait.
        reason: Shown to operators while the event waits.
    """

    def __init__(self, delay: float | timedelta, reason: str = "the handler asked to wait") -> None:
        super().__init__(reason)
        self.delay = _checked_delay(delay)


class Reject(Verdict):
    """Give the event up at once: it becomes a dead letter with ``reason``."""

    def __init__(self, reason: str = "the handler rejected the event") -> None:
        super().__init__(reason)

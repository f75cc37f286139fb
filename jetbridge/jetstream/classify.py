"""Which kind of fault stands behind the result of a publish. Pure: the relay acts by kind alone."""

from __future__ import annotations

from enum import Enum
from typing import Final

from jetbridge.jetstream.results import NoAnswer, NotSent, Refused, Result, Stored


class Fault(Enum):
    """Who has to change something before the message can be stored."""

    OUTAGE = "outage"  # nobody: wait and send again, touch no row
    SUBJECT = "subject"  # the subject has no room or no stream: its messages wait, others flow
    MESSAGE = "message"  # this message can never be stored as it is


MAXIMUM: Final = 10077
# Resources of the account or server; sent with code 400 or 500, and gone when somebody makes room.
_FULL: Final = frozenset({10002, 10023, 10028, 10047})
_SEALED: Final = 10109
# A header the stream does not permit, the only fault of a message that comes with 500.
_ROLLUP: Final = 10111


def classify(result: Result) -> Fault:
    """
    The kind of fault of a result that is not :class:`Stored`.

    Raises:
        ValueError: For :class:`Stored`, which is no fault.
    """
    match result:
        case Stored():
            raise ValueError("A stored message has no fault; ask only about the others.")
        case NoAnswer() | NotSent():
            return Fault.OUTAGE
        case Refused():
            return _refusal(result)


def _refusal(refused: Refused) -> Fault:
    if refused.err_code == MAXIMUM:
        # One number for a full stream and for a full subject; only the text tells them apart.
        return Fault.SUBJECT if "per subject" in refused.description.lower() else Fault.OUTAGE
    if refused.err_code in _FULL:
        return Fault.OUTAGE
    if refused.err_code == _SEALED or refused.code in (403, 404):
        return Fault.SUBJECT
    if refused.code == 503 and refused.err_code == 0:
        # Nobody listens on the subject. An election looks the same, so a parked subject must be tried again soon.
        return Fault.SUBJECT
    # 400 is JetStream's word for a bad message. Any other number we do not know must not condemn good rows.
    return Fault.MESSAGE if refused.code == 400 or refused.err_code == _ROLLUP else Fault.OUTAGE

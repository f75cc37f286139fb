"""
Facts as Django signals, sent at exact points with fixed keys.

All are sent with ``send_robust``, in the thread where the fact happened, synchronously: a receiver
that kills its own process dies exactly there, which is how the crash tests work. A receiver that
raises is logged and changes nothing. Receivers run on the hot path: be quick.

=================== ================================================= =====================================
signal              when                                              keyword arguments
=================== ================================================= =====================================
publish_acked       the stream has stored a page of rows, the outbox  ``using``, ``ids`` (outbox ids)
                    does not know it yet
outbox_settled      those rows have moved to the archive              ``using``, ``ids``
handler_started     the inbox row is claimed, the handler is next     ``using``, ``handler``, ``delivery``
handler_committed   the handler's transaction is committed, the ack   ``using``, ``handler``, ``delivery``
                    is not sent yet
delivery_acked      the ack has been written to the connection        ``subject``, ``stream``, ``sequence``
dead_lettered       a dead letter is committed                        ``using``, ``handler``, ``event_id``,
                                                                      ``source``, ``reason``, ``dead_letter_id``
=================== ================================================= =====================================

``sender`` is always the string ``"jetbridge"``.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from typing import Final

from django.dispatch import Signal

logger = logging.getLogger("jetbridge.signals")
SENDER: Final = "jetbridge"

publish_acked = Signal()
outbox_settled = Signal()
handler_started = Signal()
handler_committed = Signal()
delivery_acked = Signal()
dead_lettered = Signal()


def send(signal: Signal, **facts: object) -> None:
    """Tell the receivers; what they raise is logged and goes no further."""
    try:
        answers = signal.send_robust(sender=SENDER, **facts)
    except (SystemExit, GeneratorExit, CancelledError) as error:
        # Django lets through what is no Exception. A receiver that calls sys.exit() would end a relay without a drain.
        logger.error("A signal receiver raised %r; those after it were not told.", error, exc_info=error)
        return
    for receiver, answer in answers:
        if isinstance(answer, Exception):
            logger.error("A signal receiver failed: %r", receiver, exc_info=answer)

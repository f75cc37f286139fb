"""
Bugs planted on purpose, to see that the verdict names each: a verdict that cannot fail proves nothing.

``python -m tests.matrix --prove`` runs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db.models import F

import jetbridge
from jetbridge.consumer.consumer import Consumer
from jetbridge.inbox import store as inbox
from jetbridge.inbox import unit_of_work
from jetbridge.jetstream import acks
from jetbridge.jetstream.incoming import Incoming
from jetbridge.models import Inbox, Outbox
from jetbridge.outbox import store as outbox
from tests.matrix import writing
from tests.matrix.saboteur import Fault, Saboteur
from tests.matrix.scenes import Planned


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """
    Attributes:
        plant: Called in every process of the run before it begins.
        step, fault: The cell that shows it.
        expects: What the verdict must name, among other things perhaps.
    """

    name: str
    plant: Callable[[], None]
    step: str
    fault: Fault
    expects: str


def _ack_first() -> None:
    """An ack that stands for nothing."""
    take = Consumer.take

    def hasty(self: Consumer, incoming: Incoming, feed: str) -> None:
        acks._settle(self._connection, incoming.reply, b"+ACK")
        take(self, incoming, feed)

    Consumer.take = hasty  # type: ignore[method-assign]


def _drop_row() -> None:
    """A row leaves the outbox and goes nowhere."""
    page = outbox.page

    def forgetful(*args: Any, **keywords: Any) -> Any:
        records = page(*args, **keywords)
        Outbox.objects.filter(id__in=[record.id for record in records[-1:]]).delete()
        return records[:-1]

    outbox.page = forgetful


def _double_effect() -> None:
    """Nobody looks whether the event was handled before."""
    claim = inbox.claim

    def blind(*args: Any, **keywords: Any) -> bool:
        claim(*args, **keywords)
        return True

    inbox.claim = blind
    unit_of_work._Run._record_start = lambda self: None  # type: ignore[method-assign]


def _publish_rolled_back() -> None:
    """The event does not share the fate of its transaction."""
    place = writing._place

    def eager(order: Planned) -> None:
        try:
            place(order)
        except writing._ChangedItsMind:
            jetbridge.publish("order.placed", {"n": order.n, "do": "ok"}, event_id=order.event_id)
            raise

    writing._place = eager


def _never_ack() -> None:
    async def silent(*args: Any) -> bool:
        return True

    acks.ack = silent  # type: ignore[assignment]


def _newest_first() -> None:
    page = outbox.page
    outbox.page = lambda *args, **keywords: page(*args, **keywords)[::-1]


def _starts_are_attempts() -> None:
    """An event pays for the death of its process."""
    record_start = inbox.record_start

    def dear(received: Any, handler: str, *args: Any, **keywords: Any) -> None:
        record_start(received, handler, *args, **keywords)
        Inbox.objects.filter(event_id=received.event_id).update(attempts=F("attempts") + 1)

    inbox.record_start = dear


def _no_fault() -> None:
    Saboteur.lie_in_wait = lambda self: None  # type: ignore[method-assign]


BUGS: Final[Sequence[Bug]] = (
    Bug(name="ack_first", plant=_ack_first, step="consume.commit.before", fault=Fault.KILL, expects="lost"),
    Bug(name="drop_row", plant=_drop_row, step="relay.page.read", fault=Fault.KILL, expects="lost"),
    Bug(
        name="double_effect",
        plant=_double_effect,
        step="consume.ack.before",
        fault=Fault.KILL,
        expects="doubled",
    ),
    Bug(
        name="publish_rolled_back",
        plant=_publish_rolled_back,
        step="publish.commit.after",
        fault=Fault.DELAY,
        expects="ghosts",
    ),
    Bug(name="never_ack", plant=_never_ack, step="relay.settled", fault=Fault.KILL, expects="stuck"),
    Bug(
        name="newest_first",
        plant=_newest_first,
        step="relay.publish.acked",
        fault=Fault.KILL,
        expects="order",
    ),
    Bug(
        name="starts_are_attempts",
        plant=_starts_are_attempts,
        step="consume.start.committed",
        fault=Fault.KILL,
        expects="attempts",
    ),
    Bug(name="no_fault", plant=_no_fault, step="relay.settled", fault=Fault.KILL, expects="not_reached"),
)
BY_NAME: Final = {bug.name: bug for bug in BUGS}

"""What the driver reads and, once, writes in the database of a run."""

from __future__ import annotations

from typing import Any

from django.db import connections

from jetbridge.models import (
    Archive,
    DeadLetter,
    DeadLetterState,
    Deferred,
    Inbox,
    InboxState,
    Outbox,
    OutboxState,
    Scheduled,
)
from testproject.billing.models import Invoice
from testproject.orders.models import Order
from tests.matrix.verdict import Archived, InboxRow, Letter

SETTLED = (InboxState.PROCESSED, InboxState.DEAD)


def use(database: dict[str, Any]) -> None:
    """From now on ``default`` is this database, in this process and in all it forks."""
    connections.close_all()
    connections.settings = connections.configure_settings({"default": database})
    if hasattr(connections._connections, "default"):  # type: ignore[attr-defined]
        del connections["default"]


def unfinished() -> list[str]:
    """What the tables say is still to be done, as sentences."""
    found = []
    if rows := Outbox.objects.count() + Scheduled.objects.count():
        found.append(f"{rows} rows wait to be sent.")
    if rows := Inbox.objects.exclude(state__in=SETTLED).count():
        found.append(f"{rows} events are running, retrying or deferred.")
    if rows := Deferred.objects.count() + DeadLetter.objects.filter(state=DeadLetterState.REDRIVING).count():
        found.append(f"{rows} redriven events have not run.")
    return found


def waits_for_operator() -> bool:
    """Whether nothing is left in the outbox but what a refused row holds up."""
    states = set(Outbox.objects.values_list("state", flat=True))
    return OutboxState.REFUSED in states and states <= {OutboxState.REFUSED, OutboxState.HELD}


def send_refused_again() -> None:
    """What an operator does once the reason is gone."""
    Outbox.objects.filter(state=OutboxState.REFUSED).update(state=OutboxState.READY, error_code="", error="")


def archived() -> int:
    return Archive.objects.count()


def effects() -> list[str]:
    return list(Invoice.objects.order_by("id").values_list("event_id", flat=True))


def orders() -> list[str]:
    return list(Order.objects.values_list("number", flat=True))


def waiting() -> list[str]:
    """Event ids of all that is on its way in a table."""
    tables = (Outbox, Scheduled, Deferred)
    return [event_id for table in tables for event_id in table.objects.values_list("event_id", flat=True)]


def archive() -> list[Archived]:
    rows = Archive.objects.order_by("id").values("event_id", "key", "kind", "sequence")
    return [Archived(**row) for row in rows]


def inbox() -> list[InboxRow]:
    rows = Inbox.objects.values("event_id", "state", "attempts", "starts", "generation")
    return [InboxRow(**row) for row in rows.order_by("id")]


def letters() -> list[Letter]:
    rows = DeadLetter.objects.order_by("id").values("event_id", "state", "reason", "attempts")
    return [Letter(**row) for row in rows]

"""What the databases of both services say when all is over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from django.db.models import F, Sum

from jetbridge.models import Archive, DeadLetter, Inbox, Outbox
from testproject.billing.models import Invoice
from testproject.orders.models import Order

BILLING = "billing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """
    Attributes:
        committed: Orders in the database; the same number stored twice (an unknown COMMIT) is one.
        attempts_spent: Attempts beyond the first of each event, of the consumer and of the relay.
        starts_spent: Starts without an attempt: held against their event as deaths of a process, of which none died.
        left: Outbox rows of any state, and inbox rows that are not processed.
    """

    committed: int
    handled: int
    lost: int
    doubled: int
    ghosts: int
    attempts_spent: int
    starts_spent: int
    dead_letters: int
    left: int
    duplicates: int


def missing() -> int:
    """Orders that have no invoice yet."""
    return len(_orders() - set(_invoices()))


def count() -> Count:
    orders, invoices = _orders(), Counter(_invoices())
    inbox = Inbox.objects.using(BILLING)
    unfinished = inbox.exclude(state="processed").count()
    spent = inbox.aggregate(n=Sum(F("attempts") - 1))["n"] or 0
    duplicates = inbox.aggregate(n=Sum("duplicates"))["n"] or 0
    return Count(
        committed=len(orders),
        handled=sum(invoices.values()),
        lost=len(orders - set(invoices)),
        doubled=sum(times > 1 for times in invoices.values()),
        ghosts=len(set(invoices) - orders),
        attempts_spent=spent + sum(Outbox.objects.values_list("attempts", flat=True)),
        starts_spent=inbox.aggregate(n=Sum(F("starts") - F("attempts")))["n"] or 0,
        dead_letters=DeadLetter.objects.using(BILLING).count(),
        left=Outbox.objects.count() + unfinished,
        duplicates=duplicates + Archive.objects.filter(duplicate=True).count(),
    )


def _orders() -> set[int]:
    return {int(number) for number in Order.objects.values_list("number", flat=True)}


def _invoices() -> list[int]:
    return list(Invoice.objects.using(BILLING).values_list("order_id", flat=True))

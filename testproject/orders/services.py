"""What the rest of a shop would call: the business transaction, and the event inside it."""

from __future__ import annotations

from decimal import Decimal

from django.db import transaction

import jetbridge
from jetbridge.event import JSON
from testproject.orders.models import Order


def place_order(
    number: str, total: Decimal, *, email: str = "", fails: bool = False, event_id: str | None = None
) -> Order:
    """
    Save an order and tell billing, both or neither.

    Args:
        number: The shop's own number.
        total: At most 12 digits, two of them after the point.
        email: Whom the invoice goes to.
        fails: Billing will refuse this order for good: its event ends as a dead letter.
        event_id: An id of the caller's choice; by default a new one.
    """
    with transaction.atomic():
        order = Order.objects.create(number=number, total=total, email=email, fails=fails)
        announce(order, event_id=event_id)
    return order


def announce(order: Order, *, event_id: str | None = None) -> str:
    """Publish ``order.placed`` for an order, again if need be; the same ``event_id`` has one effect."""
    payload: dict[str, JSON] = {
        "id": order.pk,
        "number": order.number,
        "total": str(order.total),
        "email": order.email,
        "fails": order.fails,
    }
    return jetbridge.publish("order.placed", payload, to="billing", event_id=event_id)

"""What the orders service does when billing speaks."""

from __future__ import annotations

import jetbridge
from testproject.orders.models import Order


@jetbridge.handler("invoice.created", source="billing")
def mark_invoiced(event: jetbridge.Event) -> None:
    """The order of the invoice is invoiced; an order that is not here is worth a dead letter."""
    order_id = int(str(event.payload["order_id"]))
    if not Order.objects.filter(pk=order_id).update(invoiced=True):
        raise jetbridge.Reject(f"Invoice {event.resource_id} is for the unknown order {order_id}.")

"""What the billing service does when an order is placed."""

from __future__ import annotations

from decimal import Decimal

import jetbridge
from testproject.billing.models import Invoice


@jetbridge.handler("order.placed", source="orders")
def create_invoice(event: jetbridge.Event) -> None:
    """Write the invoice and answer, in the transaction that also remembers the event."""
    order = event.payload
    if order.get("fails"):
        raise ValueError(f"Order {order['number']} cannot be invoiced: it is marked as failing.")
    invoice = Invoice.objects.create(
        order_id=int(str(order["id"])), event_id=str(event.event_id), total=Decimal(str(order["total"]))
    )
    jetbridge.publish("invoice.created", {"id": invoice.pk, "order_id": order["id"]}, to="orders")

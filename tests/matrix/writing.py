"""The writer's process: a shop that places orders, each in one transaction with its event."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import transaction

import jetbridge
from testproject.orders.models import Order
from tests.matrix.scenes import MAX_BYTES, Planned


class _ChangedItsMind(Exception):
    """Rolls an order back after its event was published."""


def write(orders: Sequence[Planned]) -> int:
    """Place the orders that are not there yet, as a writer does that was started again."""
    for order in orders:
        if Order.objects.filter(number=order.number).exists():
            continue
        try:
            _place(order)
        except _ChangedItsMind:
            continue
    return 0


def _place(order: Planned) -> None:
    with transaction.atomic():
        Order.objects.create(number=order.number, total=order.n)
        for _ in range(2 if order.is_twice else 1):
            jetbridge.publish(
                "order.placed",
                {"n": order.n, "do": order.do, "pad": "x" * MAX_BYTES if order.is_large else ""},
                key=order.key,
                event_id=order.event_id,
                delay=order.delay_s or None,
            )
        if order.is_rolled_back:
            raise _ChangedItsMind

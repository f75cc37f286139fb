"""
What is placed: a list of steps made from a seed, and how each one is really done.

Most orders are committed. Some are rolled back, in every form a Django service knows; some are announced
a second time under the same event id; one can never be invoiced.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from typing import Final

MIN_ORDERS: Final = 10
ROLLED_BACK_SHARE: Final = 0.1
TWICE_SHARE: Final = 0.1


class Way(StrEnum):
    """How an order is placed."""

    KEPT = "kept"
    TWICE = "announced twice under one event id"
    FAILING = "never invoiced"
    EXCEPTION = "rolled back by an exception"
    SET_ROLLBACK = "rolled back by set_rollback"
    SAVEPOINT = "rolled back with its savepoint, inside a transaction that commits"


ROLLBACKS: Final = (Way.EXCEPTION, Way.SET_ROLLBACK, Way.SAVEPOINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One order. ``event_id`` is empty where jetbridge makes one."""

    number: str
    total: Decimal
    email: str
    way: Way
    event_id: str = ""

    @property
    def is_kept(self) -> bool:
        return self.way not in ROLLBACKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """
    One business transaction.

    Attributes:
        inner: An order whose savepoint is rolled back inside the transaction of ``order``.
        again: The order exists already; only its event is published once more.
    """

    order: Planned
    inner: Planned | None = None
    again: bool = False


class ChangedMind(Exception):
    """The customer left; everything of this transaction or savepoint is to be undone."""


def plan(orders: int, seed: int) -> list[Step]:
    """The same steps for the same arguments; together they place ``orders`` orders."""
    chance = random.Random(f"{orders}/{seed}")
    ways = _ways(orders)
    chance.shuffle(ways)
    planned = [_planned(index, way, seed, chance) for index, way in enumerate(ways, start=1)]
    inner = [order for order in planned if order.way is Way.SAVEPOINT]
    steps = [Step(order=order) for order in planned if order.way is not Way.SAVEPOINT]
    hosts = [index for index, step in enumerate(steps) if step.order.is_kept]
    for index, order in zip(chance.sample(hosts, len(inner)), inner, strict=True):
        steps[index] = replace(steps[index], inner=order)
    return _with_second_copies(steps, chance)


def orders_of(steps: Sequence[Step]) -> list[Planned]:
    """Every order that the steps try to place, once."""
    first = [step for step in steps if not step.again]
    return [order for step in first for order in (step.inner, step.order) if order is not None]


def perform(step: Step) -> None:
    """Do a step, in a real transaction of the orders service."""
    from django.db import transaction

    order = step.order
    match order.way:
        case _ if step.again:
            _announce_again(order)
        case Way.EXCEPTION:
            _place_and_leave(order)
        case Way.SET_ROLLBACK:
            with transaction.atomic():
                _place(order)
                transaction.set_rollback(True)
        case _:
            with transaction.atomic():
                if step.inner is not None:
                    _place_and_leave(step.inner)
                _place(order)


def _ways(orders: int) -> list[Way]:
    back = max(len(ROLLBACKS), round(orders * ROLLED_BACK_SHARE))
    twice = max(2, round(orders * TWICE_SHARE))
    ways = [ROLLBACKS[index % len(ROLLBACKS)] for index in range(back)]
    ways += [Way.TWICE] * twice + [Way.FAILING]
    return ways + [Way.KEPT] * (orders - len(ways))


def _planned(index: int, way: Way, seed: int, chance: random.Random) -> Planned:
    number = f"{seed}-{index:06d}"
    return Planned(
        number=number,
        total=Decimal(chance.randint(100, 99_999)).scaleb(-2),
        email=f"customer{chance.randint(1, 999)}@example.org",
        way=way,
        event_id=f"order-{number}" if way is Way.TWICE else "",
    )


def _with_second_copies(steps: Sequence[Step], chance: random.Random) -> list[Step]:
    """Second copies come a while after the first: some meet it in the stream, some come long after its end."""
    placed: list[tuple[float, int, Step]] = []
    for index, step in enumerate(steps):
        placed.append((index, 0, step))
        if step.order.way is Way.TWICE:
            later = index + chance.uniform(0, max(2.0, len(steps) / 2))
            placed.append((later, 1, Step(order=step.order, again=True)))
    return [step for _, _, step in sorted(placed, key=lambda entry: entry[:2])]


def _place(order: Planned) -> None:
    from testproject.orders import services

    services.place_order(
        order.number,
        order.total,
        email=order.email,
        fails=order.way is Way.FAILING,
        event_id=order.event_id or None,
    )


def _place_and_leave(order: Planned) -> None:
    from django.db import transaction

    try:
        with transaction.atomic():
            _place(order)
            raise ChangedMind(order.number)
    except ChangedMind:
        pass


def _announce_again(order: Planned) -> None:
    from django.db import transaction

    from testproject.orders import services
    from testproject.orders.models import Order

    with transaction.atomic():
        services.announce(Order.objects.get(number=order.number), event_id=order.event_id)

"""Handlers that run for too long: shown, said once, and stuck only when no thread is left."""

from __future__ import annotations

from typing import Any

import pytest

from jetbridge.consumer.delivery import Held, Item
from jetbridge.consumer.execute import Job
from jetbridge.consumer.overdue import Overdue
from jetbridge.received import Received
from jetbridge.registry import Handler


def item(n: int, *, began_at: float = 0.0, timeout_s: float | None = None, alone: bool = False) -> Item:
    received = Received(
        subject="shop.sync.billing",
        stream="jetbridge-shop",
        sequence=n,
        source="shop",
        event_id=f"e{n}",
        event_type="order.placed",
        key="k",
        headers={},
        body=b"{}",
        event=None,
        fault="",
    )
    handler = Handler(
        name="t.h",
        function=print,
        patterns=(">",),
        source=None,
        atomic=True,
        ordered=True,
        using=None,
        timeout_s=timeout_s,
        max_attempts=None,
        backoff=None,
        permanent=(),
        transient=(),
    )
    job = Job(received=received, handler=handler, handler_name="t.h", using="default")
    message = Held(subject="s", stream="jetbridge-shop", sequence=n, reply="r", feed="f")
    return Item(job=job, message=message, alone=alone, began_at=began_at)


def at(now: float, *running: Item, size: int = 2) -> Overdue:
    return Overdue(running, timeout_s=60.0, size=size, clock=lambda: now)


def test_a_handler_has_its_time_out_and_a_margin():
    assert at(90.0, item(1)).titles() == []
    assert at(90.1, item(1), item(2, began_at=50.0)).titles() == ["t.h shop/e1"]


def test_its_own_time_out_counts_before_the_settings():
    assert at(100.0, item(1, timeout_s=300.0)).titles() == []
    assert at(2.5, item(1, timeout_s=1.0)).titles() == ["t.h shop/e1"]


@pytest.mark.parametrize(
    ("running", "choked"),
    [
        ((), False),
        ((item(1),), False),
        ((item(1), item(2)), True),
        ((item(1, alone=True),), True),  # who runs alone has all threads
        ((item(1), item(2, began_at=950.0)), False),
    ],
)
def test_it_is_choked_when_no_thread_is_left(running: tuple[Any, ...], choked: bool):
    assert at(1_000.0, *running).is_choked() is choked


def test_one_is_enough_while_another_waits_for_every_thread():
    """Red if only taken threads are counted: the free ones are given to nobody then."""
    overdue = Overdue([item(1)], timeout_s=60.0, size=8, waits_alone=lambda: True, clock=lambda: 1_000.0)
    in_time = Overdue([item(1)], timeout_s=60.0, size=8, waits_alone=lambda: True, clock=lambda: 1.0)

    assert (overdue.is_choked(), in_time.is_choked()) == (True, False)


def test_each_is_said_once(caplog):
    overdue = at(1_000.0, item(1))
    overdue.say()
    overdue.say()

    assert caplog.text.count("t.h shop/e1 has run for 1000 s.") == 1

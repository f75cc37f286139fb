"""What the consumer of a run does with its events. Found by autodiscovery: ``tests.matrix`` is an installed app."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import jetbridge
from testproject.billing.models import Invoice
from tests.matrix import lab

SLOW_S = 10.0


@jetbridge.handler("order.placed", name="matrix.placed")
def placed(event: jetbridge.Delivery) -> None:
    """One invoice an event. It is written first, so that a failed attempt has something to leave behind."""
    n, do = int(str(event.payload["n"])), event.payload["do"]
    Invoice.objects.create(order_id=n, event_id=event.event_id, total=0)
    match do:
        case "slow":
            _until_told()
        case "flaky" if event.attempt == 1:
            raise jetbridge.Retry(delay=0.05)
        case "snooze" if _first_time(lab.folder() / f"snoozed-{n}"):
            raise jetbridge.Snooze(delay=0.05)
        case "poison" if not (lab.folder() / lab.CURED).exists():
            raise ValueError(f"Order {n} cannot be invoiced.")
        case "answer":
            jetbridge.publish(
                "invoice.created", {"n": n}, key=f"answer-{n}", event_id=f"{event.event_id}-answer"
            )


@jetbridge.handler("invoice.created", name="matrix.answered")
def answered(event: jetbridge.Delivery) -> None:
    """The effect of an event that a handler has published."""
    Invoice.objects.create(order_id=int(str(event.payload["n"])), event_id=event.event_id, total=1)


def _until_told() -> None:
    (lab.folder() / lab.BEGUN).touch()
    end = time.monotonic() + SLOW_S
    while not (lab.folder() / lab.GO).exists() and time.monotonic() < end:
        threading.Event().wait(0.005)


def _first_time(marker: Path) -> bool:
    if marker.exists():
        return False
    marker.touch()
    return True

"""Writers that place orders at a modest pace, whatever is away, and never give an order up."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

from django.db import DatabaseError, InterfaceError, connections, transaction

import jetbridge
from testproject.orders.models import Order

PAUSE_S = 0.2
ROLLED_BACK_EVERY = 10


class _ChangedMind(Exception):
    """Rolls a business transaction back after its publish()."""


class Writers:
    """
    ``threads`` writers, each with an order every ``PAUSE_S``. Every tenth order is rolled back after its publish().

    Attributes:
        failures: Transactions that the database did not take. Each was tried again, with the same event id.
    """

    def __init__(self, threads: int = 2) -> None:
        self.failures = 0
        self._numbers: Iterator[int] = itertools.count(1)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 60.0) -> None:
        """Ends when each writer's last order is in the database."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout_s)
            if thread.is_alive():
                raise RuntimeError(f"A writer is still trying to place its order after {timeout_s:g} s.")

    def _write(self) -> None:
        try:
            while not self._stop.wait(PAUSE_S):
                with self._lock:
                    number = next(self._numbers)
                while not self._placed(number):
                    threading.Event().wait(PAUSE_S)
        finally:
            connections.close_all()

    def _placed(self, number: int) -> bool:
        try:
            with transaction.atomic():
                Order.objects.create(number=str(number), total=0)
                # An id of our own: whoever lost the answer to a COMMIT publishes it twice, and means one effect.
                jetbridge.publish(
                    "order.placed", {"n": number}, key=f"k{number % 20}", event_id=f"order-{number}"
                )
                if number % ROLLED_BACK_EVERY == 0:
                    raise _ChangedMind
        except _ChangedMind:
            return True
        except (DatabaseError, InterfaceError):
            with self._lock:
                self.failures += 1
            connections.close_all()
            return False
        return True

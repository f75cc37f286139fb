"""
What happens: orders are placed while a consumer is killed and the broker is killed, in the middle of it.

Orders are placed step by step in a fixed order; *when* a fault comes is decided by what billing has done so
far, so that it always meets events on their way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from testproject.demo import counting
from testproject.demo.counting import Query, Tally
from testproject.demo.orders import Step, Way, orders_of, perform
from testproject.demo.report import Reporter
from testproject.demo.world import World

POLL_S: Final = 0.005
SHOW_EVERY_S: Final = 0.1
PACE_S: Final = 0.004
MIDDLE: Final = (0.2, 0.8)
KILL_CONSUMER_AT: Final = 0.25
KILL_BROKER_AT: Final = 0.5
BURST_SHARE: Final = 0.08
# Of a smaller burst nothing would be left once its first effect is seen: then the fault comes at once.
WORTH_WAITING_FOR: Final = 3
TRIES: Final = 3
BROKER_DOWN_S: Final = 0.5


class TimedOut(Exception):
    """The time of the demo is up; the text says what it waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """What a fault met: billing's share of finished orders (0 to 1), and events on their way to it."""

    share: float
    in_flight: int

    @property
    def in_the_middle(self) -> bool:
        return MIDDLE[0] <= self.share <= MIDDLE[1] and self.in_flight > 0

    def __str__(self) -> str:
        return f"{self.share:.0%}, {self.in_flight} in flight"


@dataclass(slots=True, kw_only=True)
class Faults:
    """Each fault with what it met."""

    consumer: list[Hit] = field(default_factory=list)
    broker: list[Hit] = field(default_factory=list)


class Story:
    """
    Args:
        deadline_s: Seconds left.
        orders, billing: Queries on the two databases.
    """

    def __init__(
        self,
        world: World,
        steps: Sequence[Step],
        reporter: Reporter,
        *,
        orders: Query,
        billing: Query,
        deadline_s: Callable[[], float],
    ) -> None:
        self.faults = Faults()
        self._world = world
        self._steps = list(steps)
        self._reporter = reporter
        self._orders = orders
        self._billing = billing
        self._deadline_s = deadline_s
        self._expected = sum(order.is_kept for order in orders_of(steps))
        self._burst = max(1, round(self._expected * BURST_SHARE))
        self._next_show = 0.0

    def run(self) -> None:
        """
        Raises:
            TimedOut: Not everything was finished in time.
            WorkerEnded: A process did not survive what it must survive.
        """
        self._reporter.say("Placing orders; some are rolled back, some announced twice, one must fail")
        self._fault(KILL_CONSUMER_AT, self._kill_consumer, self.faults.consumer)
        self._fault(KILL_BROKER_AT, self._kill_broker, self.faults.broker)
        self._place_until(self._expected)
        while self._steps:
            self._place_next()
        self._reporter.say("All orders are placed; waiting for the last events")
        self._wait(self._is_settled, "every event to be settled")

    def tally(self) -> Tally:
        return counting.tally(self._orders, self._billing)

    # --- faults ----------------------------------------------------------------------------------

    def _fault(self, share: float, strike: Callable[[], Hit], hits: list[Hit]) -> None:
        """Strike when billing has done ``share`` of its work and is in the midst of a burst of orders."""
        target = share * self._expected
        self._place_until(round(target) + 1)
        self._wait(lambda tally: tally.invoices + tally.dead_letters >= target, "billing to go on")
        for _ in range(TRIES):
            done = self.tally().invoices
            if self._place_burst() >= WORTH_WAITING_FOR:
                self._wait(_beyond(done), "billing to see the burst", poll_s=0.001)
                self._top_up()
            hits.append(strike())
            if hits[-1].in_the_middle:
                return

    def _kill_consumer(self) -> Hit:
        self._world.kill_worker("billing", "consumer")
        # Looked at afterwards: the numbers stand still, so this is exactly what it left behind.
        hit = self._hit()
        self._reporter.say(
            f"✗ Killed billing's consumer (SIGKILL) at {hit}; the next one waits for its lease"
        )
        self._world.start_worker("billing", "consumer")
        return hit

    def _kill_broker(self) -> Hit:
        # Looked at before: billing goes on with what it holds, and would be done with it in a moment.
        hit = self._hit()
        self._world.kill_broker()
        self._reporter.say(f"✗ Killed the broker (SIGKILL) at {hit}; orders are placed all the same")
        until = time.monotonic() + BROKER_DOWN_S
        self._place_burst()
        self._wait(lambda tally: time.monotonic() >= until, "the outage to be over")
        self._world.restart_broker()
        self._reporter.say("Started the broker again, same port, same store")
        return hit

    def _hit(self) -> Hit:
        tally = self.tally()
        done = tally.invoices + tally.dead_letters
        return Hit(share=done / self._expected, in_flight=tally.in_flight)

    # --- placing and waiting ---------------------------------------------------------------------

    def _place_until(self, committed: int) -> None:
        while self._steps and self.tally().orders < committed:
            self._place_next()

    def _place_burst(self) -> int:
        """
        As fast as they go: the relay finds them all at once, and billing has its hands full.

        Returns:
            Orders for which an invoice will be written.
        """
        good = 0
        while self._steps and good < self._burst:
            step = self._steps.pop(0)
            perform(step)
            good += step.order.way in (Way.KEPT, Way.TWICE) and not step.again
        return good

    def _top_up(self) -> None:
        """Billing may have done with the burst by now. Orders are placed faster than they travel."""
        for _ in range(self._burst):
            if not self._steps or self.tally().in_flight >= WORTH_WAITING_FOR:
                return
            perform(self._steps.pop(0))

    def _place_next(self) -> None:
        perform(self._steps.pop(0))
        self._look(self.tally())
        time.sleep(PACE_S)

    def _wait(self, fact: Callable[[Tally], bool], what: str, *, poll_s: float = POLL_S) -> None:
        while not fact(tally := self.tally()):
            self._look(tally)
            if self._deadline_s() <= 0:
                raise TimedOut(what)
            time.sleep(poll_s)

    def _look(self, tally: Tally) -> None:
        if (now := time.monotonic()) >= self._next_show:
            self._next_show = now + SHOW_EVERY_S
            self._world.check_workers()
            self._reporter.show(placed=tally.orders, invoiced=tally.invoices, answered=tally.answers)
            if self._deadline_s() <= 0:
                raise TimedOut("orders to be placed")

    def _is_settled(self, tally: Tally) -> bool:
        if tally.in_flight or tally.answers < tally.invoices:
            return False
        return not counting.unsent(self._orders, self._billing) and not self._world.left_in_streams()


def _beyond(invoices: int) -> Callable[[Tally], bool]:
    return lambda tally: tally.invoices > invoices

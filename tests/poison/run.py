"""One run: servers, events with poison among them, consumers that die and are started again, the counting."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from testproject.nats_server import NatsServer
from testproject.postgres import Postgres
from testproject.settings.base import postgres, sqlite
from tests.poison.verdict import document
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.running import Process, Processes

SHOP, BILLING = "poison-shop", "poison-billing"
PREPARE_S: Final = 120.0
AT_ONCE: Final = 1_000
DEATHS: Final = (1, -signal.SIGSEGV, -signal.SIGKILL, -signal.SIGABRT)

HANDLERS = """\
import os
import signal
import threading

import jetbridge
from testproject.billing.models import Invoice


@jetbridge.handler(">", name="poison.invoice")
def handle(event: jetbridge.Event) -> None:
    Invoice.objects.create(order_id=event.payload["n"], event_id=event.event_id, total=0)
    threading.Event().wait(event.payload["wait_s"])
    end = event.payload["end"]
    if end == "exit":
        os._exit(1)
    elif end:
        os.kill(os.getpid(), getattr(signal, end))
        threading.Event().wait()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    Args:
        poisons: How each poison kills its process.
        consumers: Processes. One has the lease, the others stand by.
        lease_s: Short: a dead consumer's lease and messages must come back soon, or most of a run is waiting.
        slow_neighbours: The events before and behind a poison are in the middle of their handlers when it kills.
    """

    db: str
    events: int
    keys: int
    poisons: tuple[str, ...]
    seed: int
    consumers: int
    concurrency: int
    lease_s: float
    slow_neighbours: bool
    timeout_s: float

    def ends(self) -> dict[int, str]:
        """Number of each poison, and how it kills. None is in the first or the last tenth."""
        among = range(self.events // 10, self.events - self.events // 10)
        return dict(zip(random.Random(self.seed).sample(among, len(self.poisons)), self.poisons, strict=True))

    def payload(self, n: int) -> dict[str, Any]:
        ends = self.ends()
        near = self.slow_neighbours and any(0 < abs(n - poison) <= self.concurrency for poison in ends)
        return {"n": n, "end": ends.get(n), "wait_s": 0.3 if near else 0.05 if n in ends else 0.0}


def run(plan: Plan, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The verdict as a JSON document."""
    with _servers(plan, folder) as (broker, database):
        databases = _databases(folder, database)
        half = plan.lease_s / 2
        terms = {"LEASE_S": plan.lease_s, "ACK_WAIT_S": half, "PUBLISH_TIMEOUT_S": half}
        common = {**terms, "NATS_URLS": [broker.url], "CONCURRENCY": plan.concurrency}
        shop = {**common, "APP_NAME": SHOP, "DESTINATIONS": [BILLING]}
        billing = {**common, "APP_NAME": BILLING, "SOURCES": [SHOP]}
        os.environ["POISON"] = json.dumps({"databases": databases, "jetbridge": shop})
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.poison.settings"
        import django

        django.setup()
        from tests.running import Processes

        processes = Processes(folder / "processes")
        own = {"default": databases["default"]}, {"default": databases["billing"]}
        try:
            _prepare(processes, [(shop, own[0]), (billing, own[1])])
            _publish(plan)
            relay = processes.start(
                "jetbridge_relay", "--until-empty", "--timeout", "300", keys=shop, databases=own[0]
            )
            _succeed(relay)
            say(f"{plan.events} events are in the stream, poison: {plan.ends()}")

            def consumer() -> Process:
                return processes.start("jetbridge_consume", keys=billing, databases=own[1], handlers=HANDLERS)

            deaths, codes = _consume(plan, consumer, say)
            return _verdict(plan, broker.url, deaths, codes)
        finally:
            processes.end()


@contextmanager
def _servers(plan: Plan, folder: Path) -> Iterator[tuple[NatsServer, Postgres | None]]:
    with NatsServer(folder / "nats") as broker:
        if plan.db == "sqlite":
            yield broker, None
            return
        with Postgres(folder / "postgres", fsync=False) as server:
            for name in ("orders", "billing"):
                server.create_database(name)
            yield broker, server


def _databases(folder: Path, server: Postgres | None) -> dict[str, Any]:
    def one(name: str) -> dict[str, Any]:
        return postgres(server.url, name) if server is not None else sqlite(folder / f"{name}.sqlite3")

    return {"default": one("orders"), "billing": one("billing")}


def _prepare(processes: Processes, services: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for keys, where in services:
        _succeed(processes.start("migrate", "-v", "0", keys=keys, databases=where))
    for keys, where in services:  # the stream first, then the durable in it
        _succeed(processes.start("jetbridge_provision", keys=keys, databases=where))


def _succeed(command: Process) -> None:
    if command.wait(PREPARE_S) != 0:
        raise RuntimeError(f"A preparation failed:\n{command.log[-2000:]}")


def _publish(plan: Plan) -> None:
    import jetbridge

    for start in range(0, plan.events, AT_ONCE):
        jetbridge.publish_many(
            jetbridge.Event("order.placed", plan.payload(n), key=f"k{n % plan.keys}", event_id=f"e{n}")
            for n in range(start, min(start + AT_ONCE, plan.events))
        )


def _consume(
    plan: Plan, consumer: Callable[[], Process], say: Callable[[str], None]
) -> tuple[list[int], list[int]]:
    """Start what has died again until all is settled; the exit codes of those that died, and of those that ended."""
    from tests.poison.counting import settled

    running = [consumer() for _ in range(plan.consumers)]
    deaths: list[int] = []

    def done() -> bool:
        for number, process in enumerate(running):
            code = process.poll()
            if code is None:
                continue
            if code not in DEATHS:
                raise RuntimeError(f"A consumer ended with {code}:\n{process.log[-3000:]}")
            deaths.append(code)
            say(f"a consumer died ({code}), {settled()} of {plan.events} events are settled")
            running[number] = consumer()
        return settled() >= plan.events

    eventually(done, plan.timeout_s, interval_s=0.1, what="every event is settled")
    say("every event is settled")
    # One that has just been started cannot drain yet.
    return deaths, [process.says("Handlers:", 60).terminate(60) for process in running]


def _verdict(plan: Plan, url: str, deaths: list[int], codes: list[int]) -> dict[str, Any]:
    from tests.poison.counting import count, left_in_stream

    left = left_in_stream(url, f"jetbridge-{SHOP}", f"{BILLING}-workers")
    return document(asdict(plan), plan.ends(), deaths, codes, count(plan.ends()), left)

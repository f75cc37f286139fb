"""One outage from beginning to end: servers, processes, writers, the time without the server, the counting."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testproject.nats_server import NatsServer
from testproject.postgres import Postgres
from testproject.settings.base import postgres, sqlite
from tests.outage.verdict import Measured, document
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.running import Process, Processes

SHOP, BILLING = "outage-shop", "outage-billing"
WARM_UP_EVENTS = 20
PREPARE_S = 60.0
ACKED_S = 60.0

# The moment of each commit, by the clock that all processes of a machine share.
HANDLERS = """\
import os
import time

import jetbridge
from jetbridge import signals
from testproject.billing.models import Invoice

_handled = os.open(os.environ["LAB_DIR"] + "/handled", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


@jetbridge.handler(">", name="outage.invoice")
def handle(event: jetbridge.Event) -> None:
    Invoice.objects.create(order_id=event.payload["n"], event_id=event.event_id, total=0)


def committed(**_) -> None:
    os.write(_handled, b"%.6f\\n" % time.monotonic())


signals.handler_committed.connect(committed, weak=False)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    Args:
        of: Which server goes away: ``nats`` or ``postgres``.
        how: ``stop`` (it says goodbye) or ``kill``.
        first_event_s: Longest time from the end of the outage to the first event.
        keys: More of ``JETBRIDGE``; by default the product's own defaults are on trial.
    """

    of: str
    db: str
    minutes: float
    how: str
    first_event_s: float
    keys: Mapping[str, Any]


def run(plan: Plan, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The verdict as a JSON document."""
    with _servers(plan, folder) as (broker, database):
        databases = _databases(folder, database)
        shop, billing = _settings(broker.url, plan.keys)
        os.environ["OUTAGE"] = json.dumps({"databases": databases, "jetbridge": shop})
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.outage.settings"
        import django

        django.setup()
        from tests.running import Processes

        processes = Processes(folder / "processes")
        try:
            workers = _start(processes, databases, shop, billing)
            say(f"{plan.of} will be away for {plan.minutes:g} min; writers keep writing")
            return _outage(plan, folder, broker, database, workers, say)
        finally:
            processes.end()


@contextmanager
def _servers(plan: Plan, folder: Path) -> Iterator[tuple[NatsServer, Postgres | None]]:
    with NatsServer(folder / "nats") as broker:
        if plan.db == "sqlite":
            yield broker, None
            return
        with Postgres(folder / "postgres") as server:
            for name in ("orders", "billing"):
                server.create_database(name)
            yield broker, server


def _databases(folder: Path, server: Postgres | None) -> dict[str, Any]:
    def one(name: str) -> dict[str, Any]:
        return postgres(server.url, name) if server is not None else sqlite(folder / f"{name}.sqlite3")

    return {"default": one("orders"), "billing": one("billing")}


def _settings(url: str, keys: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    # One attempt: whatever an outage would spend is a dead letter at once.
    common = {"NATS_URLS": [url], "MAX_ATTEMPTS": 1, **keys}
    shop = {**common, "APP_NAME": SHOP, "DESTINATIONS": [BILLING]}
    return shop, {**common, "APP_NAME": BILLING, "SOURCES": [SHOP]}


def _start(
    processes: Processes, databases: dict[str, Any], shop: dict[str, Any], billing: dict[str, Any]
) -> dict[str, Process]:
    own = {"default": databases["default"]}, {"default": databases["billing"]}
    services = list(zip((shop, billing), own, strict=True))
    migrations = [
        processes.start("migrate", "-v", "0", keys=keys, databases=where) for keys, where in services
    ]
    _succeed(*migrations)
    for keys, where in services:  # the stream first, then the durable in it
        _succeed(processes.start("jetbridge_provision", keys=keys, databases=where))
    consumer = processes.start("jetbridge_consume", keys=billing, databases=own[1], handlers=HANDLERS)
    return {
        "relay": processes.start("jetbridge_relay", keys=shop, databases=own[0]),
        "consumer": consumer.says("Pulling"),
    }


def _succeed(*commands: Process) -> None:
    for command in commands:
        if command.wait(PREPARE_S) != 0:
            raise RuntimeError(f"A preparation failed:\n{command.log[-2000:]}")


def _outage(
    plan: Plan,
    folder: Path,
    broker: NatsServer,
    database: Postgres | None,
    workers: Mapping[str, Process],
    say: Callable[[str], None],
) -> dict[str, Any]:
    from tests.outage.counting import count, missing
    from tests.outage.writers import Writers

    handled = folder / "processes" / "handled"
    writers = Writers()
    eventually(lambda: len(moments(handled)) >= WARM_UP_EVENTS, PREPARE_S, what="events flow")
    said_before = _log_lines(workers)
    began = time.monotonic()
    _away(plan, broker, database)
    say("away")
    wait_s = plan.minutes * 60
    eventually(lambda: time.monotonic() - began >= wait_s, wait_s + 10, interval_s=0.1)
    _back(plan, broker, database)
    back = time.monotonic()
    say("back")
    eventually(lambda: moments(handled, since=back), PREPARE_S, what="the first event after the outage")
    first = moments(handled, since=back)[0]
    said = _log_lines(workers)
    writers.stop()
    eventually(lambda: missing() == 0, 60 + wait_s / 2, interval_s=0.2, what="every order has its invoice")
    drained = time.monotonic()
    left = _left(broker.url)
    measured = Measured(
        outage_s=back - began,
        first_event_s=first - back,
        drained_s=drained - back,
        left_in_stream=left,
        log_lines={name: said[name] - said_before[name] for name in workers},
        exit_codes={name: worker.terminate() for name, worker in workers.items()},
        writer_failures=writers.failures,
        count=count(),
    )
    asked = {"of": plan.of, "db": plan.db, "how": plan.how, "settings": dict(plan.keys)}
    return document(asked, plan.minutes, measured, first_event_s=plan.first_event_s)


def _left(url: str) -> int:
    """What the stream has for the consumer once every ack is there, and the copy of an event whose ack got lost."""
    from tests.poison.counting import left_in_stream

    def left() -> int:
        return left_in_stream(url, f"jetbridge-{SHOP}", f"{BILLING}-workers")

    with suppress(AssertionError):  # then the number is the verdict
        eventually(lambda: left() == 0, ACKED_S, interval_s=0.5)
    return left()


def _log_lines(workers: Mapping[str, Process]) -> dict[str, int]:
    return {name: len(worker.log.splitlines()) for name, worker in workers.items()}


def _away(plan: Plan, broker: NatsServer, database: Postgres | None) -> None:
    if plan.of == "nats":
        broker.stop() if plan.how == "stop" else broker.kill()
    elif database is not None:
        database.stop("fast") if plan.how == "stop" else database.kill()


def _back(plan: Plan, broker: NatsServer, database: Postgres | None) -> None:
    """Returns when the server accepts connections."""
    if plan.of == "nats":
        broker.start()
    elif database is not None:
        database.start()


def moments(file: Path, since: float = float("-inf")) -> list[float]:
    """When handlers committed, by the monotonic clock."""
    lines = file.read_text().split() if file.exists() else []
    return [moment for moment in map(float, lines) if moment >= since]

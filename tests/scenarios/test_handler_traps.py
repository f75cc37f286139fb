"""Handlers that do what they should not: one way or the other the event is settled, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from django.test import override_settings

import jetbridge
from jetbridge.dead_letters import redrive
from jetbridge.dead_letters import store as dead_letter_store
from jetbridge.models import DeadLetter, Inbox, Outbox
from testproject.billing.models import Invoice
from tests.running import Processes, consuming
from tests.waiting import eventually
from tests.worlds import World, body


def send(world: World, *numbers: int, key: str = "k", **members: Any) -> None:
    world.send(*((body(f"e{n}", payload={"n": n}, **members), {"Jetbridge-Key": key}) for n in numbers))


def invoice(event: jetbridge.Delivery) -> None:
    Invoice.objects.create(order_id=event.payload["n"], event_id=event.event_id, total=0)


def test_autocommit_left_off_does_not_swallow_the_events_after_it(world):
    """
    ``atomic()`` in a session with autocommit off is a savepoint and never commits: the events that came next on that
    thread were acknowledged without their effect. Red without the look at the session before each job.
    """

    @jetbridge.handler("bad", name="t.bad", atomic=False)
    def bad(event: jetbridge.Delivery) -> None:
        transaction.set_autocommit(False)
        raise ValueError("before it could set it on again")

    jetbridge.handler("order.placed", name="t.good")(invoice)
    send(world, 0, key="z", event_type="bad", resource_type="event")
    send(world, 1, 2, 3)

    with consuming(world, CONCURRENCY=1, MAX_ATTEMPTS=1):
        eventually(lambda: Invoice.objects.count() == 3, 15)

    assert sorted(Invoice.objects.values_list("order_id", flat=True)) == [1, 2, 3]


def test_autocommit_left_off_by_the_handler_itself_is_a_failure(world):
    """``atomic=False``: the inbox row could not be committed after it, so it must not count as processed."""

    @jetbridge.handler("order.placed", name="t.off", atomic=False, max_attempts=1)
    def off(event: jetbridge.Delivery) -> None:
        transaction.set_autocommit(False)

    send(world, 1)
    world.consume()

    assert DeadLetter.objects.get().error_class == "HandlerLeftRollback"


@pytest.mark.parametrize("queries", [True, False], ids=["and queries", "and returns"])
def test_closing_the_connection_is_a_failure_and_no_outage(world, queries):
    """The error that follows is the same as in an outage; waiting for its end would be for ever."""

    @jetbridge.handler("order.placed", name="t.closes", max_attempts=2, backoff=[0.01])
    def closes(event: jetbridge.Delivery) -> None:
        connection.close()
        if queries:
            invoice(event)

    send(world, 1)
    world.consume()

    assert DeadLetter.objects.get().error_class == "HandlerLeftRollback"
    assert DeadLetter.objects.get().attempts == 2


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
def test_ending_the_transaction_by_hand_is_a_failure(world, statement):
    """What is written after it would be committed without the inbox row."""

    @jetbridge.handler("order.placed", name="t.ends", max_attempts=1)
    def ends(event: jetbridge.Delivery) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)

    send(world, 1)
    world.consume()

    inbox = Inbox.objects.get()
    assert inbox.state == ("processed" if statement == "COMMIT" else "dead")


@pytest.mark.postgres
def test_a_wrapped_outage_spends_no_attempt(world):
    """``raise MyError from error`` is good style, and must not turn the end of a session into a failure."""
    killed: list[int] = []

    @jetbridge.handler(">", name="t.wraps", max_attempts=1)
    def wraps(event: jetbridge.Delivery) -> None:
        if not killed:
            killed.append(_kill_own_session())
        try:
            invoice(event)
        except Exception as error:
            raise RuntimeError("could not write the invoice") from error

    send(world, 1)
    world.consume()

    assert (Invoice.objects.count(), DeadLetter.objects.count()) == (1, 0)


def _kill_own_session() -> int:
    """End this thread's session from outside, and wait until it is gone."""
    settings = connection.settings_dict
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid = int(cursor.fetchone()[0])
    address = {"host": "127.0.0.1", "port": settings["PORT"], "user": "postgres", "dbname": settings["NAME"]}
    with psycopg.connect(**address, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [pid])
        eventually(
            lambda: not other.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]).fetchall()
        )
    return pid


@pytest.fixture
def sessions_with_a_lock_timeout() -> Iterator[None]:
    def prepare(*, connection, **_):
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '7s'")

    connection_created.connect(prepare)
    yield
    connection_created.disconnect(prepare)


@pytest.mark.postgres
def test_the_lock_timeout_of_the_session_is_given_back(world, sessions_with_a_lock_timeout):
    """The short one is for the claim alone; the handler's statements have the project's own."""
    seen: list[str] = []

    @jetbridge.handler("order.placed", name="t.looks")
    def looks(event: jetbridge.Delivery) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SHOW lock_timeout")
            seen.append(cursor.fetchone()[0])

    send(world, 1)
    world.consume()

    assert seen == ["7s"]


def test_publishing_from_another_thread_of_a_handler_is_refused(world):
    """That thread has another connection: the event would stay when the handler fails."""

    @jetbridge.handler("order.placed", name="t.threads", max_attempts=1)
    async def threads(event: jetbridge.Delivery) -> None:
        await sync_to_async(_publish_here, thread_sensitive=False)(world.shop)

    send(world, 1)
    world.consume()

    assert DeadLetter.objects.get().error_class == "NotInTransaction"
    assert not Outbox.objects.filter(event_type="ghost").exists()


def _publish_here(shop: str) -> None:
    try:
        jetbridge.publish("ghost", {}, to=shop)
    finally:
        connections.close_all()


def test_an_instant_no_local_time_can_hold_is_still_buried(world):
    """Go's zero time west of UTC, under USE_TZ=False: the dead letter must not fail because of what it reports."""

    @jetbridge.handler(">", name="t.rejects")
    def rejects(event: jetbridge.Delivery) -> None:
        raise jetbridge.Reject("no")

    world.send(body("e1", occurred_at="0001-01-01T00:00:00Z"))
    with override_settings(USE_TZ=False, TIME_ZONE="America/Chicago"):
        connection.close()
        with consuming(world):
            eventually(DeadLetter.objects.exists, 10)
    connection.close()

    assert DeadLetter.objects.values_list("occurred_at", flat=True).get() is None


def test_a_letter_of_a_former_source_is_not_redriven_into_nowhere(world):
    """No consumer would run it: it would stay "redriving" for ever, neither redriven nor discardable."""

    @jetbridge.handler(">", name="t.rejects")
    def rejects(event: jetbridge.Delivery) -> None:
        raise jetbridge.Reject("no")

    send(world, 1)
    world.consume()
    everything = dead_letter_store.Selection(all=True)
    letters = dead_letter_store.select(everything, states=None, using="default")
    with world.as_billing(SOURCES=["somebody-else"]) as settings:
        acted = redrive.redrive(letters, by="me", settings=settings, using="default")

    assert (list(acted.ids), len(acted.skipped)) == ([], 1)
    assert "SOURCES" in acted.skipped[0].why
    assert DeadLetter.objects.get().state == "open"


TWO_HANDLERS = """\
import os
import threading
from pathlib import Path

import jetbridge

LAB = Path(os.environ["LAB_DIR"])


@jetbridge.handler("order.placed", name="t.hangs")
def hangs(event):
    (LAB / "hanging").touch()
    if not (LAB / "go").exists():
        threading.Event().wait()


@jetbridge.handler("order.placed", "order.paid", name="t.ordered")
def ordered(event):
    if event.type == "order.placed" and not (LAB / "fixed").exists():
        (LAB / "failed").touch()
        raise ValueError("not now")
    with (LAB / "log").open("a") as log:
        log.write(event.type + "\\n")
"""


@pytest.mark.postgres
def test_what_stands_behind_a_kept_message_is_kept_in_every_lane(world: World, processes: Processes):
    """
    One handler of a message hangs, its other one waits for a retry, and the next message of the key waits behind that.
    Given back at the end of draining, that next message overtook. Red if only the lane of the hanging handler is kept.
    """
    lab = processes.folder
    lab.mkdir(parents=True, exist_ok=True)
    key = {"Jetbridge-Key": "k"}
    world.send((body("m", "order.placed"), key), (body("n", "order.paid"), key))
    patient = {"SHUTDOWN_TIMEOUT_S": 0.5, "BACKOFF": [20], "MAX_ATTEMPTS": 9, "CONCURRENCY": 4}
    first = processes.consumer(world, TWO_HANDLERS, **patient)
    eventually(lambda: (lab / "hanging").exists() and (lab / "failed").exists(), 20)
    eventually(lambda: Inbox.objects.filter(handler="t.ordered", state="retrying").exists(), 10)
    first.terminate()
    first.wait(20)
    (lab / "fixed").touch()
    (lab / "go").touch()
    Inbox.objects.filter(handler="t.ordered").update(next_attempt_at=None)

    processes.consumer(world, TWO_HANDLERS, "--until-empty", "--timeout", "30", CONCURRENCY=4).wait(40)

    assert (lab / "log").read_text().split() == ["order.placed", "order.paid"]

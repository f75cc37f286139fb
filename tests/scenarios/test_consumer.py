"""What a consumer promises: one effect per event and handler, in order per key, and failures that stay at home."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction

import jetbridge
from jetbridge.models import Archive, DeadLetter, Inbox, InboxState, Outbox
from testproject.billing.models import Invoice
from tests.running import consuming, durable
from tests.waiting import eventually
from tests.worlds import World, body, dead_letters, inbox

VENDOR = connection.vendor


def send(world: World, *ns: int, key: str = "k", event_id: str = "") -> None:
    """Events with ``payload["n"]``, straight into the stream, where their order is certain."""
    world.send(
        *((body(event_id or f"e{n}", payload={"n": n}), {"Jetbridge-Key": key} if key else {}) for n in ns)
    )


def invoice(event: jetbridge.Event) -> None:
    """An effect that a test can count."""
    Invoice.objects.create(order_id=number(event), event_id=str(event.event_id), total=0)


def number(event: jetbridge.Event) -> int:
    return int(str(event.payload["n"]))


def effects() -> list[int]:
    return list(Invoice.objects.order_by("id").values_list("order_id", flat=True))


# --- order ---------------------------------------------------------------------------------------


def test_one_event_of_a_key_at_a_time_and_in_order(world):
    """Red if a lane lets its second item run: the threads would overtake one another."""
    running: defaultdict[str, int] = defaultdict(int)
    overlaps: list[str] = []

    @jetbridge.handler(">", name="t.order")
    def handle(event: jetbridge.Delivery) -> None:
        running[str(event.key)] += 1
        if running[str(event.key)] > 1:
            overlaps.append(str(event.key))
        invoice(event)
        running[str(event.key)] -= 1

    for n in range(60):
        send(world, n, key=f"k{n % 3}")

    report = world.consume()

    assert overlaps == []
    assert report.totals.handled == 60
    for key in range(3):
        assert [n for n in effects() if n % 3 == key] == list(range(key, 60, 3))
    assert durable(world)["num_ack_pending"] == 0


@pytest.mark.postgres
def test_keys_run_in_parallel(world):
    """Four keys meet inside their handlers. Red with one thread or one lane."""
    meeting = threading.Barrier(4)

    @jetbridge.handler(">", name="t.meet")
    def handle(event: jetbridge.Event) -> None:
        meeting.wait(10)

    for n in range(4):
        send(world, n, key=f"k{n}")

    assert world.consume().totals.handled == 4


def test_a_retry_holds_its_lane_and_no_other(world):
    """While the first of key a waits, its followers do and key b goes on. Red if the lane gives its head up."""
    seen: list[str] = []

    @jetbridge.handler(">", name="t.retry")
    def handle(event: jetbridge.Delivery) -> None:
        seen.append(f"{number(event)}.{event.attempt}")
        if number(event) == 1 and event.attempt == 1:
            raise jetbridge.Retry("not yet", delay=1)

    send(world, 1, 2, key="a")
    send(world, 3, 4, key="b")

    world.consume()

    assert seen.index("3.1") < seen.index("4.1") < seen.index("1.2") < seen.index("2.1")
    assert len(seen) == 5


def test_an_unordered_handler_waits_for_nobody(world):
    """``ordered=False``: a retry holds nothing of its key."""
    seen: list[str] = []

    @jetbridge.handler(">", name="t.loose", ordered=False)
    def handle(event: jetbridge.Delivery) -> None:
        seen.append(f"{number(event)}.{event.attempt}")
        if number(event) == 1 and event.attempt == 1:
            raise jetbridge.Retry(delay=0.5)

    send(world, 1, 2)

    world.consume()

    assert sorted(seen[:2]) == ["1.1", "2.1"]
    assert seen[2:] == ["1.2"]


def test_events_without_a_key_wait_for_nobody(world):
    """No key, no lane."""
    seen: list[str] = []

    @jetbridge.handler(">", name="t.keyless")
    def handle(event: jetbridge.Delivery) -> None:
        seen.append(f"{number(event)}.{event.attempt}")
        if number(event) == 1 and event.attempt == 1:
            raise jetbridge.Retry(delay=0.5)

    world.send(*(body(f"e{n}", resource_id="", payload={"n": n}) for n in (1, 2)))

    world.consume()

    assert sorted(seen[:2]) == ["1.1", "2.1"]
    assert seen[2:] == ["1.2"]


# --- several handlers ----------------------------------------------------------------------------


def test_handlers_of_one_event_are_independent_and_share_the_ack(world):
    """One has its effect, one dies, one waits; the ack goes when the last is settled. Red if the first one acks."""
    go = threading.Event()
    waiting = threading.Event()

    @jetbridge.handler("order.placed", name="t.good")
    def good(event: jetbridge.Event) -> None:
        invoice(event)

    @jetbridge.handler("order.*", name="t.bad")
    def bad(event: jetbridge.Event) -> None:
        raise jetbridge.Reject("no")

    @jetbridge.handler("order.>", name="t.late")
    def late(event: jetbridge.Event) -> None:
        if not go.is_set():
            waiting.set()
            raise jetbridge.Snooze(0.1)

    send(world, 1)
    with consuming(world):
        assert waiting.wait(10)
        eventually(
            lambda: (
                {row.handler: row.state for row in inbox()}
                == {"t.good": "processed", "t.bad": "dead", "t.late": "retrying"}
            )
        )
        assert durable(world)["num_ack_pending"] == 1
        go.set()
        eventually(lambda: durable(world)["num_ack_pending"] == 0)

    assert effects() == [1]
    assert [(letter.handler, letter.reason) for letter in dead_letters()] == [("t.bad", "rejected")]
    assert Inbox.objects.get(handler="t.late").state == InboxState.PROCESSED
    assert len(world.stored()) == 0


# --- repeats -------------------------------------------------------------------------------------


def test_a_second_copy_is_counted_and_has_no_effect(world):
    """The stream lets both through (no message id); the inbox does not. Red without the unique row."""

    @jetbridge.handler(">", name="t.once")
    def handle(event: jetbridge.Event) -> None:
        invoice(event)

    send(world, 1, 1)
    first = world.consume()
    send(world, 1)
    second = world.consume()

    assert effects() == [1]
    assert (first.totals.handled, first.totals.duplicates, second.totals.duplicates) == (1, 1, 1)
    assert inbox()[0].duplicates == 2


@pytest.mark.postgres
def test_copies_that_arrive_together_have_one_effect(world):
    """Without a key they run side by side; the second waits for the first one's commit. Eight copies, one run."""
    runs: list[int] = []

    @jetbridge.handler(">", name="t.once")
    def handle(event: jetbridge.Event) -> None:
        runs.append(1)
        invoice(event)

    world.send(*[body("same", resource_id="", payload={"n": 1})] * 8)
    report = world.consume(CONCURRENCY=8)

    assert (runs, effects(), report.totals.duplicates) == ([1], [1], 7)


def test_a_handler_slower_than_ack_wait_runs_once(world):
    """Three times ack_wait: the server hears of it and gives it to nobody. Red without keep_alive."""
    runs: list[int] = []

    @jetbridge.handler(">", name="t.slow")
    def handle(event: jetbridge.Event) -> None:
        runs.append(1)
        threading.Event().wait(1.6)

    quick = World(world.url, ACK_WAIT_S=0.5, LEASE_S=6).provision()
    send(quick, 1)
    report = quick.consume()

    assert (runs, report.totals.handled, report.totals.duplicates) == ([1], 1, 0)
    assert inbox()[0].duplicates == 0


def test_a_message_that_waits_for_a_thread_is_kept_alive_too(world):
    """What waits in a lane behind a slow one must not come back either."""

    @jetbridge.handler(">", name="t.slow")
    def handle(event: jetbridge.Event) -> None:
        threading.Event().wait(0.6)

    quick = World(world.url, ACK_WAIT_S=0.5, LEASE_S=6).provision()
    send(quick, 1, 2, 3)
    report = quick.consume()

    assert (report.totals.handled, report.totals.duplicates) == (3, 0)


# --- kinds of handlers ---------------------------------------------------------------------------


def test_an_async_handler_joins_the_transaction(world):
    """ORM and apublish() inside a coroutine are rolled back with it and committed with it. Red with asyncio.run."""

    @jetbridge.handler(">", name="t.async")
    async def handle(event: jetbridge.Delivery) -> None:
        await Invoice.objects.acreate(order_id=number(event), event_id=f"try {event.attempt}", total=0)
        await jetbridge.apublish("invoice.created", {"id": 1})
        if event.attempt == 1:
            raise ValueError("rolled back, please")

    send(world, 1)
    world.consume()

    assert list(Invoice.objects.values_list("event_id", flat=True)) == ["try 2"]
    assert Outbox.objects.count() == 1
    assert (Outbox.objects.get().causation_id, inbox()[0].attempts) == ("e1", 2)


def test_a_handler_without_transaction_keeps_what_it_wrote(world):
    """``atomic=False``: at least once, and it says so."""
    inside: list[bool] = []

    @jetbridge.handler(">", name="t.bare", atomic=False)
    def handle(event: jetbridge.Delivery) -> None:
        inside.append(connection.in_atomic_block)
        invoice(event)
        if event.attempt == 1:
            raise ValueError("too late to roll back")

    send(world, 1, 1)
    report = world.consume()

    assert inside == [False, False]
    assert effects() == [1, 1]
    assert (report.totals.handled, report.totals.duplicates) == (1, 1)


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_a_handler_on_another_alias_has_its_inbox_there(nats_server, handlers):
    """Inbox row, effect and what it publishes share one transaction on the handler's alias."""
    world = World(nats_server.url, DATABASES=["default", "other"]).provision()

    @jetbridge.handler(">", name="t.other", using="other")
    def handle(event: jetbridge.Delivery) -> None:
        Invoice.objects.using("other").create(order_id=number(event), event_id="x", total=0)
        jetbridge.publish("invoice.created", {"id": 1})
        if event.attempt == 1:
            raise ValueError

    @jetbridge.handler(">", name="t.here")
    def here(event: jetbridge.Event) -> None:
        invoice(event)

    send(world, 1)
    world.consume()

    assert [row.handler for row in Inbox.objects.using("other")] == ["t.other"]
    assert [row.handler for row in Inbox.objects.all()] == ["t.here"]
    assert Invoice.objects.using("other").count() == 1
    assert (Outbox.objects.using("other").count(), Outbox.objects.count()) == (1, 0)


# --- failures ------------------------------------------------------------------------------------


def test_failures_spend_attempts_and_end_in_a_dead_letter(world):
    """The followers of the key go on after it, and everything of the failed runs is gone."""
    attempts: list[int] = []

    @jetbridge.handler(">", name="t.fail")
    def handle(event: jetbridge.Delivery) -> None:
        invoice(event)
        if number(event) == 1:
            attempts.append(event.attempt)
            raise ValueError(f"attempt {event.attempt}")

    send(world, 1, 2)
    report = world.consume()

    assert attempts == [1, 2, 3]
    assert effects() == [2]
    letter = dead_letters()[0]
    assert (letter.reason, letter.error_class, letter.error, letter.attempts) == (
        "max_deliver_exceeded",
        "ValueError",
        "attempt 3",
        3,
    )
    assert (report.totals.handled, report.totals.dead) == (1, 1)


@pytest.mark.parametrize(
    "raised", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("odd")]
)
def test_what_is_no_exception_counts_as_a_failure_too(world, raised):
    """sys.exit() in a handler ends neither thread nor process. Red if only Exception is caught."""

    @jetbridge.handler(">", name="t.exit", max_attempts=2)
    def handle(event: jetbridge.Event) -> None:
        if number(event) == 1:
            raise raised
        invoice(event)

    send(world, 1, 2)
    world.consume()

    letter = dead_letters()[0]
    assert (letter.error_class, letter.attempts) == (type(raised).__name__, 2)
    assert effects() == [2]


def test_permanent_classes_dead_letter_at_once(world):
    runs: list[int] = []

    @jetbridge.handler(">", name="t.permanent", permanent=[LookupError])
    def handle(event: jetbridge.Event) -> None:
        runs.append(1)
        raise KeyError("gone")

    send(world, 1)
    world.consume()

    assert runs == [1]
    assert [(letter.reason, letter.error_class) for letter in dead_letters()] == [
        ("unrecoverable", "KeyError")
    ]


def test_transient_classes_spend_no_attempt(world):
    attempts: list[int] = []

    @jetbridge.handler(">", name="t.transient", transient=[ConnectionError], max_attempts=1)
    def handle(event: jetbridge.Delivery) -> None:
        attempts.append(event.attempt)
        if len(attempts) < 3:
            raise ConnectionResetError
        invoice(event)

    send(world, 1)
    world.consume()

    assert attempts == [1, 1, 1]
    assert (effects(), inbox()[0].attempts, DeadLetter.objects.count()) == ([1], 1, 0)


def test_a_passing_trouble_of_the_database_spends_no_attempt(world):
    """The session breaks in the handler and the next one works: nobody's fault. Red without is_outage()."""
    attempts: list[int] = []

    @jetbridge.handler(">", name="t.broken", max_attempts=1, permanent=[Exception])
    def handle(event: jetbridge.Delivery) -> None:
        attempts.append(event.attempt)
        invoice(event)
        if len(attempts) == 1 and VENDOR == "sqlite":
            raise OperationalError("database is locked")
        if len(attempts) == 1:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    send(world, 1)
    world.consume()

    assert (attempts, effects(), inbox()[0].attempts) == ([1, 1], [1], 1)
    assert DeadLetter.objects.count() == 0


def test_a_raising_on_commit_hook_is_no_failure(world):
    """The effect is committed: a retry would double it. Red if attempt() looks only at the exception."""

    @jetbridge.handler(">", name="t.hook")
    def handle(event: jetbridge.Event) -> None:
        invoice(event)
        transaction.on_commit(lambda: 1 / 0)

    send(world, 1, 2)
    report = world.consume()

    assert (effects(), report.totals.handled, DeadLetter.objects.count()) == ([1, 2], 2, 0)
    assert {row.state for row in inbox()} == {InboxState.PROCESSED}


@pytest.mark.parametrize("how", ["set_rollback", "caught"])
def test_a_handler_that_returns_with_a_lost_transaction_has_failed(world, how):
    """Django rolls back without raising: without the check the event would be gone. Red without needs_rollback."""

    @jetbridge.handler(">", name="t.lost", max_attempts=1)
    def handle(event: jetbridge.Event) -> None:
        invoice(event)
        if how == "set_rollback":
            transaction.set_rollback(True)
            return
        try:
            with transaction.atomic(savepoint=False):
                raise ValueError
        except ValueError:
            pass

    send(world, 1)
    world.consume()

    assert (effects(), [letter.error_class for letter in dead_letters()]) == ([], ["HandlerLeftRollback"])


# --- over a restart ------------------------------------------------------------------------------


def test_attempts_survive_a_restart(world):
    """They are in the inbox row, not in the process."""
    attempts: list[int] = []

    @jetbridge.handler(">", name="t.fail", backoff=[1.0])
    def handle(event: jetbridge.Delivery) -> None:
        attempts.append(event.attempt)
        raise ValueError

    send(world, 1)
    with consuming(world):
        eventually(lambda: len(inbox()) == 1)
    assert (inbox()[0].state, inbox()[0].attempts) == (InboxState.RETRYING, 1)

    world.consume()

    assert attempts == [1, 2, 3]
    assert dead_letters()[0].attempts == 3


def test_a_snooze_spends_nothing_and_survives_a_restart(world):
    """The new process waits for next_attempt_at. Red if the claim does not look at it, or if a snooze counts."""
    ran: list[tuple[int, datetime]] = []

    @jetbridge.handler(">", name="t.snooze", max_attempts=1)
    def handle(event: jetbridge.Delivery) -> None:
        ran.append((event.attempt, datetime.now(UTC)))
        if len(ran) == 1:
            raise jetbridge.Snooze(2)
        invoice(event)

    send(world, 1)
    with consuming(world):
        eventually(lambda: len(inbox()) == 1)
    row = inbox()[0]
    assert (row.state, row.attempts) == (InboxState.RETRYING, 0)
    assert row.next_attempt_at is not None
    due: Any = row.next_attempt_at

    world.consume()

    assert [attempt for attempt, _ in ran] == [1, 1]
    # SQLite's clock and ours agree to the millisecond it stores.
    assert (ran[1][1] - due).total_seconds() > -0.002
    assert effects() == [1]


def test_waiting_messages_are_given_back(transactional_db, handlers, nats_server):
    """A drained consumer gives back what waits: the next one has it at once. Red without the naks: ack_wait passes."""
    world = World(nats_server.url, LEASE_S=60, ACK_WAIT_S=30).provision()
    started, go = threading.Event(), threading.Event()

    @jetbridge.handler(">", name="t.drain")
    def handle(event: jetbridge.Event) -> None:
        started.set()
        assert go.wait(20)
        invoice(event)

    send(world, *range(40))
    with consuming(world) as consumer:  # one pull of 20 s: no moment without one
        assert started.wait(10)
        eventually(lambda: durable(world)["num_ack_pending"] == 40)
        consumer.ask_to_stop()
        eventually(lambda: durable(world)["num_waiting"] == 0, what="it pulls no more")
        go.set()
        consumer.stop()
    done = len(effects())
    assert 0 < done < 40
    # Given back is what the server calls redelivered: it still counts it as pending, and hands it out at once.
    assert durable(world)["num_ack_pending"] == 40 - done

    began = time.monotonic()
    world.consume()

    assert sorted(effects()) == list(range(40))
    assert time.monotonic() - began < 20, "nobody waits for ack_wait"
    assert {row.duplicates for row in inbox()} == {0}


def test_an_answer_goes_the_way_back(world):
    """What a handler publishes is relayed like anything else, with the handled event as its cause."""

    @jetbridge.handler("order.placed", name="t.answer")
    def handle(event: jetbridge.Event) -> None:
        jetbridge.publish("invoice.created", {"id": 9})

    send(world, 1)
    world.consume()
    world.relay_of_billing()

    row = Archive.objects.get()
    assert (row.subject, row.causation_id) == (f"{world.billing}.sync.{world.shop}", "e1")
    assert json.loads(world.stored(world.billing)[0].body)["payload"] == {"id": 9}

"""What a relay does with much that cannot go: it costs little, the others flow, and nothing is out of order."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial

import pytest
from django.db import transaction

import jetbridge
from jetbridge.jetstream.results import NoAnswer, NotSent, Refused, Result
from jetbridge.models import Archive, Outbox, OutboxState
from jetbridge.outbox import store
from jetbridge.outbox.records import OutboxRecord
from jetbridge.relay import sorting
from tests.running import api, numbers, relaying
from tests.servers import NatsServer
from tests.waiting import eventually
from tests.worlds import World, outbox

KEYS = 5


@pytest.fixture
def small(transactional_db: None, handlers: None, nats_server: NatsServer) -> World:
    """Four messages fit on each subject; the relay looks again after 100 ms."""
    world = World(nats_server.url, publisher={"MAX_MESSAGES_PER_SUBJECT": 4, "PARK_RETRY_S": 0.1})
    world.publisher["DESTINATIONS"] = [world.billing, "mail"]
    return world.provision()


def publish(world: World, *ns: int, to: str | None = None) -> None:
    """One event each, its key one of five."""
    events = [jetbridge.Event("order.placed", {"n": n}, key=f"k{n % KEYS}") for n in ns]
    jetbridge.publish_many(events, to=to or world.billing)


def cap(world: World, messages: int) -> None:
    """Another cap per subject."""
    config = api(world, f"STREAM.INFO.jetbridge-{world.shop}")["config"]
    api(world, f"STREAM.UPDATE.jetbridge-{world.shop}", {**config, "max_msgs_per_subject": messages})


def make_room(world: World) -> None:
    """What a reader of the full subject does."""
    subject = f"{world.shop}.sync.{world.billing}"
    api(world, f"STREAM.PURGE.jetbridge-{world.shop}", {"filter": subject, "keep": 1})


def sent(world: World) -> dict[int, list[int]]:
    """By key what was stored for billing, in the order of the stream."""
    found = defaultdict[int, list[int]](list)
    for row in Archive.objects.filter(destination=world.billing).order_by("sequence"):
        n = json.loads(bytes(row.body))["payload"]["n"]
        found[n % KEYS].append(n)
    return found


def in_order(world: World, count: int) -> bool:
    return sent(world) == {key: list(range(key, count, KEYS)) for key in range(KEYS)}


def archived(destination: str, count: int) -> bool:
    return Archive.objects.filter(destination=destination).count() == count


def parked() -> int:
    return Outbox.objects.filter(state=OutboxState.PARKED).count()


def test_a_subject_that_stays_full_costs_no_writes_and_the_others_flow(small):
    """
    A slow reader makes room for a few at a time: only those few rows are touched. Red if one success makes
    the whole backlog ready, to be parked once more.
    """
    with relaying(small):
        publish(small, *range(300))
        eventually(lambda: parked() == 296)
        written = dict(Outbox.objects.values_list("id", "state_at"))
        for n in range(3):
            gone = Archive.objects.filter(destination=small.billing).count()
            make_room(small)
            eventually(partial(archived, small.billing, gone + 3))
            publish(small, 1000 + n, to="mail")
            eventually(partial(archived, "mail", n + 1))

        left = dict(Outbox.objects.values_list("id", "state_at"))
        assert len(left) == 287
        assert left.items() <= written.items()

        publish(small, *range(300, 320))
        eventually(lambda: parked() == 307)
        cap(small, 100_000)
        eventually(lambda: Outbox.objects.count() == 0)
    assert in_order(small, 320)


def test_rows_that_arrive_while_a_backlog_drains_stay_behind_it(small, monkeypatch):
    """Many pages of parked rows, and new rows of the same keys all the while. Red if those are sent as they come."""
    monkeypatch.setattr(store, "PAGE_BYTES", 20_000)  # a few dozen rows each time
    with relaying(small):
        publish(small, *range(400))
        eventually(lambda: parked() == 396)
        cap(small, 100_000)
        for n in range(400, 460):
            publish(small, n)
        eventually(lambda: Outbox.objects.count() == 0)
        assert in_order(small, 460)
        publish(small, 460)  # the subject is known as a good one again
        eventually(lambda: Archive.objects.filter(destination=small.billing).count() == 461)


def test_another_relay_goes_on_in_the_middle_of_a_backlog(small):
    """Everything about a backlog is in its rows: a relay that takes over sends the rest, older rows first."""
    with small.as_shop():
        publish(small, *range(200))
    small.relay()
    assert parked() == 196
    with relaying(small):
        make_room(small)
        eventually(lambda: parked() == 193)
    with small.as_shop():
        publish(small, *range(200, 230))
    cap(small, 100_000)

    report = small.relay()

    assert (report.finished, report.left) == (True, 0)
    assert in_order(small, 230)


def test_a_parked_row_that_is_at_fault_is_refused_and_holds_its_key(small):
    """The fault shows when the subject takes messages again; the parked rows behind it are held, not sent."""
    with small.as_shop():
        publish(small, *range(14))
    small.relay()
    bad = next(row for row in outbox() if json.loads(bytes(row.body))["payload"]["n"] == 6)
    bad.headers["Nats-Expected-Last-Sequence"] = "999999"
    bad.save()
    cap(small, 100_000)

    with relaying(small):
        eventually(lambda: parked() == 0)
        rows = {json.loads(bytes(row.body))["payload"]["n"]: row.state for row in outbox()}
        assert rows == {6: OutboxState.REFUSED, 11: OutboxState.HELD}
        Outbox.objects.filter(state=OutboxState.REFUSED).delete()
        eventually(lambda: Outbox.objects.count() == 0)
    assert sent(small)[1] == [1, 11]


def test_a_lane_freed_while_its_subject_is_full_joins_the_queue_in_order(small):
    """A retried row and its followers go before what is parked of their key. Red if they only become ready."""
    with small.as_shop():
        publish(small, *range(4))
    small.relay()
    with small.as_shop():
        publish(small, 4, 9, 14, 19, 24)
    refused, held, *rest = [row.pk for row in outbox()]
    store.move([refused], OutboxState.REFUSED, code="x", using="default")
    store.move([held], OutboxState.HELD, code="x", using="default")
    store.move(rest, OutboxState.PARKED, code="x", using="default")
    Outbox.objects.filter(pk=refused).update(state=OutboxState.READY)
    with relaying(small):
        eventually(lambda: parked() == 5)
        cap(small, 100_000)
        eventually(lambda: Outbox.objects.count() == 0)
    assert sent(small)[4] == [4, 9, 14, 19, 24]


def test_what_a_former_owner_parks_late_is_found(world):
    """A relay that stood still writes after the takeover. Red if parked rows are looked for at takeovers only."""
    with relaying(world, PARK_RETRY_S=0.1):
        jetbridge.publish("order.placed", {"n": 0})
        eventually(partial(archived, world.billing, 1))
        with transaction.atomic():
            jetbridge.publish("order.placed", {"n": 1})
            store.move([outbox()[0].pk], OutboxState.PARKED, code="10077", using="default")
        eventually(partial(archived, world.billing, 2))


def test_thousands_of_refused_keys_do_not_slow_the_others(world):
    """One look at all of them, not one for each. Red with a statement per key."""
    with world.as_shop():
        jetbridge.publish_many([jetbridge.Event("order.placed", {"n": n, "id": n}) for n in range(2_000)])
    Outbox.objects.update(state=OutboxState.REFUSED, error_code="400", error="x")
    newest = Outbox.objects.order_by("-id")[0]
    with world.as_shop():
        jetbridge.publish("order.placed", {"n": 5_000}, key=newest.key)
    with relaying(world):
        for n in range(3):
            jetbridge.publish("order.placed", {"n": n}, key="fresh")
            eventually(partial(archived, world.billing, n + 1), 2)
        eventually(lambda: Outbox.objects.filter(state=OutboxState.HELD).count() == 1)
        newest.delete()
        eventually(lambda: Archive.objects.count() == 4, 5)
    assert sorted(numbers(world)) == [0, 1, 2, 5_000]


def test_large_events_arrive_in_pages_cut_by_bytes(world, monkeypatch):
    """However few fit, all arrive, in order."""
    monkeypatch.setattr(store, "PAGE_BYTES", 10_000)
    with world.as_shop():
        for n in range(20):
            jetbridge.publish("order.placed", {"n": n, "fill": "x" * 8_000}, key="k")

    assert world.relay().totals.published == 20

    assert numbers(world) == list(range(20))


def test_what_waits_behind_an_open_question_is_not_parked_alone():
    """
    One key of a subject met its cap, another got no answer: its first row stays ready, so the second does too.
    Red if every unsent row of the subject parks: when room comes it would be sent before the first.
    """

    def row(id_: int, key: str) -> OutboxRecord:
        return OutboxRecord(id_, "s", "d", key, f"e{id_}", f"e{id_}", {}, b"")

    rows = [row(1, "a"), row(2, "b"), row(3, "a"), row(4, "b")]
    full = Refused(400, 10077, "maximum messages per subject exceeded")
    results: list[Result] = [full, NoAnswer("late"), NotSent("behind"), NotSent("behind")]

    verdicts = sorting.judge(rows, results, stream="x", hold_key=True)

    assert [record.id for record in verdicts.parked["s"][0]] == [1, 3]
    assert verdicts.outage == "late"

"""The relay's statements: pages in order, settling once, and states that only move where they may."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

import jetbridge
from jetbridge.models import Archive, Outbox, OutboxState, Scheduled
from jetbridge.outbox import store
from jetbridge.outbox.records import Settled
from jetbridge.partition import BUCKETS, bucket

pytestmark = pytest.mark.django_db(transaction=True)
ALL = range(BUCKETS)


def publish(*ns: int, key: str = "k", **more) -> None:
    for n in ns:
        jetbridge.publish("order.placed", {"n": n}, key=key, **more)


def page(buckets=ALL, limit: int = 1000) -> list:
    return store.page(buckets, limit=limit, using="default")


def settle(*rows: Settled) -> None:
    store.settle(rows, stream_created_at=None, using="default")


def move(ids, to: OutboxState) -> int:
    return store.move(ids, to, code="c", error="e", using="default")


# --- pages ---------------------------------------------------------------------------------------


def test_a_page_is_in_the_order_of_ids_across_buckets():
    for n in range(40):
        publish(n, key=f"k{n}")

    records = page(limit=25)

    assert [record.id for record in records] == sorted(Outbox.objects.values_list("id", flat=True))[:25]
    assert records[0].headers["nats-msg-id"] == records[0].event_id
    assert b'"n":0' in records[0].body


def test_a_page_holds_own_buckets_and_ready_rows_only():
    publish(1, key="a")
    publish(2, key="b")
    publish(3, 4, key="a")
    first = Outbox.objects.order_by("id")[2]
    move([first.pk], OutboxState.HELD)

    assert len(page([bucket("a", "")])) == 2
    assert page([n for n in ALL if n not in (bucket("a", ""), bucket("b", ""))]) == []


def test_a_page_never_skips_a_row_of_a_key():
    """One busy key in a bucket, limits anywhere: what is read of it is its beginning."""
    publish(*range(80), key="busy")
    ids = list(Outbox.objects.order_by("id").values_list("id", flat=True))

    for limit in (1, 7, 33, 64):
        assert [record.id for record in page(limit=limit)] == ids[: len(page(limit=limit))]


def test_a_row_that_commits_late_is_found():
    """Ids are not commit order: the smaller one appears later. Red with a remembered "last id"."""
    begun, go = threading.Event(), threading.Event()

    def late() -> None:
        with transaction.atomic():
            publish(1, key="late")
            begun.set()
            assert go.wait(10)
        connections.close_all()

    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer at a time: ids are commit order")
    thread = threading.Thread(target=late)
    thread.start()
    assert begun.wait(10)
    publish(2, key="early")
    (early,) = page()
    settle(Settled(early.id, "s", 1, False))
    go.set()
    thread.join(10)

    (found,) = page()
    assert found.id < early.id


@pytest.mark.postgres
def test_reading_a_page_uses_the_hot_index():
    """Whatever lies parked and refused: an idle look reads the index of ready rows."""
    publish(*range(50))
    move(list(Outbox.objects.values_list("id", flat=True)), OutboxState.PARKED)
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")
        cursor.execute("EXPLAIN " + store._PAGE, [list(ALL), 32, 1000, store.PAGE_BYTES])
        plan = "\n".join(row[0] for row in cursor.fetchall())
        cursor.execute("RESET enable_seqscan")

    assert "jb_outbox_ready" in plan


@pytest.mark.parametrize("room", [1, 2_500, 3_100])
def test_a_page_of_large_rows_is_cut_by_bytes_and_never_empty(monkeypatch, room):
    """A thousand rows of a megabyte must not be in memory at once. Red if only rows are counted."""
    for n in range(5):
        jetbridge.publish("order.placed", {"n": n, "fill": "x" * 1_000}, key="k")
    size = len(bytes(Outbox.objects.order_by("id")[0].body))
    monkeypatch.setattr(store, "PAGE_BYTES", room)
    expected = -(-room // size)  # the one that passes the limit still belongs to it
    ids = list(Outbox.objects.order_by("id").values_list("id", flat=True))

    assert [record.id for record in page()] == ids[:expected]

    move(ids, OutboxState.PARKED)
    subject = Outbox.objects.all()[0].subject
    parked = store.parked_page(subject, ALL, limit=100, using="default")
    assert [record.id for record in parked] == ids[:expected]


# --- settling ------------------------------------------------------------------------------------


def test_settling_moves_the_whole_row_with_its_place():
    publish(1, to="billing")
    row = Outbox.objects.get()
    created = datetime(2026, 1, 2, tzinfo=UTC)

    store.settle([Settled(row.pk, "s", 9, True)], stream_created_at=created, using="default")

    kept = Archive.objects.get()
    names = (*store._CONTENT[:9], "created_at")
    assert {name: getattr(kept, name) for name in names} == {name: getattr(row, name) for name in names}
    assert (kept.pk, bytes(kept.body)) == (row.pk, bytes(row.body))
    assert (kept.stream, kept.sequence, kept.duplicate, kept.stream_created_at) == ("s", 9, True, created)
    assert kept.sent_at is not None
    assert Outbox.objects.count() == 0


def test_settling_twice_does_nothing_the_second_time():
    """Two relays, or a settle whose answer got lost: one row in the archive, no error."""
    publish(1)
    row = Settled(Outbox.objects.get().pk, "s", 1, False)

    settle(row)
    settle(row)

    assert Archive.objects.count() == 1


def test_settling_a_page_is_one_statement_on_postgres_and_three_elsewhere():
    publish(*range(30))
    rows = [
        Settled(pk, "s", n + 1, False) for n, pk in enumerate(Outbox.objects.values_list("id", flat=True))
    ]

    with CaptureQueriesContext(connection) as queries:
        settle(*rows)

    statements = [q["sql"] for q in queries if not q["sql"].startswith(("BEGIN", "COMMIT"))]
    assert len(statements) == (1 if connection.vendor == "postgresql" else 3), statements
    assert Archive.objects.count() == 30


# --- states --------------------------------------------------------------------------------------


def test_only_ready_rows_are_taken_out_of_the_way():
    """A row that somebody else has moved keeps its reason."""
    publish(1, 2)
    ids = list(Outbox.objects.order_by("id").values_list("id", flat=True))
    move(ids[:1], OutboxState.REFUSED)

    assert store.move(ids, OutboxState.PARKED, code="other", error="x", using="default") == 1
    assert list(Outbox.objects.order_by("id").values_list("state", "error_code")) == [
        ("refused", "c"),
        ("parked", "other"),
    ]


def test_parked_rows_are_read_oldest_first_and_of_the_own_buckets():
    publish(1, 2, 3, key="a")
    publish(4, key="b")
    ids = list(Outbox.objects.order_by("id").values_list("id", flat=True))
    move(ids[1:], OutboxState.PARKED)
    subject = Outbox.objects.order_by("id")[0].subject

    def parked(buckets, limit: int = 10, subject: str = subject) -> list[int]:
        return [record.id for record in store.parked_page(subject, buckets, limit=limit, using="default")]

    assert (parked(ALL), parked(ALL, limit=2)) == (ids[1:], ids[1:3])
    assert (parked([bucket("a", "")]), parked([]), parked(ALL, subject="other")) == (ids[1:3], [], [])
    assert store.parked_subjects(ALL, using="default") == {subject}
    assert store.parked_subjects([], using="default") == set()


def test_a_parked_row_is_settled_and_refused_from_where_it_is():
    publish(1, 2)
    first, second = Outbox.objects.order_by("id").values_list("id", flat=True)
    move([first, second], OutboxState.PARKED)

    settle(Settled(first, "s", 1, False))
    assert move([second], OutboxState.REFUSED) == 0
    assert (
        store.move([second], OutboxState.REFUSED, code="9", origin=OutboxState.PARKED, using="default") == 1
    )

    assert list(Outbox.objects.values_list("id", "state", "error_code")) == [(second, "refused", "9")]
    assert Archive.objects.get().pk == first


def test_lanes_are_released_together_and_no_others():
    """One statement for all keys of a subject, however many."""
    for n, key in enumerate("aabbc"):
        publish(n, key=key)
    ids = list(Outbox.objects.order_by("id").values_list("id", flat=True))
    subject = Outbox.objects.order_by("id")[0].subject
    move(ids, OutboxState.HELD)
    assert store.held_lanes(ALL, using="default") == {(subject, "a"): 2, (subject, "b"): 2, (subject, "c"): 1}
    assert store.held_lanes([], using="default") == {}

    with CaptureQueriesContext(connection) as queries:
        assert store.release([(subject, "a"), (subject, "b")], ALL, using="default") == 4

    assert len(queries) == 1
    assert [record.id for record in page()] == ids[:4]
    assert store.release([(subject, "c")], [], using="default") == 0


def test_lanes_of_a_parked_subject_join_its_queue_with_what_is_ready():
    """A retried row is ready and older than what is parked: left there, the younger would overtake it."""
    publish(1, 2, 3)
    ids = list(Outbox.objects.order_by("id").values_list("id", flat=True))
    subject = Outbox.objects.order_by("id")[0].subject
    move(ids[1:2], OutboxState.HELD)
    move(ids[2:], OutboxState.PARKED)

    assert store.release([(subject, "k")], ALL, to_parked=True, using="default") == 2

    assert [record.id for record in store.parked_page(subject, ALL, limit=9, using="default")] == ids


def test_blocked_pairs_are_those_of_the_buckets():
    publish(1, key="a")
    publish(2, key="b")
    move(list(Outbox.objects.values_list("id", flat=True)), OutboxState.REFUSED)
    subject = Outbox.objects.order_by("id")[0].subject

    found = store.blocked(OutboxState.REFUSED, [bucket("a", "")], using="default")

    assert found == {(subject, "a")}


# --- scheduled -----------------------------------------------------------------------------------


def test_due_rows_move_in_the_order_they_are_due():
    now = datetime.now(UTC)
    for n, seconds in enumerate([30, 10, 20, 10]):
        publish(n, delay=3600)
        newest = Scheduled.objects.order_by("-id")[0]
        Scheduled.objects.filter(pk=newest.pk).update(due_at=now - timedelta(seconds=seconds))
    publish(9, delay=3600)

    assert store.promote_due(limit=3, using="default") == 3
    assert store.promote_due(limit=3, using="default") == 1

    order = [record.body.split(b'"n":')[1][:1] for record in page()]
    assert order == [b"0", b"2", b"1", b"3"]
    assert Scheduled.objects.count() == 1
    assert set(Outbox.objects.values_list("state", flat=True)) == {"ready"}


def test_two_relays_do_not_promote_a_row_twice():
    publish(*range(50), delay=3600)
    Scheduled.objects.update(due_at=datetime.now(UTC) - timedelta(seconds=1))
    moved: list[int] = []

    def promote() -> None:
        try:
            while count := store.promote_due(limit=7, using="default"):
                moved.append(count)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=promote) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert (sum(moved), Outbox.objects.count(), Scheduled.objects.count()) == (50, 50, 0)


def test_work_is_ready_or_due():
    assert store.has_work(using="default") is False
    publish(1, delay=3600)
    assert (store.has_work(using="default"), store.left(using="default")) == (False, 0)
    Scheduled.objects.update(due_at=datetime.now(UTC) - timedelta(seconds=1))
    assert (store.has_work(using="default"), store.left(using="default")) == (True, 1)
    store.promote_due(limit=10, using="default")
    move(list(Outbox.objects.values_list("id", flat=True)), OutboxState.PARKED)
    assert (store.has_work(using="default"), store.left(using="default")) == (False, 1)

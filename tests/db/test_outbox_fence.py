"""What a relay writes after it was stopped for longer than its lease: settling is harmless, judging is fenced."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, connections, transaction

import jetbridge
from jetbridge.leases import store as leases
from jetbridge.models import Archive, Lease, Outbox, OutboxState, Scheduled
from jetbridge.models.clock import WallClock
from jetbridge.outbox import store
from jetbridge.outbox.records import Settled
from jetbridge.outbox.store_fence import LEASE_NAMES
from jetbridge.partition import BUCKETS, bucket
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)
ALL = range(BUCKETS)


@pytest.fixture(autouse=True)
def _a_zombie_and_its_heir() -> None:
    """Two rows of one key in a bucket that went from "zombie" to "heir", two of another that is the zombie's still."""
    for key in ("lost", "kept"):
        for n in range(2):
            jetbridge.publish("order.placed", {"n": n}, key=key)
    leases.ensure(LEASE_NAMES, using="default")
    leases.acquire(LEASE_NAMES, owner="zombie", ttl_s=60, limit=64, using="default")
    takeover("lost")


def takeover(key: str) -> None:
    name = [LEASE_NAMES[bucket(key, "")]]
    Lease.objects.filter(name__in=name).update(expires_at=WallClock())
    assert leases.acquire(name, owner="heir", ttl_s=60, limit=1, using="default") == set(name)


def ids(**filters: object) -> list[int]:
    return list(Outbox.objects.filter(**filters).order_by("id").values_list("id", flat=True))


def states() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"lost": [], "kept": []}
    for row in Outbox.objects.order_by("id"):
        found[row.key].append(row.state)
    return found


@pytest.mark.parametrize("to", [OutboxState.PARKED, OutboxState.HELD, OutboxState.REFUSED])
def test_a_late_judgement_moves_rows_of_own_buckets_only(to):
    """Its heir knows nothing of it, and would send the key's later rows. Red without the fence in move()."""
    assert store.move(ids(), to, owner="zombie", using="default") == 2
    assert states() == {"lost": ["ready", "ready"], "kept": [to, to]}
    assert store.move(ids(), to, owner="nobody", using="default") == 0


def test_an_expired_lease_that_nobody_took_still_lets_its_owner_judge():
    """Nobody else can have acted on it."""
    Lease.objects.update(expires_at=WallClock(-60))

    assert store.move(ids(key="kept"), OutboxState.PARKED, owner="zombie", using="default") == 2


@pytest.mark.parametrize("to_parked", [False, True])
def test_a_late_release_frees_rows_of_own_buckets_only(to_parked):
    """The heir may have learned that the key is refused. Red without the fence in release()."""
    store.move(ids(), OutboxState.HELD, using="default")
    lanes = set(Outbox.objects.values_list("subject", "key"))

    released = store.release(lanes, ALL, to_parked=to_parked, owner="zombie", using="default")

    to = "parked" if to_parked else "ready"
    assert (released, states()) == (2, {"lost": ["held", "held"], "kept": [to, to]})


def test_a_late_promotion_moves_nothing():
    """Two that promote at once would mix the order in which rows became due. Red without its fence."""
    jetbridge.publish("order.placed", {"n": 9}, key="due", delay=3_600)
    Scheduled.objects.update(due_at=datetime.now(UTC) - timedelta(seconds=1))
    Lease.objects.filter(name=LEASE_NAMES[0]).update(owner="heir")

    assert store.promote_due(limit=10, owner="zombie", using="default") == 0
    assert store.promote_due(limit=10, owner="heir", using="default") == 1


@pytest.mark.parametrize("state", list(OutboxState))
def test_what_a_zombie_settles_is_true_whatever_its_heir_thinks(state):
    """The stream has the row. It leaves from any state, and into the archive once."""
    first, _ = ids(key="lost")
    store.move([first], state, using="default")

    store.settle([Settled(first, "s", 7, False)], stream_created_at=None, using="default")
    store.settle([Settled(first, "s", 7, True)], stream_created_at=None, using="default")

    kept = Archive.objects.get()
    assert (kept.pk, kept.sequence, kept.duplicate) == (first, 7, False)
    assert len(states()["lost"]) == 1


def test_a_zombies_verdicts_on_rows_that_its_heir_has_archived_do_nothing():
    rows = ids()
    store.settle([Settled(id_, "s", id_, False) for id_ in rows], stream_created_at=None, using="default")
    before = list(Archive.objects.order_by("id").values())

    store.settle([Settled(id_, "s", 99, True) for id_ in rows], stream_created_at=None, using="default")
    assert store.move(rows, OutboxState.REFUSED, using="default") == 0

    assert list(Archive.objects.order_by("id").values()) == before
    assert Outbox.objects.count() == 0


def test_two_that_settle_at_once_archive_each_row_once():
    """Red on any database if a settle inserts what it did not delete."""
    jetbridge.publish_many([jetbridge.Event("order.placed", {"n": n}, key=f"k{n}") for n in range(200)])
    rows = [Settled(id_, "s", id_, False) for id_ in ids()]
    failures = in_threads(
        lambda: store.settle(rows, stream_created_at=None, using="default"),
        lambda: store.settle(rows[::-1], stream_created_at=None, using="default"),
    )

    assert failures == []
    assert (Archive.objects.count(), Outbox.objects.count()) == (204, 0)
    assert {
        json.loads(bytes(body))["payload"]["n"] for body in Archive.objects.values_list("body", flat=True)
    }


def in_threads(*functions: Callable[[], object]) -> list[str]:
    failures: list[str] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except Exception as error:
            failures.append(repr(error))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return failures


def waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone()[0])


@pytest.mark.postgres
def test_a_judgement_waits_for_a_takeover_under_way_and_then_does_nothing():
    """Red if the fence only looks: it would still see its own name in the lease and move the rows."""
    moved: list[int] = []

    def judge() -> None:
        moved.append(store.move(ids(key="kept"), OutboxState.PARKED, owner="zombie", using="default"))

    thread = threading.Thread(target=lambda: in_threads(judge))
    with transaction.atomic():
        takeover("kept")
        thread.start()
        eventually(waits_for_a_lock)
    thread.join(30)

    assert moved == [0]
    assert states()["kept"] == ["ready", "ready"]


@pytest.mark.postgres
def test_a_takeover_leaves_a_bucket_whose_owner_is_judging_and_renewals_go_on():
    """The judgement comes first, whole. Red without a lock that a takeover respects and a renewal does not."""
    name = [LEASE_NAMES[bucket("kept", "")]]
    Lease.objects.update(expires_at=WallClock())
    seen: list[object] = []

    def meanwhile() -> None:
        seen.append(leases.acquire(name, owner="heir", ttl_s=60, limit=1, using="default"))
        seen.append(leases.renew(name, owner="zombie", ttl_s=60, using="default"))

    with transaction.atomic():
        assert store.move(ids(key="kept"), OutboxState.PARKED, owner="zombie", using="default") == 2
        assert in_threads(meanwhile) == []

    assert seen == [set(), set(name)]

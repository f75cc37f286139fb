"""Every statement on leases and workers. Only the database's clock decides what has expired."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from django.db import connections, transaction
from django.db.models import F

from jetbridge.models import Lease, Worker
from jetbridge.models.clock import WallClock

# One statement in autocommit: a process that is stopped in the middle holds no lock that others would skip for ever.
_ACQUIRE: Final = """\
-- jetbridge: leases.acquire
WITH free AS MATERIALIZED (
    SELECT name FROM jetbridge_lease WHERE name = ANY(%s) AND expires_at <= (SELECT clock_timestamp())
    ORDER BY name LIMIT %s FOR UPDATE SKIP LOCKED
)
UPDATE jetbridge_lease l
SET owner = %s, epoch = epoch + 1, expires_at = clock_timestamp() + make_interval(secs => %s::float8)
FROM free WHERE l.name = free.name RETURNING l.name"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """A lease as status shows it."""

    name: str
    owner: str
    epoch: int
    expires_at: datetime


def ensure(names: Iterable[str], *, using: str) -> None:
    """Create the rows of leases that nobody has had yet, free."""
    missing = set(names) - set(
        Lease.objects.using(using).filter(name__in=list(names)).values_list("name", flat=True)
    )
    Lease.objects.using(using).bulk_create(
        [Lease(name=name, owner="", expires_at=WallClock()) for name in sorted(missing)],
        ignore_conflicts=True,
    )


def renew(names: Collection[str], *, owner: str, ttl_s: float, using: str) -> set[str]:
    """
    Prolong what ``owner`` still holds, by one statement in autocommit; returns the names it holds now.

    A lease that ran out but that nobody took is still its holder's.
    """
    mine = Lease.objects.using(using).filter(name__in=names, owner=owner)
    if mine.update(expires_at=WallClock(ttl_s)) == len(names):
        return set(names)
    return set(mine.values_list("name", flat=True))


def acquire(names: Collection[str], *, owner: str, ttl_s: float, limit: int, using: str) -> set[str]:
    """
    Take up to ``limit`` of the leases that have run out; returns the names taken.

    Rows are locked in one order, and locked ones are left to whoever holds them: two processes that
    start together neither wait for each other nor deadlock. A row that its owner's fenced statement is
    locking (``outbox.store_fence``) is left to that owner.
    """
    connection = connections[using]
    expired = Lease.objects.using(using).filter(name__in=names, expires_at__lte=WallClock()).order_by("name")
    if not expired.exists():
        return set()  # an idle look takes no lock
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(_ACQUIRE, [list(names), limit, owner, ttl_s])
            return {name for (name,) in cursor.fetchall()}
    with transaction.atomic(using=using):
        locked = expired.select_for_update(skip_locked=connection.features.has_select_for_update_skip_locked)
        taken = set(locked.values_list("name", flat=True)[:limit])
        Lease.objects.using(using).filter(name__in=taken).update(
            owner=owner, epoch=F("epoch") + 1, expires_at=WallClock(ttl_s)
        )
    return taken


def release(names: Collection[str], *, owner: str, using: str) -> int:
    """Hand leases back so that another may take them at once; returns how many were still held."""
    return (
        Lease.objects.using(using)
        .filter(name__in=names, owner=owner)
        .update(owner="", expires_at=WallClock())
    )


def held(*, using: str) -> list[LeaseRecord]:
    """Leases that have an owner and have not run out."""
    rows = Lease.objects.using(using).filter(expires_at__gt=WallClock()).exclude(owner="").order_by("name")
    return [LeaseRecord(name=r.name, owner=r.owner, epoch=r.epoch, expires_at=r.expires_at) for r in rows]


def members(role: str, *, using: str) -> set[str]:
    """
    The processes of a role that share its leases.

    A process counts as long as it says itself with each beat (``counts_for_s``), by the database's clock: one
    that died counts until its leases have run out, one that cannot work does not.
    """
    rows = Worker.objects.using(using).filter(role=role).annotate(now=WallClock())
    return {
        id_
        for id_, beat_at, now, info in rows.values_list("id", "beat_at", "now", "info")
        if (now - beat_at).total_seconds() < info.get("counts_for_s", 0.0)
    }


def beat(
    worker_id: str, *, role: str, host: str, pid: int, version: str, info: Mapping[str, object], using: str
) -> None:
    """Say that a process is alive, and what it is."""
    Worker.objects.using(using).update_or_create(
        id=worker_id,
        defaults={
            "role": role,
            "host": host,
            "pid": pid,
            "version": version,
            "info": dict(info),
            "beat_at": WallClock(),
        },
    )


def forget(worker_id: str, *, older_than_s: float, using: str) -> None:
    """Remove a process that ends, and those whose last beat is long ago."""
    workers = Worker.objects.using(using)
    workers.filter(id=worker_id).delete()
    workers.filter(beat_at__lt=WallClock(-older_than_s)).delete()

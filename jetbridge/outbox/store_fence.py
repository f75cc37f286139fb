"""
A fence around what only a bucket's owner may write.

A relay judges a row after the stream has answered. If it was stopped in between for longer than its lease, the
judgement comes late: another relay owns the bucket, and may be about to send what the late one refuses or parks.
So such statements look at the leases themselves, and keep them from changing hands until they are done. What the
stream has stored needs no fence: that is true whoever says it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from django.db import connections, transaction
from django.db.models import QuerySet
from django.db.models.expressions import RawSQL

from jetbridge.models import Lease, Outbox
from jetbridge.partition import BUCKETS

LEASE_NAMES: Final = tuple(f"relay/{number:02d}" for number in range(BUCKETS))

# KEY SHARE meets the FOR UPDATE of a takeover, and not the renewals of the owner, which run at the same time.
_OWN_BUCKETS: Final = """\
SELECT right(name, 2)::smallint FROM jetbridge_lease WHERE owner = %s AND name = ANY(%s) FOR KEY SHARE"""
_OWNS_FIRST: Final = "EXISTS (SELECT 1 FROM jetbridge_lease WHERE owner = %s AND name = %s FOR KEY SHARE)"


def bucket_of(name: str) -> int:
    """The bucket that a lease of :data:`LEASE_NAMES` stands for."""
    return int(name.rpartition("/")[2])


@contextmanager
def fenced(rows: QuerySet[Outbox], owner: str | None) -> Iterator[QuerySet[Outbox]]:
    """``rows`` for one statement, less those in buckets that ``owner`` does not own (``None``: nobody asks)."""
    if owner is None:
        yield rows
    elif connections[rows.db].vendor == "postgresql":
        # Part of the statement, in autocommit: a relay that is stopped in between holds no lock on its leases.
        yield rows.filter(bucket__in=RawSQL(_OWN_BUCKETS, [owner, list(LEASE_NAMES)]))
    else:
        with transaction.atomic(using=rows.db):
            yield rows.filter(bucket__in=locked(owner, using=rows.db))


def locked(owner: str, *, using: str) -> set[int]:
    """The buckets of ``owner``, which no other can take until the transaction around has ended."""
    leases = Lease.objects.using(using).filter(owner=owner, name__in=LEASE_NAMES)
    return {bucket_of(name) for name in leases.select_for_update().values_list("name", flat=True)}


def condition(owner: str | None) -> tuple[str, list[str]]:
    """The fence of bucket 0 as a condition of a statement on PostgreSQL, and its parameters."""
    return ("true", []) if owner is None else (_OWNS_FIRST, [owner, LEASE_NAMES[0]])

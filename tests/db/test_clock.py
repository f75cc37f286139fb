"""The database's clock, as the statements see it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test import override_settings
from django.utils import timezone

from jetbridge.leases import store
from jetbridge.models import Lease
from jetbridge.models.clock import WallClock

pytestmark = pytest.mark.django_db(transaction=True)


def read() -> datetime:
    store.ensure(["probe"], using="default")
    Lease.objects.filter(name="probe").update(expires_at=WallClock(30.0))
    found = Lease.objects.get(name="probe").expires_at
    return found if timezone.is_aware(found) else timezone.make_aware(found)


def test_it_is_the_time_of_day_with_the_offset():
    """Finer than a second, and the offset counts from now."""
    before = datetime.now(UTC)

    found = read() - timedelta(seconds=30)

    assert before - timedelta(seconds=0.01) <= found <= datetime.now(UTC) + timedelta(seconds=0.01)


@pytest.mark.sqlite
@override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo")
def test_it_is_local_time_where_django_stores_local_time():
    """SQLite under USE_TZ=False holds local time; in UTC every due time would be nine hours off."""
    connection.close()
    before = datetime.now(UTC)

    found = read() - timedelta(seconds=30)

    assert abs(found - before) < timedelta(seconds=5)


@pytest.mark.postgres
def test_it_moves_within_a_transaction():
    """Not the start of the transaction: a lease renewed late in one would look older than it is."""
    from django.db import transaction

    with transaction.atomic():
        first = read()
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.05)")

        assert read() - first >= timedelta(seconds=0.04)

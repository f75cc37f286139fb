"""SQLite without room, or without the right to write: an outage, whatever the handler makes of the error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from django.db import DatabaseError, connection

from jetbridge.consumer.execute import Job, Settled, Wait, execute
from jetbridge.models import DeadLetter, Inbox
from testproject.orders.models import Order
from tests.db.work import message, work_for

pytestmark = [
    pytest.mark.sqlite,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("shop", "handlers"),
]


def _write() -> None:
    Order.objects.create(number="x" * 1_000_000, total=1)


def lets_it_through(event: object) -> None:
    _write()


def wraps_it(event: object) -> None:
    try:
        _write()
    except DatabaseError:
        raise RuntimeError("could not write the order")  # noqa: B904


def swallows_it(event: object) -> None:
    with suppress(DatabaseError):
        _write()


def run(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.mark.parametrize("handler", [lets_it_through, wraps_it, swallows_it])
@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("PRAGMA max_page_count = 1", "PRAGMA max_page_count = 1000000"),
        ("PRAGMA query_only = 1", "PRAGMA query_only = 0"),
    ],
    ids=["full", "read-only"],
)
def test_neither_a_full_disk_nor_a_read_only_file_spends_an_attempt(
    handler: Callable[[object], None], begin: str, end: str
):
    """
    With one attempt, so that a spent one is a dead letter. Red if only the outermost error is asked, or if what a
    handler swallowed is forgotten: on a full disk SQLite rolls back by itself, as if the handler had.
    """
    work, settings = work_for(handler, max_attempts=1)
    job = Job(received=message(), handler=work.handler, handler_name="t.handler", using="default")

    run("VACUUM")  # pages that earlier tests left free would be room
    run(begin)
    try:
        for _ in range(2):
            assert isinstance(execute(job, settings, owner="me"), Wait)
    finally:
        run(end)

    assert (Inbox.objects.count(), DeadLetter.objects.count(), Order.objects.count()) == (0, 0, 0)
    assert execute(job, settings, owner="me") == Settled(how="handled")
    assert Order.objects.count() == 1

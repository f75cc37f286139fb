"""
What is sent, and what an ack stands for, is on the database's disk before.

With ``synchronous_commit=off`` a row is visible before its commit is durable. Sent at once, it would be in the
stream, and after a crash of the database its business transaction would never have been: a ghost. And an event
that is acked for an effect that the crash takes back is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.db import connection, transaction

import jetbridge
from jetbridge.conf import get_settings
from jetbridge.dead_letters import store as dead_letters
from jetbridge.inbox import unit_of_work
from jetbridge.models import Outbox, OutboxState
from jetbridge.outbox import store
from jetbridge.outbox.records import OutboxRecord
from jetbridge.partition import BUCKETS
from tests.db.work import message, work_for
from tests.waiting import eventually

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("shop")]


def ask(sql: str, *values: str) -> object:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchone()[0] if cursor.description else None


@contextmanager
def lazy_wal_writer() -> Iterator[None]:
    """The server writes asynchronous commits to disk every ten seconds only."""
    ask("ALTER SYSTEM SET wal_writer_delay = '10s'")
    ask("SELECT pg_reload_conf()")
    try:
        eventually(lambda: ask("SHOW wal_writer_delay") == "10s")
        yield
    finally:
        ask("ALTER SYSTEM RESET wal_writer_delay")
        ask("SELECT pg_reload_conf()")


def publish_lazily() -> str:
    """Publish in a transaction that does not wait for the disk; returns a position in the log behind its commit."""
    with transaction.atomic():
        ask("SELECT set_config('synchronous_commit', 'off', true)")
        jetbridge.publish("order.placed", {"id": 7})
        jetbridge.publish("order.placed", {"id": 8})
        Outbox.objects.filter(pk=Outbox.objects.order_by("id")[0].pk).update(state=OutboxState.PARKED)
    return str(ask("SELECT pg_current_wal_insert_lsn()"))


def is_on_disk(position: str) -> bool:
    return bool(ask("SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn", position))


def visible_before_it_is_on_disk() -> str:
    """A server that slept writes once when it wakes up, so the first try may be on disk already."""

    def published() -> str:
        position = publish_lazily()
        return "" if is_on_disk(position) else position

    return eventually(published)


def read_ready() -> list[OutboxRecord]:
    return store.page(range(BUCKETS), limit=100, using="default")


def read_parked() -> list[OutboxRecord]:
    return store.parked_page("shop.sync.billing", range(BUCKETS), limit=100, using="default")


@pytest.mark.parametrize("read", [read_ready, read_parked])
def test_what_is_read_to_be_sent_is_on_disk(read):
    """Red without the flush: the row is on its way to the stream, and its commit in the server's memory."""
    with lazy_wal_writer():
        position = visible_before_it_is_on_disk()
        assert read()

        assert is_on_disk(position)


def test_an_idle_look_flushes_nothing(django_assert_num_queries):
    with django_assert_num_queries(1):
        assert not read_ready()


@contextmanager
def lazy_session() -> Iterator[None]:
    ask("SET synchronous_commit = 'off'")
    try:
        yield
    finally:
        ask("RESET synchronous_commit")


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("default", "expected"), [("off", "on"), ("local", "local"), ("on", "on")])
def test_a_handlers_transaction_waits_for_the_disk(default, expected):
    """Red without the setting in the claim. One that asks for more or for less than "on" is left alone."""
    seen: list[object] = []
    ask(f"SET synchronous_commit = '{default}'")
    try:
        unit_of_work.attempt(*work_for(lambda event: seen.append(ask("SHOW synchronous_commit"))))
        assert [*seen, ask("SHOW synchronous_commit")] == [expected, default]
    finally:
        ask("RESET synchronous_commit")


def test_a_dead_letter_is_on_disk_before_its_message_is_acked():
    """Red without the setting in bury()."""
    with lazy_wal_writer(), lazy_session():
        visible_before_it_is_on_disk()
        before = str(ask("SELECT pg_current_wal_insert_lsn()"))

        assert dead_letters.bury(
            message(),
            "t.h",
            ValueError(),
            reason="exhausted",
            attempt=1,
            settings=get_settings(),
            using="default",
        )

        assert is_on_disk(before)


def test_a_server_that_does_not_tell_stops_nothing(monkeypatch, caplog):
    """Some hosted servers lack the functions. Red if their error reaches the relay: it would never send again."""
    monkeypatch.setattr(store, "_IS_FLUSHED", "SELECT pg_no_such_position()")
    monkeypatch.setattr(store, "_unflushable", set())
    publish_lazily()

    assert [len(read_ready()), len(read_ready())] == [1, 1]
    assert caplog.text.count("does not say what is on its disk") == 1

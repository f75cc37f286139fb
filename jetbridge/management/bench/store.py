"""
The statements of the benchmark: the table its transactions write to, what lies in the outbox, what it leaves behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from django.apps.registry import Apps
from django.db import connections, models

from jetbridge.leases import store as leases
from jetbridge.management.bench.events import identity
from jetbridge.models import (
    Archive,
    DeadLetter,
    Deferred,
    Inbox,
    InboxState,
    Lease,
    Outbox,
    OutboxState,
    Scheduled,
)
from jetbridge.models.clock import WallClock

SET_ASIDE: Final = "bench"
_WHY: Final = (
    "Set aside while jetbridge_bench measures. If no benchmark is running, it was killed: "
    "the next one with --yes puts this row back."
)
_CHUNK: Final = 2_000


def row_model(table: str) -> type[models.Model]:
    """A model outside every app's registry, for a table that lives as long as the benchmark."""

    class Row(models.Model):
        id = models.BigAutoField(primary_key=True)
        key = models.CharField(max_length=255)
        number = models.IntegerField()
        body = models.BinaryField()

        class Meta:
            apps = Apps()
            app_label = "jetbridge_bench"
            db_table = table

        def __str__(self) -> str:
            return f"{self.key} #{self.number}"

    return Row


class Rows:
    """The table that stands for the user's own: what a business transaction or a handler writes."""

    def __init__(self, table: str, *, using: str) -> None:
        self._model = row_model(table)
        self._using = using

    def create_table(self) -> None:
        with connections[self._using].schema_editor() as editor:
            editor.create_model(self._model)

    def drop_table(self) -> None:
        with connections[self._using].schema_editor() as editor:
            editor.delete_model(self._model)

    def add(self, key: str, number: int, body: bytes) -> None:
        """What ``Model.objects.create()`` costs."""
        self._model._default_manager.using(self._using).create(key=key, number=number, body=body)

    def add_many(self, rows: Sequence[tuple[str, int, bytes]]) -> None:
        """What ``bulk_create()`` costs."""
        made = [self._model(key=key, number=number, body=body) for key, number, body in rows]
        self._model._default_manager.using(self._using).bulk_create(made, batch_size=1_000)

    def clear(self) -> None:
        self._model._default_manager.using(self._using).all().delete()

    def count(self) -> int:
        return self._model._default_manager.using(self._using).count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What is in the outbox before the benchmark begins."""

    rows: int
    set_aside: int
    scheduled: int


def waiting(*, using: str) -> Waiting:
    rows = Outbox.objects.using(using)
    return Waiting(
        rows=rows.count(),
        set_aside=rows.filter(error_code=SET_ASIDE, state=OutboxState.REFUSED).count(),
        scheduled=Scheduled.objects.using(using).count(),
    )


def set_aside(*, using: str) -> int:
    """
    Take the project's own rows out of the benchmark's way; returns how many.

    The benchmark's relay would publish them next to its own. A refused row is the only kind that no relay touches.
    """
    rows = Outbox.objects.using(using).exclude(state=OutboxState.REFUSED)
    return rows.update(state=OutboxState.REFUSED, error_code=SET_ASIDE, error=_WHY, state_at=WallClock())


def put_back(*, using: str) -> int:
    """Undo :func:`set_aside`. Rows that were parked or held before get there again by the relay's own judgement."""
    rows = Outbox.objects.using(using).filter(state=OutboxState.REFUSED, error_code=SET_ASIDE)
    return rows.update(state=OutboxState.READY, error_code="", error="", state_at=WallClock())


def relay_at_work(*, using: str) -> str:
    """The owner of a relay lease that has not run out, ``""`` if there is none."""
    owners = (lease.owner for lease in leases.held(using=using) if lease.name.startswith("relay/"))
    return next(owners, "")


def last_archived(*, using: str) -> int:
    """The highest archived id, so that what the benchmark adds can be found by the primary key."""
    return Archive.objects.using(using).aggregate(last=models.Max("id"))["last"] or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """Finds everything that an app made for the benchmark has left in jetbridge's tables."""

    app: str
    handler: str
    archived_before: int
    using: str

    def archived(self) -> int:
        """Rows that the relay has settled as stored anew: duplicates are not counted."""
        return self._archive().filter(duplicate=False).count()

    def waiting(self) -> int:
        return self._outbox().count()

    def any_waiting(self) -> bool:
        """Cheap enough to be asked all the time."""
        return self._outbox().exists()

    def processed(self) -> int:
        rows = Inbox.objects.using(self.using).filter(handler=self.handler, source=self.app)
        return rows.filter(state=InboxState.PROCESSED).count()

    def published(self) -> Iterator[tuple[str, int]]:
        """Key and number of every waiting row, in the order a relay would send them."""
        rows = self._outbox().order_by("id").values_list("body", flat=True)
        for body in rows.iterator(chunk_size=_CHUNK):
            yield identity(bytes(body))

    def remove(self) -> None:
        self._outbox().delete()
        self._archive().delete()
        handlers = (self.handler, self.bare_handler)
        Inbox.objects.using(self.using).filter(handler__in=handlers, source=self.app).delete()
        for model in (DeadLetter, Deferred):
            model.objects.using(self.using).filter(source=self.app).delete()
        pulled = Lease.objects.using(self.using).filter(name__startswith="consume/", name__endswith=self.app)
        pulled.delete()

    @property
    def bare_handler(self) -> str:
        """The name under which the bare loop writes to the inbox."""
        return f"{self.handler}.bare"

    def add_inbox_row(self, event_id: str, event_type: str, key: str, sequence: int) -> None:
        """What a hand-written inbox costs: one row in its final state, by the ORM."""
        Inbox.objects.using(self.using).create(
            handler=self.bare_handler,
            source=self.app,
            event_id=event_id,
            state=InboxState.PROCESSED,
            event_type=event_type,
            key=key,
            stream=self.app,
            sequence=sequence,
        )

    def _outbox(self) -> models.QuerySet[Outbox]:
        return Outbox.objects.using(self.using).filter(destination=self.app)

    def _archive(self) -> models.QuerySet[Archive]:
        return Archive.objects.using(self.using).filter(id__gt=self.archived_before, destination=self.app)


def tidy(*, using: str) -> None:
    """What autovacuum does within a minute: without it a repetition would pay for the one before."""
    connection = connections[using]
    if connection.vendor == "postgresql":
        tables = [model._meta.db_table for model in (Outbox, Archive, Inbox)]
        with connection.cursor() as cursor:
            cursor.execute(f"VACUUM (ANALYZE) {', '.join(tables)}")


def server(*, using: str) -> tuple[str, dict[str, str]]:
    """The database's version, and the settings that decide what a commit means."""
    connection = connections[using]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SHOW server_version")
            version = f"PostgreSQL {cursor.fetchone()[0]}"
            shown = {}
            for name in ("fsync", "synchronous_commit"):
                cursor.execute(f"SHOW {name}")
                shown[name] = str(cursor.fetchone()[0])
            return version, shown
        if connection.vendor == "sqlite":
            cursor.execute("SELECT sqlite_version()")
            version = f"SQLite {cursor.fetchone()[0]}"
            cursor.execute("PRAGMA journal_mode")
            journal = str(cursor.fetchone()[0])
            cursor.execute("PRAGMA synchronous")
            return version, {"journal_mode": journal, "synchronous": str(cursor.fetchone()[0])}
    return connection.vendor, {}

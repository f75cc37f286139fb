"""What can be seen of a service, as frozen values. Ages are seconds; ``None`` stands for "not known"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxView:
    """Rows by state. ``scheduled`` are all rows for later, ``due`` those whose time has come."""

    ready: int
    held: int
    parked: int
    refused: int
    scheduled: int
    due: int
    oldest_ready_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxView:
    """Rows by state."""

    processed: int
    retrying: int
    dead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeferredView:
    """Stored messages: due now, and those that wait for their time or for the one before them."""

    due: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettersView:
    """Unfinished dead letters."""

    open: int
    redriving: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """A lease that somebody holds."""

    database: str
    name: str
    owner: str
    epoch: int
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """A process as it last described itself, ``beat_age_s`` ago by the database's clock."""

    database: str
    id: str
    role: str
    host: str
    pid: int
    version: str
    beat_age_s: float
    info: Mapping[str, object]

    @property
    def is_alive(self) -> bool:
        """Whether it has said so lately: it beats every 5 s."""
        return self.beat_age_s < 30.0

    @property
    def stuck(self) -> Sequence[str]:
        """Names of its parts that stand still."""
        return _names(self.info.get("stuck"))

    @property
    def overdue(self) -> Sequence[str]:
        """Handlers in it that run for longer than their time-out and a margin, each with its event."""
        return _names(self.info.get("overdue"))


def _names(told: object) -> Sequence[str]:
    return [str(one) for one in told] if isinstance(told, list) else []


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseView:
    """The tables behind one alias. ``capped`` names the numbers that are "at least", such as ``archive.rows``."""

    alias: str
    outbox: OutboxView
    archived: int
    inbox: InboxView
    deferred: DeferredView
    dead_letters: DeadLettersView
    leases: Sequence[LeaseView]
    workers: Sequence[WorkerView]
    capped: Sequence[str]

    @property
    def is_idle(self) -> bool:
        """Nothing ready or due. What is parked, refused or planned for later does not count."""
        return not (self.outbox.ready or self.outbox.due or self.deferred.due)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamView:
    """The own stream; ``messages`` is ``None`` if it is not there or this user may not ask."""

    name: str
    messages: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerView:
    """An own durable; numbers are ``None`` if it is not there or this user may not ask."""

    stream: str
    name: str
    pending: int | None
    ack_pending: int | None
    redelivered: int | None

    @property
    def is_idle(self) -> bool:
        """Known to have nothing left, neither to deliver nor to acknowledge."""
        return self.pending == 0 and self.ack_pending == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsView:
    """What the broker says. ``trouble`` is for people, without credentials; ``""`` when it answered."""

    reachable: bool
    server_version: str | None
    streams: Sequence[StreamView]
    consumers: Sequence[ConsumerView]
    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusView:
    """A whole service."""

    app: str
    databases: Sequence[DatabaseView]
    nats: NatsView

    @property
    def is_idle(self) -> bool:
        """
        Nothing ready, due, pending or in flight.

        What is not known counts as work: who waits for this must not go on while the broker is away.
        """
        return all(one.is_idle for one in self.databases) and all(one.is_idle for one in self.nats.consumers)

    @property
    def capped(self) -> list[str]:
        """Every number that is "at least", such as ``default.archive.rows``."""
        return [f"{database.alias}.{name}" for database in self.databases for name in database.capped]

    @property
    def leases(self) -> list[LeaseView]:
        return [lease for database in self.databases for lease in database.leases]

    @property
    def workers(self) -> list[WorkerView]:
        return [worker for database in self.databases for worker in database.workers]

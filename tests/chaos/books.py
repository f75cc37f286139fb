"""Everything that a verdict rests on, read with plain SQL and without jetbridge after all processes have ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.chaos.tables import Query, Row

_NOW: Final = {"postgres": "clock_timestamp()", "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now')"}
# Tables that are empty when nothing is on its way; whatever stays in them would stay for ever.
PASSING: Final = ("jetbridge_outbox", "jetbridge_scheduled", "jetbridge_deferred", "jetbridge_hold")


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A committed event. ``n``: its place in the order of its key, ``None`` where there is no order."""

    event_id: str
    name: str
    key: str
    n: int | None
    fate: str
    copies: int
    handler: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A row of the archive, or with ``sequence`` 0 one that still is in the outbox or scheduled."""

    event_id: str
    kind: str
    state: str
    sequence: int = 0
    duplicate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row of the inbox."""

    handler: str
    event_id: str
    state: str
    attempts: int
    starts: int
    duplicates: int
    sequence: int
    claimed_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead letter."""

    handler: str
    event_id: str
    reason: str
    attempts: int
    starts: int
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A committed run of a handler; in the order in which they were written."""

    handler: str
    event_id: str
    key: str
    n: int | None
    answer_id: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    made: tuple[Made, ...]
    waiting: tuple[Sent, ...]
    archive: tuple[Sent, ...]
    inbox: tuple[Entry, ...]
    letters: tuple[Letter, ...]
    effects: tuple[Effect, ...]
    deferred: tuple[str, ...]
    held_leases: tuple[tuple[str, str], ...]
    leases: int
    rows: dict[str, int]


def read(query: Query, vendor: str) -> Books:
    """All of it; some hundred bytes an event."""
    effects = tuple(
        Effect(handler=handler, event_id=event, key=key, n=n, answer_id=answer, pid=pid)
        for handler, event, key, n, answer, pid in query(
            "SELECT handler, event_id, key, n, answer_id, pid FROM chaos_effect ORDER BY id"
        )
    )
    held = query(
        "SELECT name, owner FROM jetbridge_lease "
        f"WHERE owner <> '' AND expires_at > {_NOW[vendor]} ORDER BY name"
    )
    return Books(
        made=(*_made(query), *_answers(effects)),
        waiting=tuple(_waiting(query)),
        archive=tuple(
            Sent(event_id=event, kind=kind, state="sent", sequence=sequence, duplicate=bool(duplicate))
            for event, kind, sequence, duplicate in query(
                "SELECT event_id, kind, sequence, duplicate FROM jetbridge_archive ORDER BY id"
            )
        ),
        inbox=tuple(_inbox(query)),
        letters=tuple(
            Letter(
                handler=handler, event_id=event, reason=reason, attempts=attempts, starts=starts, state=state
            )
            for handler, event, reason, attempts, starts, state in query(
                "SELECT handler, event_id, reason, attempts, starts, state FROM jetbridge_dead_letter"
            )
        ),
        effects=effects,
        deferred=tuple(str(event) for (event,) in query("SELECT event_id FROM jetbridge_deferred")),
        held_leases=tuple((str(name), str(owner)) for name, owner in held),
        leases=_count(query, "jetbridge_lease"),
        rows={name: _count(query, name) for name in (*PASSING, "jetbridge_archive", "jetbridge_inbox")},
    )


def _made(query: Query) -> Iterable[Made]:
    for step, event, key, n, fate, copies in query(
        "SELECT step, event_id, key, n, fate, copies FROM chaos_step"
    ):
        yield Made(
            event_id=event,
            name=f"step {step}",
            key=key,
            n=n,
            fate=fate,
            copies=copies,
            handler="chaos.effect",
        )


def _answers(effects: Iterable[Effect]) -> Iterable[Made]:
    """What handlers published: committed if, and only if, their effect is."""
    for effect in effects:
        if effect.answer_id:
            yield Made(
                event_id=effect.answer_id,
                name=f"the answer to {effect.event_id}",
                key="",
                n=None,
                fate="fine",
                copies=1,
                handler="chaos.answer",
            )


def _waiting(query: Query) -> Iterable[Sent]:
    for event, kind, state, code in query(
        "SELECT event_id, kind, state, error_code FROM jetbridge_outbox ORDER BY id"
    ):
        yield Sent(event_id=event, kind=kind, state=f"{state} {code}".strip())
    for event, kind in query("SELECT event_id, kind FROM jetbridge_scheduled ORDER BY id"):
        yield Sent(event_id=event, kind=kind, state="scheduled")


def _inbox(query: Query) -> Iterable[Entry]:
    columns = "handler, event_id, state, attempts, starts, duplicates, sequence, claimed_by"
    for row in query(f"SELECT {columns} FROM jetbridge_inbox ORDER BY id"):
        handler, event, state, attempts, starts, duplicates, sequence, claimed_by = row
        yield Entry(
            handler=handler,
            event_id=event,
            state=state,
            attempts=attempts,
            starts=starts,
            duplicates=duplicates,
            sequence=sequence,
            claimed_by=claimed_by,
        )


def _count(query: Query, table: str) -> int:
    rows: list[Row] = list(query(f"SELECT count(*) FROM {table}"))
    return int(rows[0][0])


class Journal:
    """What the handlers wrote down themselves, a file for each process: which process died with what in its hands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def died_of(self, pid: int) -> bool:
        """Whether the process had begun an event that kills."""
        file = self._folder / str(pid)
        return file.exists() and " dies " in file.read_text()

    def unfinished(self, pids: Iterable[int]) -> dict[str, int]:
        """Event id to the number of these processes that ended while they handled it."""
        found = dict[str, int]()
        for pid in pids:
            file = self._folder / str(pid)
            open_events = set[str]()
            for line in file.read_text().splitlines() if file.exists() else ():
                _at, _pid, word, event_id, *_ = line.split()
                if word == "start":
                    open_events.add(event_id)
                elif word in ("end", "fails"):
                    open_events.discard(event_id)
            for event_id in open_events:
                found[event_id] = found.get(event_id, 0) + 1
        return found


def progress(query: Query) -> dict[str, Any]:
    """The few numbers that progress and the end of a run are seen by."""
    (row,) = query(
        "SELECT (SELECT count(*) FROM chaos_step), (SELECT count(*) FROM chaos_effect), "
        "(SELECT count(*) FROM jetbridge_outbox), (SELECT count(*) FROM jetbridge_scheduled), "
        "(SELECT count(*) FROM jetbridge_deferred), (SELECT count(*) FROM jetbridge_dead_letter), "
        "(SELECT count(*) FROM jetbridge_inbox WHERE state IN ('retrying', 'running', 'deferred')), "
        "(SELECT coalesce(sum(starts), 0) FROM jetbridge_inbox WHERE state <> 'processed')"
    )
    names = ("made", "effects", "outbox", "scheduled", "deferred", "dead", "open", "starts")
    return dict(zip(names, map(int, row), strict=True))


def owners(query: Query) -> set[int]:
    """Ids of the processes that hold leases, by the names they gave themselves (``host:pid:...``)."""
    named = query("SELECT DISTINCT owner FROM jetbridge_lease WHERE owner <> ''")
    return {int(str(owner).split(":")[-2]) for (owner,) in named}

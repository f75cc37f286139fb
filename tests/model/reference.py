"""
What the receiving side has to do, in plain dictionaries: no SQL, no clock, no code of the package.

One :class:`Reference` is what a whole database must look like. Each method is one thing that can happen, and
changes the reference as the docstrings of the models and the guarantees say.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

Identity = tuple[str, str]  # handler, event id

MAX_ATTEMPTS = {"t.twice": 2, "t.once": 1, "t.late": 2}
MAX_STARTS = 2
SETTLED = ("processed", "dead")


class Ending(enum.Enum):
    """How a handler comes to its end."""

    COMMITS = "commits"
    FAILS = "fails"
    ASKS_FOR_RETRY = "asks for a retry"
    SNOOZES = "snoozes"
    MEETS_TRANSIENT = "meets a transient error"
    REJECTS = "rejects"
    MEETS_PERMANENT = "meets a permanent error"
    LEAVES_ROLLBACK = "leaves its transaction marked for rollback"
    MEETS_OUTAGE = "meets an outage of the database"
    DIES = "takes its process down"


SPENDS = (Ending.FAILS, Ending.ASKS_FOR_RETRY, Ending.LEAVES_ROLLBACK)
SPENDS_NONE = (Ending.SNOOZES, Ending.MEETS_TRANSIENT)
GIVES_UP = {Ending.REJECTS: "rejected", Ending.MEETS_PERMANENT: "unrecoverable"}

# The arrows of the models' docstrings, an attempt taken as one step: what passes through "running" starts before it.
INBOX_ARROWS = {
    "absent": {"processed", "retrying", "running", "dead"},
    "retrying": {"processed", "running", "dead"},
    "running": {"processed", "retrying", "deferred", "dead"},
    "dead": {"deferred"},
    "deferred": {"processed", "running", "dead"},
    "processed": set[str](),
}
LETTER_ARROWS = {
    "absent": {"open"},
    "open": {"redriving", "discarded", "redriven"},  # the last: what reached no handler has none to wait for
    "redriving": {"redriven", "open"},
    "redriven": set[str](),
    "discarded": set[str](),
}


@dataclass(slots=True)
class Row:
    """An inbox row. ``is_due`` stands for the time of its next attempt."""

    state: str
    attempts: int = 0
    starts: int = 0
    generation: int = 0
    duplicates: int = 0
    owner: str = ""
    is_due: bool = True

    def deaths(self, owner: str) -> int:
        """Starts that ended with their process; one of ``owner``, who lives, is none."""
        alive = self.state == "running" and self.owner == owner
        return max(0, self.starts - self.attempts - alive)

    def stop_running(self) -> None:
        if self.state == "running":
            self.state = "deferred" if self.generation else "retrying"
        self.owner = ""


@dataclass(slots=True)
class Letter:
    """A dead letter."""

    state: str
    reason: str
    attempts: int
    starts: int
    redrives: int = 0


@dataclass(slots=True)
class Reference:
    """
    Attributes:
        inbox, letters: The rows.
        deferred: Messages that wait in the database.
        effects: Committed effects of each handler; each has published one answer.
        notices: Dead letter notices in the outbox.
    """

    inbox: dict[Identity, Row] = field(default_factory=dict)
    letters: dict[Identity, Letter] = field(default_factory=dict)
    deferred: set[Identity] = field(default_factory=set)
    effects: Counter[Identity] = field(default_factory=Counter)
    notices: int = 0

    # --- a copy of a message ---------------------------------------------------------------------

    def attempt(
        self, one: Identity, ending: Ending, *, redriven: bool, suspect: bool, owner: str, alone: bool
    ) -> str:
        """One copy in the hands of a process; returns what becomes of the copy."""
        row = self.inbox.get(one)
        if row is not None and (row.state in SETTLED or (row.generation > 0 and not redriven)):
            row.duplicates += 1
            if redriven:
                self._completed(one)
            return "duplicate"
        if row is not None and not row.is_due:
            return "wait"
        deaths = 0 if row is None else row.deaths(owner)
        suspect = suspect or deaths > 0 or (row is not None and row.state == "running")
        if suspect and row is not None and deaths >= MAX_STARTS:
            return self._bury(one, "crashed", attempts=row.attempts, starts=row.starts)
        if suspect and deaths and not alone:
            return "not alone"
        if suspect:
            self.start(one, owner)
        return self._end(one, ending, recorded=suspect, redriven=redriven)

    def start(self, one: Identity, owner: str) -> None:
        """A start on record."""
        row = self.inbox.setdefault(one, Row("absent"))
        if row.state != "running" or row.owner != owner:
            row.starts += 1
        row.state, row.owner, row.is_due = "running", owner, True

    def _end(self, one: Identity, ending: Ending, *, recorded: bool, redriven: bool) -> str:
        if ending is Ending.DIES:
            return "died"
        row = self.inbox.get(one)
        number = 1 if row is None else row.attempts + 1
        starts = (0 if row is None else row.starts) + (not recorded)
        if ending is Ending.COMMITS:
            row = self.inbox.setdefault(one, Row("absent"))
            row.state, row.attempts, row.starts, row.owner = "processed", number, starts, ""
            self.effects[one] += 1
            if redriven:
                self._completed(one)
            return "handled"
        if ending in GIVES_UP:
            return self._bury(one, GIVES_UP[ending], attempts=number, starts=starts)
        if ending in SPENDS and number >= MAX_ATTEMPTS[one[0]]:
            return self._bury(one, "max_deliver_exceeded", attempts=number, starts=starts)
        if ending is Ending.MEETS_OUTAGE:
            if recorded:
                self.take_back(one)
            return "wait"
        row = self.inbox.setdefault(one, Row("retrying"))
        if ending in SPENDS:
            row.attempts, row.starts = number, starts
        else:
            row.starts = starts - 1
        row.is_due = False
        row.stop_running()
        return "wait"

    def take_back(self, one: Identity) -> None:
        """The start on record came to nothing, through nobody's fault."""
        row = self.inbox[one]
        row.starts -= 1
        row.stop_running()

    def nobody_handles(self, one: Identity, *, redriven: bool) -> str:
        """A copy of an event for which there is no handler (any more)."""
        row = self.inbox.get(one)
        if row is not None and row.state in SETTLED:
            row.duplicates += 1
            if redriven:
                self._completed(one)
            return "duplicate"
        return self._bury(one, "unknown_event", attempts=0, starts=0 if row is None else row.starts)

    def _bury(self, one: Identity, reason: str, *, attempts: int, starts: int) -> str:
        row = self.inbox.setdefault(one, Row("absent"))
        row.state, row.attempts, row.starts, row.owner, row.is_due = "dead", attempts, starts, "", True
        letter = self.letters.get(one)
        if letter is None:
            self.letters[one] = Letter("open", reason, attempts, starts)
        else:
            assert letter.state == "redriving", letter
            letter.state, letter.reason, letter.attempts, letter.starts = "open", reason, attempts, starts
        self.deferred.discard(one)
        self.notices += 1
        return "dead"

    def _completed(self, one: Identity) -> None:
        self.deferred.discard(one)
        letter = self.letters.get(one)
        if letter is not None and letter.state == "redriving":
            letter.state = "redriven"

    # --- a process and its operator --------------------------------------------------------------

    def give_back(self, owner: str) -> None:
        """A process drains: every start of its own came to nothing."""
        for one, row in self.inbox.items():
            if row.state == "running" and row.owner == owner:
                self.take_back(one)

    def time_passes(self) -> None:
        for row in self.inbox.values():
            row.is_due = True

    def redrive(self, one: Identity, handlers: Collection[str]) -> bool:
        """
        Whether a dead letter is redriven.

        Args:
            handlers: Who wants the event now; asked where no handler did when it died.
        """
        letter, row, (handler, event_id) = self.letters[one], self.inbox[one], one
        targets = [(name, event_id) for name in ([handler] if handler else handlers)]
        if letter.state != "open" or not targets or self.deferred & set(targets):
            return False
        letter.redrives += 1
        letter.state = "redriving" if handler else "redriven"
        if handler:
            row.state, row.attempts, row.starts = "deferred", 0, 0
            row.generation += 1
        self.deferred |= set(targets)
        return True

    def discard(self, one: Identity) -> bool:
        letter = self.letters[one]
        if letter.state != "open":
            return False
        letter.state = "discarded"
        return True

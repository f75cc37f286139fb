"""
The seven invariants, judged by what is in the database and in the stream. Pure.

Every breach is named, so that its story can be looked up in the logs by event id.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.chaos.books import PASSING, Books, Entry, Letter, Made
from tests.chaos.broker import StreamState
from tests.chaos.plan import DEATHS, Fate
from tests.chaos.terms import Terms

# Not those that were rejected: an operator may have them handled later.
NEVER_SUCCEED: Final = (Fate.DOOMED, Fate.DEADLY)
PENDING: Final = ("retrying", "running", "deferred")
BUCKETS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """One thing that is wrong. ``of``: which number of the verdict it belongs to."""

    of: str
    what: str


# What must be 0; `order_violations` only where it is asked for, since 0.1.0 does not promise it over a hand-over.
PROMISED: Final = (
    "lost",
    "ghosts",
    "doubled",
    "stuck",
    "attempts_over_policy",
    "wrong_dead_letters",
    "wire_order_violations",
    "growth",
    "workers_failed",
)
ORDER: Final = "order_violations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """
    Attributes:
        died_with: Event id to the number of processes that were killed, or died, while they handled it.
        failures: Workers that ended without having been told to, or did not drain.
    """

    books: Books
    stream: StreamState
    terms: Terms
    died_with: Mapping[str, int]
    failures: Sequence[str] = ()


def judge(evidence: Evidence) -> list[Breach]:
    """All breaches, by the course of an event's life."""
    view = _View(evidence)
    found = [
        *(Breach(of="lost", what=what) for what in view.lost()),
        *(Breach(of="ghosts", what=what) for what in view.ghosts()),
        *(Breach(of="doubled", what=what) for what in view.doubled()),
        *(Breach(of="stuck", what=what) for what in view.stuck()),
        *(Breach(of="attempts_over_policy", what=what) for what in view.attempts()),
        *(Breach(of="wrong_dead_letters", what=what) for what in view.letters()),
        *(Breach(of="wire_order_violations", what=what) for what in view.wire_order()),
        *(Breach(of=ORDER, what=what) for what in view.order()),
        *(Breach(of="growth", what=what) for what in view.growth()),
    ]
    return [*found, *(Breach(of="workers_failed", what=what) for what in evidence.failures)]


class _View:
    def __init__(self, evidence: Evidence) -> None:
        self.books = books = evidence.books
        self.stream = evidence.stream
        self.terms = evidence.terms
        self.died_with = evidence.died_with
        self.made: dict[str, Made] = {made.event_id: made for made in books.made}
        self.effects = Counter(effect.event_id for effect in books.effects)
        self.dead: dict[str, list[Letter]] = defaultdict(list)
        for letter in books.letters:
            self.dead[letter.event_id].append(letter)
        self.inbox: dict[str, list[Entry]] = defaultdict(list)
        for entry in books.inbox:
            self.inbox[entry.event_id].append(entry)
        self.sent = Counter(sent.event_id for sent in books.archive if sent.kind == "event")
        self.waiting = Counter(sent.event_id for sent in books.waiting if sent.kind == "event")

    def lost(self) -> Iterator[str]:
        """Committed, and neither sent nor waiting; or sent, and neither handled nor given up nor on its way."""
        on_its_way = {*self.stream.left, *self.books.deferred}
        for made in self.books.made:
            known = self.sent[made.event_id] + self.waiting[made.event_id]
            if known < made.copies:
                yield f"{_name(made)}: {known} of {made.copies} rows in outbox and archive"
            states = [entry.state for entry in self.inbox[made.event_id]]
            given_up = any(letter.state != "redriven" for letter in self.dead.get(made.event_id, ()))
            ended = self.effects[made.event_id] or given_up
            pending = self.waiting[made.event_id] or made.event_id in on_its_way or set(states) & set(PENDING)
            if not ended and not pending:
                yield f"{_name(made)}: no effect and no dead letter; inbox: {states or 'nothing'}"
            if self.effects[made.event_id] and "processed" not in states:
                yield f"{_name(made)}: an effect, and the inbox says {states or 'nothing'}"
        notices = sum(sent.kind == "dead_letter" for sent in (*self.books.archive, *self.books.waiting))
        if notices < len(self.books.letters):
            yield f"notices: {notices} for {len(self.books.letters)} dead letters"
        if self.stream.notices < len(self.books.letters):
            yield f"notices in the stream: {self.stream.notices} for {len(self.books.letters)} dead letters"

    def ghosts(self) -> Iterator[str]:
        """What exists of an event that nobody committed, and effects of handlers that failed."""
        places = {
            "outbox": [sent.event_id for sent in self.books.waiting],
            "archive": [sent.event_id for sent in self.books.archive],
            "inbox": [entry.event_id for entry in self.books.inbox],
            "effects": [effect.event_id for effect in self.books.effects],
            "dead letters": [letter.event_id for letter in self.books.letters],
            "stream": self.stream.left,
        }
        for place, events in places.items():
            for event_id in dict.fromkeys(events):
                if event_id not in self.made:
                    yield f"{event_id} in {place}, of no committed transaction"
        for made in self.books.made:
            if made.fate in NEVER_SUCCEED and self.effects[made.event_id]:
                yield f"{_name(made)}: an effect, although its handler never succeeds"

    def doubled(self) -> Iterator[str]:
        for made in self.books.made:
            effects, letters = self.effects[made.event_id], len(self.dead.get(made.event_id, ()))
            if effects > 1:
                pids = [effect.pid for effect in self.books.effects if effect.event_id == made.event_id]
                yield f"{_name(made)}: {effects} effects, by processes {pids}"
            if letters > 1:
                yield f"{_name(made)}: {letters} dead letters"
            if effects and made.fate not in NEVER_SUCCEED:
                for letter in self.dead.get(made.event_id, ()):
                    if letter.state != "redriven":
                        yield f"{_name(made)}: an effect and a dead letter that is {letter.state}"
            known = self.sent[made.event_id] + self.waiting[made.event_id]
            if known > made.copies:
                yield f"{_name(made)}: {known} rows in outbox and archive for {made.copies} publishes"

    def stuck(self) -> Iterator[str]:
        for sent in self.books.waiting:
            yield f"outbox: {sent.kind} {sent.event_id} is {sent.state}"
        for event_id in self.stream.left:
            yield f"stream: {event_id} is not settled"
        if self.stream.pending or self.stream.ack_pending:
            yield f"durables: {self.stream.pending} to deliver, {self.stream.ack_pending} without ack"
        for entry in self.books.inbox:
            if entry.state in PENDING:
                yield f"inbox: {entry.event_id} is {entry.state}, claimed by {entry.claimed_by or 'nobody'}"
        for event_id in self.books.deferred:
            yield f"deferred: {event_id}"
        for letter in self.books.letters:
            if letter.state == "redriving":
                yield f"dead letter: {letter.event_id} is redriving"
        for name, owner in self.books.held_leases:
            yield f"lease: {name} is held by {owner}, and no process is left"

    def attempts(self) -> Iterator[str]:
        terms = self.terms
        for entry in self.books.inbox:
            if entry.attempts > terms.max_attempts or entry.starts > entry.attempts + terms.max_starts:
                yield f"{entry.event_id} of {entry.handler}: {entry.attempts} attempts, {entry.starts} starts"

    def letters(self) -> Iterator[str]:
        """Innocents given up, and the guilty given up too early or for the wrong reason."""
        for letter in self.books.letters:
            made = self.made.get(letter.event_id)
            if made is None or self.is_excused(letter):
                continue
            expected = DEATHS.get(made.fate)  # type: ignore[call-overload]
            if letter.reason != expected:
                yield f"{_name(made)}: dead as {letter.reason}, expected {expected or 'its effect'}"
            elif made.fate == "doomed" and letter.attempts != self.terms.max_attempts:
                yield f"{_name(made)}: given up after {letter.attempts} attempts of {self.terms.max_attempts}"

    def is_excused(self, letter: Letter) -> bool:
        """
        Whether it was killed as often as the policy asks for, by faults: the documented price of a SIGKILL.

        Its own handlers said that they began and never that they ended, in processes that are known to have died.
        """
        return letter.reason == "crashed" and self.died_with.get(letter.event_id, 0) >= self.terms.max_starts

    def wire_order(self) -> Iterator[str]:
        """Of a key, the first copy of each event lies in the stream behind that of the event before."""
        first = dict[str, int]()
        for event_id, sequence in (
            *((sent.event_id, sent.sequence) for sent in self.books.archive if sent.kind == "event"),
            *((entry.event_id, entry.sequence) for entry in self.books.inbox),
        ):
            first[event_id] = min(first.get(event_id, sequence), sequence)
        for key, events in _by_key(self.books.made).items():
            highest = 0
            for n, event_id in events:
                place = first.get(event_id, highest)
                if place < highest:
                    yield f"{key} #{n} {event_id}: at {place} of the stream, behind {highest}"
                highest = max(highest, place)

    def order(self) -> Iterator[str]:
        """But for those that had been dead letters: they come when they are redriven."""
        highest = dict[str, int]()
        for effect in self.books.effects:
            if effect.key and effect.n is not None and effect.event_id not in self.dead:
                if effect.n < highest.get(effect.key, 0):
                    yield f"{effect.key} #{effect.n} {effect.event_id}: after #{highest[effect.key]}"
                highest[effect.key] = max(highest.get(effect.key, 0), effect.n)

    def growth(self) -> Iterator[str]:
        """Tables of what is on its way are empty again, and the leases are as many as ever."""
        for name in PASSING:
            if self.books.rows[name]:
                yield f"{name}: {self.books.rows[name]} rows"
        if self.books.leases != BUCKETS + self.terms.partitions:
            yield f"jetbridge_lease: {self.books.leases} rows for {BUCKETS} buckets, {self.terms.partitions} durables"


def _by_key(made: Iterable[Made]) -> dict[str, list[tuple[int, str]]]:
    found = defaultdict[str, list[tuple[int, str]]](list)
    for event in made:
        if event.key and event.n is not None:
            found[event.key].append((event.n, event.event_id))
    for events in found.values():
        events.sort()
    return found


def _name(made: Made) -> str:
    place = f", {made.key} #{made.n}" if made.n is not None else ""
    return f"{made.event_id} ({made.name}{place}, {made.fate})"


def excused(evidence: Evidence) -> int:
    """Innocents that were killed by faults until the policy gave them up."""
    view = _View(evidence)
    fates = {made.event_id: made.fate for made in evidence.books.made}
    return sum(
        view.is_excused(letter) and fates.get(letter.event_id) not in DEATHS
        for letter in evidence.books.letters
    )


def suppressed(books: Books) -> int:
    """Copies that had no effect: the stream's own duplicates, and those that the inbox stopped."""
    return sum(sent.duplicate for sent in books.archive) + sum(entry.duplicates for entry in books.inbox)

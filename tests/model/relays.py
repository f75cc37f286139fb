"""
Relays that stop between any two of their steps, and a stream in memory.

The relay is the real one, on real tables and leases. Its coroutine is driven by hand: each statement and each answer
of the stream is a step of its own, before which anything else may happen, also to another relay.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec, TypeVar, cast

from jetbridge.conf import Settings
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.publisher import WindowPublisher
from jetbridge.jetstream.results import NO_RESPONDERS, NoAnswer, NotSent, Outgoing, Refused, Result, Stored
from jetbridge.leases.holder import LeaseHolder
from jetbridge.models import Lease
from jetbridge.models.clock import WallClock
from jetbridge.outbox.store_fence import LEASE_NAMES
from jetbridge.relay.relay import Relay
from jetbridge.runtime.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

FULL: Final = Refused(400, 10077, "maximum messages per subject exceeded")
MISSING: Final = NO_RESPONDERS
BAD: Final = Refused(400, 10054, "message size exceeds maximum allowed")
MOODS: Final = ("up", "away", "silent", "deaf", "lossy")


@dataclass(frozen=True, slots=True)
class Message:
    """What the stream holds."""

    id: str
    subject: str
    n: int


@dataclass(slots=True)
class Stream:
    """
    Attributes:
        mood: ``away``: nothing is sent; ``silent``: nothing is stored or answered; ``deaf``: all is stored and no
            answer arrives; ``lossy``: every other answer is lost.
        closed: Subjects without room, or without a stream, and what is answered on them.
        is_strict: Messages that say they are bad are refused.
        window: Message ids that are remembered.
    """

    name: str
    mood: str = "up"
    closed: dict[str, Refused] = field(default_factory=dict)
    is_strict: bool = True
    messages: list[Message] = field(default_factory=list)
    window: dict[str, int] = field(default_factory=dict)

    def publish(self, page: Sequence[Outgoing]) -> list[Result]:
        """A page as the windowed publisher sends it: after a message that is not stored, its lane's others stay."""
        results: list[Result] = []
        broken = set[object]()
        for number, message in enumerate(page):
            if message.lane is not None and message.lane in broken:
                result: Result = NotSent("an earlier message of its lane was not stored")
            else:
                result = self._take(number, message)
            if not isinstance(result, Stored):
                broken.add(message.lane)
            results.append(result)
        return results

    def _take(self, number: int, message: Outgoing) -> Result:
        if self.mood == "away":
            return NotSent("not connected")
        if self.mood == "silent":
            return NoAnswer("no answer in time")
        payload = json.loads(message.body)["payload"]
        if message.subject in self.closed:
            answer: Result = self.closed[message.subject]
        elif self.is_strict and payload.get("bad"):
            answer = BAD
        else:
            answer = self._store(message, payload["n"])
        lost = self.mood == "deaf" or (self.mood == "lossy" and number % 2)
        return NoAnswer("no answer in time") if lost else answer

    def _store(self, message: Outgoing, n: int) -> Stored:
        id = message.headers["Nats-Msg-Id"]
        if id in self.window:
            return Stored(self.name, self.window[id], duplicate=True)
        self.messages.append(Message(id, message.subject, n))
        self.window[id] = len(self.messages)
        return Stored(self.name, len(self.messages), duplicate=False)


class Clock:
    """``time.monotonic()`` at the machine's word."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


class _Pause:
    def __await__(self) -> Generator[None, None, None]:
        yield


class RelayProcess:
    """
    A relay, and in one person what surrounds it: holder, connection, publisher, threads.

    Args:
        name: Under which the leases are held.
    """

    server_version = (2, 15, 1)
    epoch = 1
    is_connected = True

    def __init__(self, name: str, stream: Stream, settings: Settings) -> None:
        self.owner = name
        self.acquisitions = 0
        self._held: frozenset[str] = frozenset()
        self._in_hand: frozenset[str] = frozenset()
        self._is_late = False
        self._stream = stream
        self._tick: Coroutine[Any, Any, float] | None = None
        self._relay = Relay(
            settings,
            using="default",
            connection=cast(Connection, self),
            publisher=cast(WindowPublisher, self),
            holder=cast(LeaseHolder, self),
            threads=cast(Threads, self),
        )

    def step(self) -> bool:
        """On to the next pause; ``False`` at the end of a tick."""
        if self._tick is None:
            self._tick = self._relay.tick()
        try:
            self._tick.send(None)
        except StopIteration:
            self._tick = None
        return self._tick is not None

    def die(self) -> None:
        """Between two steps."""
        if self._tick is not None:
            self._tick.close()

    # --- what it holds ---------------------------------------------------------------------------

    def lose(self, names: frozenset[str]) -> None:
        """They have run out, also under the hands of a process that stands still, and may be another's by now."""
        self._is_late = self._is_late or bool(self._in_hand & names)
        self._held -= names

    def hold(self, names: frozenset[str]) -> None:
        """The leases of this process from now on; in the table as well."""
        gained = names - self._held
        rows = Lease.objects.filter(name__in=LEASE_NAMES)
        rows.filter(owner=self.owner).exclude(name__in=names).update(owner="", expires_at=WallClock(-1))
        rows.filter(name__in=gained).update(owner=self.owner, expires_at=WallClock(3600))
        self.acquisitions += bool(gained)
        self._held = names

    def held(self) -> frozenset[str]:
        return self._held

    @contextmanager
    def in_hand(self) -> Iterator[frozenset[str]]:
        self._in_hand, self._is_late = self._held, False
        try:
            yield self._in_hand
        finally:
            self._in_hand, self._is_late = frozenset(), False

    def remaining_s(self) -> float:
        return 60.0 if self._held and not self._is_late else 0.0

    # --- what is around it -----------------------------------------------------------------------

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        await _Pause()
        return function(*args, **kwargs)

    async def publish(self, messages: Sequence[Outgoing], *, deadline_s: float) -> list[Result]:
        results = self._stream.publish(messages)  # at once: the deadline lies within the lease
        await _Pause()
        return results

    async def answers(self, timeout_s: float) -> bool:
        return self._stream.mood in ("up", "lossy")

    async def api(self, subject: str, body: object = None, timeout_s: float = 5.0) -> dict[str, str]:
        """INFO that does not say what the stream takes: then nobody listening is everybody's outage."""
        return {"created": "2026-11-22T00:00:00Z"}

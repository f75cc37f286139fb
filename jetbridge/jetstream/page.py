"""
One page of a windowed publish: which message may go next, and what became of each. Pure, no I/O.

Never two messages of one lane are in flight, and after one that was not stored its lane's later messages stay
here: the stream must not hold number 3 of a key while number 2 failed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Final

from jetbridge.jetstream import wire
from jetbridge.jetstream.results import NoAnswer, NotSent, Outgoing, Refused, Result, Stored, read_ack

TOO_LARGE: Final = 10054


class Page:
    """
    The messages of one call.

    Args:
        reply: Prefix of the reply subjects; the position in the page is appended as the last token.
        window: At most this many in flight.
        max_in_flight_bytes: And at most this many bytes of frames, but always one message.
        max_payload: The server's limit for headers plus body. One byte more and it closes the connection.
    """

    def __init__(
        self,
        messages: Sequence[Outgoing],
        *,
        reply: bytes,
        window: int,
        max_in_flight_bytes: int,
        max_payload: int,
    ) -> None:
        self.left = len(messages)
        self.in_flight = 0
        self._messages = messages
        self._results: list[Result | None] = [None] * len(messages)
        self._frame_sizes = [0] * len(messages)  # more than 0: in flight
        self._bytes = 0
        self._reply = reply
        self._window = window
        self._max_bytes = max_in_flight_bytes
        self._max_payload = max_payload
        self._cursor = 0
        self._released: deque[int] = deque()  # next of a lane whose predecessor was stored
        self._behind: dict[Hashable, deque[int] | None] = {}  # lane with one on its way -> its later ones
        self._broken: set[Hashable] = set()
        self._denied: set[str] = set()

    def burst(self) -> bytes:
        """Frames of everything that may go now; they count as in flight from here on."""
        frames: list[bytes] = []
        while self.in_flight < self._window:
            index = self._next()
            if index is None:
                break
            if self.in_flight and self._bytes + len(self._messages[index].body) > self._max_bytes:
                self._released.appendleft(index)
                break
            frame = self._frame(index)
            if isinstance(frame, Refused):
                self._settle(index, frame)
                continue
            self._frame_sizes[index] = len(frame)
            self._bytes += len(frame)
            self.in_flight += 1
            frames.append(frame)
        return b"".join(frames)

    def answer(self, index: int, body: bytes, headers: bytes) -> None:
        """The answer to the message at ``index``; a second one is ignored."""
        if self._frame_sizes[index]:
            self._settle(index, read_ack(body, headers))

    def deny(self, subject: str) -> None:
        """The server refused to take messages to ``subject`` (lower case) from this user."""
        for index, size in enumerate(self._frame_sizes):
            if size and self._messages[index].subject.lower() == subject:
                self._denied.add(self._messages[index].subject)
                self._settle(index, _denied(self._messages[index].subject))

    def finish(self, reason: str) -> list[Result]:
        """All results. What is in flight got no answer, what never went was not sent."""
        for index, result in enumerate(self._results):
            if result is None:
                self._results[index] = NoAnswer(reason) if self._frame_sizes[index] else NotSent(reason)
        return [result for result in self._results if result is not None]

    def _next(self) -> int | None:
        if self._released:
            return self._released.popleft()
        while self._cursor < len(self._messages):
            index, lane = self._cursor, self._messages[self._cursor].lane
            self._cursor += 1
            if lane is None:
                return index
            if lane in self._broken:
                self._results[index] = _behind_a_failure(lane)
                self.left -= 1
            elif lane not in self._behind:
                self._behind[lane] = None
                return index
            else:
                queue = self._behind[lane]
                if queue is None:
                    queue = self._behind[lane] = deque()
                queue.append(index)
        return None

    def _frame(self, index: int) -> bytes | Refused:
        message = self._messages[index]
        if message.subject in self._denied:
            return _denied(message.subject)
        try:
            subject = wire.subject_bytes(message.subject)
            block = wire.header_block(message.headers)
        except ValueError as error:
            return Refused(400, 0, str(error))
        size = len(block) + len(message.body)
        if size > self._max_payload:
            return Refused(
                400,
                TOO_LARGE,
                f"message of {size} bytes with its headers exceeds the server's max_payload of {self._max_payload}",
            )
        return wire.publish_frame_with_headers(subject, b"%b.%d" % (self._reply, index), block, message.body)

    def _settle(self, index: int, result: Result) -> None:
        size = self._frame_sizes[index]
        if size:
            self._frame_sizes[index] = 0
            self._bytes -= size
            self.in_flight -= 1
        self._results[index] = result
        self.left -= 1
        lane = self._messages[index].lane
        if lane is None:
            return
        queue = self._behind[lane]
        if not isinstance(result, Stored):
            del self._behind[lane]
            self._broken.add(lane)
            for follower in queue or ():
                self._results[follower] = _behind_a_failure(lane)
                self.left -= 1
        elif queue:
            self._released.append(queue.popleft())
        else:
            del self._behind[lane]


def _behind_a_failure(lane: Hashable) -> NotSent:
    return NotSent(f"an earlier message of lane {lane!r} was not stored")


def _denied(subject: str) -> Refused:
    return Refused(403, 0, f"permissions violation: this NATS user may not publish to {subject!r}")

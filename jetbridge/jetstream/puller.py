"""
The pull loop of one durable: asks for as many messages as there are free slots, and never sleeps through a reconnect.

nats-py's ``fetch()`` does both: it hides a deleted consumer behind a time-out, and after a restart of the server it
waits for an answer that cannot come. Here pulls overlap, heartbeats are watched, a new connection means a new inbox
and a new pull, and stopping leaves nothing behind that was delivered and not handed over.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Final

from jetbridge.jetstream import wire
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.denials import Denial, PermissionDenied
from jetbridge.jetstream.incoming import Incoming, read_incoming
from jetbridge.jetstream.logs import Hush, logger
from jetbridge.jetstream.pulls import Pulls, Reaction, allowed_batch, react
from jetbridge.jetstream.session import Session

__all__ = ["Incoming", "Puller"]

BACKOFF_S: Final = (0.25, 1.0)
PAUSE_S: Final = 0.1
SILENCE_S: Final = 0.25
PROBE_S: Final = 2.0


class Puller:
    """
    Pulls one durable into ``deliver`` until stopped.

    Args:
        credit: Free slots, not counting what is asked for already. 0 means: do not ask (no lease, full, barrier).
        deliver: Takes a message; called on the loop, must return quickly. What it raises is logged and the message
            comes back after ``ack_wait``.
        expires_s: How long one pull waits at the server.
        heartbeat_s: The server speaks at least this often while a pull waits; twice as long in silence and the
            loop starts again on a new inbox. At most half of ``expires_s``.
        max_batch: Largest single pull.

    Attributes:
        missing: The server says that there is no such consumer. Tried again all the same.
        trouble: For humans, ``""`` when all is well.
        last_heard: ``time.monotonic()`` of the last sign of life of the durable.
        turned_at: ``time.monotonic()`` of the last turn of its loop, at most a second ago while all is well.
        generation: Grows with each new inbox; deliveries to an older one may be lost until ``ack_wait``.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        stream: str,
        consumer: str,
        credit: Callable[[], int],
        deliver: Callable[[Incoming], None],
        expires_s: float,
        heartbeat_s: float,
        max_batch: int = 256,
    ) -> None:
        self.missing = False
        self.trouble = ""
        self.last_heard = self.turned_at = time.monotonic()
        self.generation = 0
        self._connection = connection
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._name = f"{stream}/{consumer}"
        self._credit = credit
        self._deliver = deliver
        self._expires_s = expires_s
        self._heartbeat_s = min(heartbeat_s, expires_s * 0.49)
        self._max_batch = max_batch
        self._pulls = Pulls()
        self._session: Session | None = None
        self._sid = 0
        self._inbox = ""
        self._opened_at = self._last_message = self._resume_at = 0.0
        self._failures = 0
        self._stopping = False
        self._stopped = asyncio.Event()
        self._news = asyncio.Event()
        self._probe: tuple[int, asyncio.Future[bool]] | None = None
        self._say = Hush()

    @property
    def asked(self) -> int:
        """Messages asked for that have not come yet."""
        return self._pulls.asked

    # --- life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Pull until :meth:`stop` or the end of the connection. Never raises for trouble with the server."""
        try:
            while not self._stopped.is_set() and not self._connection.is_closed:
                self.turned_at = time.monotonic()
                session = self._connection.session
                if session is None:
                    await self._wait_connected()
                    continue
                await self._serve(session)
        finally:
            self._close_inbox()

    async def stop(self, timeout_s: float) -> None:
        """
        Ask for nothing more, take what is on its way, then cancel what waits.

        Unsubscribing under load loses every message the server counts as delivered and has not sent yet
        (500 of 500 in an experiment); they come back only after ``ack_wait``, one delivery older. So the inbox
        stays until everything asked for has come, or nothing came for 250 ms, or the time is up.
        """
        self._stopping = True
        started = time.monotonic()
        deadline = started + timeout_s
        while self._pulls.asked and self._session is not None and not self._session.is_lost:
            now = time.monotonic()
            if now >= deadline or now - max(self._last_message, started) >= SILENCE_S:
                break
            await asyncio.sleep(0.01)
        session = self._session
        if session is not None and not session.is_lost:
            session.client.unsubscribe(self._sid)
            # The handler stays until the server has read that: what it sent before is still handed over.
            await session.barrier(max(0.1, min(1.0, deadline - time.monotonic())))
        self._close_inbox()
        self._stopped.set()
        self._news.set()

    def wake(self) -> None:
        """There is more credit."""
        self._ask()

    async def probe_empty(self) -> bool:
        """
        Ask once without waiting. What is found is delivered.

        Returns:
            ``True`` when the server said that nothing waits. Messages delivered and not acked yet, or held back by a
            delay, do not wait. It asks for one message, needs one credit, and by that one it may exceed
            the credit while a pull for all of it is waiting.
        """
        session = self._session
        if (
            session is None
            or session.is_lost
            or self._stopping
            or self._probe is not None
            or self._credit() < 1
        ):
            return False
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        token = self._pulls.add(1, time.monotonic() + PROBE_S)
        self._probe = (token, answer)
        try:
            if not self._send_pull(session, token, {"batch": 1, "no_wait": True}):
                return False
            async with asyncio.timeout(PROBE_S):
                return await answer
        except TimeoutError:
            return False
        finally:
            self._probe = None

    # --- one inbox -------------------------------------------------------------------------------

    async def _wait_connected(self) -> None:
        await self._connection.ready(0.5)

    async def _serve(self, session: Session) -> None:
        """Pull on one inbox until it is of no more use."""
        self._open_inbox(session)
        undo = (
            session.on_lost(lambda _reason: self._on_lost()),
            self._connection.denials.listen(self._on_denial),
        )
        tick = min(1.0, self._heartbeat_s / 4)
        try:
            while not self._stopped.is_set() and not session.is_lost:
                self.turned_at = time.monotonic()
                self._ask()
                self._news.clear()
                due = time.monotonic() + self._wait_s(tick)
                await self._wait_news(due - time.monotonic())
                now = time.monotonic()
                if now - due > tick:
                    # The loop was blocked, by whoever, and what the server said meanwhile may still be unread:
                    # asyncio looks at sockets before timers, other loops do not.
                    self.last_heard = now
                self._pulls.write_off(now)
                if self._is_silent(now):
                    self._say(
                        logging.WARNING, f"{self._name}: two heartbeats missed, pulling on a new inbox."
                    )
                    session.client.unsubscribe(self._sid)
                    return
        finally:
            for take_back in undo:
                take_back()
            if not self._stopping or session.is_lost:
                self._close_inbox()

    def _open_inbox(self, session: Session) -> None:
        self._close_inbox()
        self.generation += 1
        self._session = session
        self._inbox = session.client.new_inbox()
        self._sid = session.client.listen(f"{self._inbox}.*", self._on_message)
        self._opened_at = time.monotonic()
        self.last_heard = max(self.last_heard, self._opened_at - self._heartbeat_s)

    def _close_inbox(self) -> None:
        self._pulls.clear()
        if self._session is not None:
            self._session.client.forget(self._sid)
            self._session = None
        if self._probe is not None and not self._probe[1].done():
            self._probe[1].set_result(False)

    def _on_lost(self) -> None:
        self._pulls.clear()
        self._resume_at = 0.0
        self._failures = 0
        self._news.set()

    def _wait_s(self, tick: float) -> float:
        """Until the next look: the tick, or sooner when a pause ends."""
        pause = self._resume_at - time.monotonic()
        return min(tick, pause) if pause > 0 else tick

    async def _wait_news(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._news.wait()
        except TimeoutError:
            pass

    def _is_silent(self, now: float) -> bool:
        if not self._pulls.asked or self._stopping:
            return False
        return now - max(self.last_heard, self._opened_at) > 2 * self._heartbeat_s + 0.1

    # --- asking ----------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Pull for the free slots once half of what was asked for has come, so that the server never waits for us."""
        session = self._session
        now = time.monotonic()
        if session is None or session.is_lost or self._stopping or now < self._resume_at:
            return
        # Two batches keep the server busy; more would only fill its list of waiting pulls (512 for all of us).
        room = min(self._credit(), 2 * self._max_batch) - self._pulls.asked
        while room > 0 and self._pulls.asked <= room:
            count = min(room, self._max_batch)
            if self._pulls.asked == 0:
                self.last_heard = now  # nobody had to speak while nothing was asked
            token = self._pulls.add(count, now + self._expires_s)
            body = {
                "batch": count,
                "expires": int(self._expires_s * 1e9),
                "idle_heartbeat": int(self._heartbeat_s * 1e9),
            }
            if not self._send_pull(session, token, body):
                return
            room -= count

    def _send_pull(self, session: Session, token: int, body: Mapping[str, object]) -> bool:
        reply = f"{self._inbox}.{token}".encode()
        sent = session.client.push(
            wire.publish_frame(self._subject.encode(), reply, json.dumps(body).encode())
        )
        if not sent:
            self._pulls.ended(token, None)
            self._pause(PAUSE_S)
        return sent

    def _pause(self, seconds: float) -> None:
        self._resume_at = time.monotonic() + seconds
        self._news.set()

    def _back_off(self) -> None:
        low, high = BACKOFF_S
        self._failures += 1
        self._pause(min(high, low * 2 ** (self._failures - 1)) * random.uniform(0.8, 1.0))

    # --- hearing ---------------------------------------------------------------------------------

    def _on_message(self, subject: bytes, reply: bytes, body: bytes, headers: bytes) -> None:
        self.last_heard = time.monotonic()
        # A status of the server has no reply. A stored message always has, whatever its header block pretends to be.
        if not reply:
            self._on_status(subject, headers)
            return
        self._last_message = self.last_heard
        self._well()
        self._pulls.arrived()
        if self._probe is not None and not self._probe[1].done():
            self._probe[1].set_result(False)
        try:
            self._deliver(read_incoming(subject.decode(), reply.decode(), body, headers))
        except Exception:
            logger.exception(
                "%s: a delivery could not be handed over; it comes back after ack_wait.", self._name
            )
        self._ask()

    def _on_status(self, subject: bytes, headers: bytes) -> None:
        code, text = wire.read_status(headers)
        reaction = react(code, text)
        token = _number(subject.rpartition(b".")[2].decode("ascii", "replace")) or 0
        if self._probe is not None and self._probe[0] == token and not self._probe[1].done():
            self._probe[1].set_result(reaction is Reaction.EMPTY)
        if reaction is Reaction.ALIVE:
            self._well()
            return
        self._pulls.ended(token, _number(wire.read_headers(headers).get("Nats-Pending-Messages", "")))
        match reaction:
            case Reaction.ENDED | Reaction.EMPTY:
                self._well()
                self._ask()
            case Reaction.PAUSE:
                self._pause(PAUSE_S)
            case Reaction.MISSING:
                self.missing = True
                self._complain(
                    f"there is no such consumer ({code} {text or 'no responders'}). Run: jetbridge_provision"
                )
            case _:
                self._shrink(text)
                self._complain(f"the server refuses our pulls: {code} {text}")

    def _shrink(self, text: str) -> None:
        limit = allowed_batch(text)
        if limit:
            self._max_batch = min(self._max_batch, limit)

    def _on_denial(self, denial: Denial) -> None:
        if not denial.is_subscription and denial.subject == self._subject.lower():
            self._pulls.clear()
            self._complain(str(PermissionDenied(self._subject)))

    def _complain(self, text: str) -> None:
        self.trouble = f"{self._name}: {text}"
        self._say(logging.WARNING, self.trouble)
        self._back_off()

    def _well(self) -> None:
        if self.trouble or self._failures:
            self.missing, self.trouble, self._failures = False, "", 0


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None

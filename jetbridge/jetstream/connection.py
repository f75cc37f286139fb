"""
The supervised connection: connects for ever, verifies its reply inbox, replaces the client when it is lost.

One per process. The relay and the consumer ask :meth:`Connection.ready`, look at ``epoch`` to notice a
reconnect, and never see nats-py. Losing the connection is an event here, not an exception.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from nats.errors import NoServersError

from jetbridge.errors import BrokerUnreachable
from jetbridge.jetstream import answers, wire
from jetbridge.jetstream.client import Client, Handler
from jetbridge.jetstream.denials import Denial, Denials, PermissionDenied
from jetbridge.jetstream.dialer import Dialer
from jetbridge.jetstream.logs import logger
from jetbridge.jetstream.options import ConnectionOptions, options_for
from jetbridge.jetstream.session import Session
from jetbridge.jetstream.trouble import Trouble
from jetbridge.runtime.service import is_cancelled

__all__ = ["Connection", "ConnectionOptions", "PermissionDenied", "options_for"]

BACKOFF_S: Final = (0.1, 1.0)  # work resumes within two seconds of an outage's end
STABLE_S: Final = 5.0


class Connection:
    """
    A connection that is there whenever the server is.

    Attributes:
        epoch: Grows with each successful connect; 0 before the first.
    """

    def __init__(self, options: ConnectionOptions) -> None:
        self.options = options
        self.epoch = 0
        self.denials = Denials()
        self._session: Session | None = None
        self._standing: dict[str, tuple[Handler, Callable[[], None]]] = {}
        self._supervisor: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._closed = False
        self._trouble = Trouble(options.urls)
        self._dialer = Dialer(options, denials=self.denials, note=self._note)

    # --- state -----------------------------------------------------------------------------------

    @property
    def session(self) -> Session | None:
        """The living session, ``None`` while there is none. For this package only."""
        return self._session

    @property
    def is_connected(self) -> bool:
        return self._session is not None

    @property
    def last_error(self) -> str:
        """The latest trouble for humans, without credentials; ``""`` while connected."""
        return self._trouble.last_error

    @property
    def denied(self) -> str:
        """
        Why the user's permissions make work impossible, ``""`` if they do not. Tried again all the same, every
        second, because permissions can be repaired while we run.
        """
        return self._trouble.denied

    def why_unreachable(self) -> str:
        """A sentence for whoever gives up waiting: which address, what happened, what to do. No credentials."""
        return self._trouble.why_unreachable()

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def is_supervised(self) -> bool:
        """Whether somebody still looks after it; if not, a lost connection would not come back."""
        return self._closed or (self._supervisor is not None and not self._supervisor.done())

    @property
    def client(self) -> Client:
        """
        The client of the living session. For this package only.

        Raises:
            BrokerUnreachable: There is none.
        """
        return self._living().client

    @property
    def max_payload(self) -> int:
        """Bytes of headers plus body that the server takes; its default while unconnected."""
        return self._session.client.max_payload if self._session else 1_048_576

    @property
    def server_version(self) -> tuple[int, int, int]:
        """``(2, 12, 8)``; zeros while unconnected."""
        if self._session is None:
            return (0, 0, 0)
        found = re.match(r"(\d+)\.(\d+)\.(\d+)", self._session.client.version)
        return (int(found[1]), int(found[2]), int(found[3])) if found else (0, 0, 0)

    async def start(self) -> None:
        """Begin to connect in the background, for ever. Returns at once."""
        if self._supervisor is None and not self._closed:
            self._supervisor = asyncio.create_task(self._supervise(), name="jetbridge-connection")

    async def ready(self, timeout_s: float | None = None) -> bool:
        """
        Wait until connected and the reply inbox is verified.

        Returns:
            ``False`` when ``timeout_s`` ran out, after :meth:`close`, and early (within half a second) while
            ``denied`` says that waiting is of no use.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        if self.denied:
            deadline = min(deadline or float("inf"), loop.time() + 0.5)
        try:
            async with asyncio.timeout_at(deadline):
                while not self.is_connected and not self._closed:
                    was_denied = self.denied
                    await self._changed.wait()
                    if self.denied and not was_denied:
                        return False
        except TimeoutError:
            return self.is_connected
        return self.is_connected

    async def answers(self, timeout_s: float) -> bool:
        """Whether the server answers a ping now. A line that was cut without a word looks alive for half a minute."""
        session = self._session
        return session is not None and await session.barrier(timeout_s)

    # --- talking ---------------------------------------------------------------------------------

    def send(
        self, subject: str, body: bytes = b"", *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> bool:
        """
        A plain publish without an answer; ``False`` when it could not even be queued.

        Raises:
            ValueError: The subject or a header cannot go on the wire.
        """
        target, answer = wire.subject_bytes(subject), wire.subject_bytes(reply) if reply else b""
        if headers is None:
            return self.push(wire.publish_frame(target, answer, body))
        return self.push(wire.publish_frame_with_headers(target, answer, wire.header_block(headers), body))

    def push(self, frames: bytes) -> bool:
        """Queue protocol frames on the living session; ``False`` if there is none or it is choked."""
        return self._session is not None and self._session.client.push(frames)

    def listen(self, subject: str, handler: Handler, *, on_denied: Callable[[], None]) -> None:
        """
        Hear ``subject`` on this session, if there is one, and on every later one before anybody else uses it.

        Args:
            on_denied: Called each time the server refuses the subscription; the connection lives on without it.
        """
        self._standing[subject] = (handler, on_denied)
        self.denials.expect(subject)
        if self._session is not None:
            self._session.client.listen(subject, handler)

    async def request(self, subject: str, body: bytes = b"", *, timeout_s: float = 5.0) -> bytes:
        """
        Publish and wait for one answer; connecting counts towards the time.

        Raises:
            BrokerUnreachable: Not connected in time, connection lost, nobody listens, or no answer.
            PermissionDenied: At once, when the server refuses the subject.
        """
        deadline = time.monotonic() + timeout_s
        await self.ready(timeout_s)
        session = self._living()
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        reply = session.reply_to(lambda _rest, data, headers: answers.give(answer, subject, data, headers))
        undo = (
            session.on_lost(
                lambda reason: answers.fail(answer, BrokerUnreachable(f"Connection lost: {reason}"))
            ),
            self.denials.listen(lambda denial: answers.deny(answer, subject, denial)),
        )
        try:
            if not session.client.push(wire.publish_frame(wire.subject_bytes(subject), reply, body)):
                raise BrokerUnreachable(f"The connection takes no more data; {subject} was not sent.")
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await answer
        except TimeoutError:
            raise BrokerUnreachable(f"No answer to {subject} within {timeout_s:g} s.") from None
        finally:
            session.no_reply_to(reply)
            for take_back in undo:
                take_back()

    async def api(
        self, subject: str, body: Mapping[str, object] | None = None, timeout_s: float = 5.0
    ) -> dict[str, object]:
        """
        One call of the JetStream API in raw JSON.

        Args:
            subject: Without ``$JS.API.``, such as ``STREAM.INFO.orders``.

        Returns:
            The whole answer, also when it holds an ``error``.

        Raises:
            BrokerUnreachable, PermissionDenied: As :meth:`request`.
        """
        payload = b"" if body is None else json.dumps(body).encode()
        answer = json.loads(await self.request(f"$JS.API.{subject}", payload, timeout_s=timeout_s))
        if not isinstance(answer, dict):
            raise BrokerUnreachable(f"$JS.API.{subject} answered something that is not a JSON object.")
        return answer

    async def close(self) -> None:
        """Send what is queued and disconnect, in bounded time. Never raises; there is no way back."""
        if self._closed:
            return
        self._closed = True
        session = self._session
        if session is not None:
            for _ in range(2):  # whoever was about to ack gets to queue it
                await asyncio.sleep(0)
            await session.barrier(2.0)
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait((self._supervisor,), timeout=2.0)
        if self._session is not None:
            self._end_session(self._session, "closed")
        self._tell()

    def _living(self) -> Session:
        if self._session is None:
            raise BrokerUnreachable(
                self._trouble.explain(self.denied or self.last_error or "Not connected yet.")
            )
        return self._session

    # --- supervising -----------------------------------------------------------------------------

    async def _supervise(self) -> None:
        failures = 0
        while not self._closed:
            born = time.monotonic()
            unreachable = False
            try:
                await self._live()
            except NoServersError:
                unreachable = True  # the rounds inside have waited already
            except PermissionDenied as error:
                self._trouble.deny(str(error))
                self._tell()
                failures = 10
            except asyncio.CancelledError as error:
                if is_cancelled():
                    raise
                self._note(
                    error
                )  # of somebody else's future that we waited for: no reason to stay away for ever
            except Exception as error:  # whatever it was, the next attempt may work
                self._note(error)
            failures = 0 if time.monotonic() - born > STABLE_S else failures + (not unreachable)
            if not unreachable:
                await asyncio.sleep(backoff_s(failures))

    async def _live(self) -> None:
        """One session, from connecting to its end."""
        session: Session | None = None
        lost_early: list[str] = []

        def on_lost(reason: str) -> None:
            if session is None:
                lost_early.append(reason)
            else:
                self._end_session(session, reason)

        client = Client(on_lost=on_lost, tcp_timeout_s=self.options.tcp_timeout_s)
        try:
            await self._dialer.dial(client)
            session = Session(client, self.epoch + 1)
            await self._dialer.verify(session)
            if lost_early or session.is_lost:
                raise BrokerUnreachable("; ".join(lost_early) or session.reason)
            self._begin_session(session)
            take_back = self.denials.listen(partial(self._on_denial, session))
            reason = await session.wait_lost()
            take_back()
            self._dialer.learn(client)
            if not self._closed:
                self._note(BrokerUnreachable(f"Connection lost: {reason}"))
        finally:
            await client.discard()

    def _begin_session(self, session: Session) -> None:
        for subject, (handler, _) in self._standing.items():
            session.client.listen(subject, handler)
        self.epoch = session.epoch
        self._session = session
        self._trouble.is_over()
        logger.info(
            "Connected to %s, server %s.",
            self._trouble.explain(self._dialer.last_url),
            ".".join(map(str, self.server_version)),
        )
        self._tell()

    def _end_session(self, session: Session, reason: str) -> None:
        if self._session is session:
            self._session = None
        session.lose(self._trouble.explain(reason))
        self._tell()

    def _on_denial(self, session: Session, denial: Denial) -> None:
        """
        A subscription that the server does not take, or has removed.

        That of the reply inbox is removed when the right to it is taken away while we work. It would not come back
        with the right, and a deaf relay sends each page again and again, stored each time.
        """
        if not denial.is_subscription:
            return
        if denial.subject == session.reply_subject.lower():
            self._end_session(session, "this user may not subscribe to its reply inbox any more")
        for subject, (_, on_denied) in self._standing.items():
            if denial.subject == subject.lower():
                on_denied()

    def _note(self, error: BaseException) -> None:
        self._trouble.note(error, is_connected=self.is_connected)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def backoff_s(failures: int) -> float:
    """0.1 s doubling to 1 s, with jitter so that a fleet does not come back in step."""
    low, high = BACKOFF_S
    return min(high, low * 2.0 ** max(0, failures - 1)) * random.uniform(0.5, 1.0)

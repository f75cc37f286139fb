"""
nats-py's client with the few things changed that would otherwise lose, hang or leak.

It connects, authenticates, parses and pings; it never reconnects. The supervisor in
:mod:`~jetbridge.jetstream.connection` builds a new client instead, so there is one way back, whatever
happened: nats-py's own reconnect sits for minutes on a frozen peer with data queued, stops for ever after a
raising callback, sends publishes at reconnect that were reported as failed, and is skipped
altogether after six kinds of server error.

All use of nats-py's private names is in this file; ``tests/broker/test_connection.py`` pins them.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

from nats import errors
from nats.aio.client import Client as NatsClient
from nats.aio.client import Srv

from jetbridge.jetstream.logs import logger

# subject, reply, body, header block (empty without headers). Must not raise and must not block.
Handler = Callable[[bytes, bytes, bytes, bytes], None]

MAX_PENDING_BYTES: Final = 8 * 1024 * 1024


class Client(NatsClient):
    """
    One connection to one server, used once.

    Args:
        on_lost: Called as soon as the connection is known to be gone, perhaps more than once, with the reason.
        tcp_timeout_s: Seconds after which the kernel gives up on data or probes that nobody acknowledges.
    """

    def __init__(self, *, on_lost: Callable[[str], None], tcp_timeout_s: float) -> None:
        super().__init__()
        self.lose = on_lost
        self._tcp_timeout_s = tcp_timeout_s
        self._handlers: dict[int, Handler] = {}

    @property
    def version(self) -> str:
        """The server's, such as ``2.12.8``; ``""`` before it said so."""
        return str(self._server_info.get("version", ""))

    # --- sending and receiving -------------------------------------------------------------------

    def push(self, frames: bytes) -> bool:
        """
        Queue whole protocol frames; ``False`` when they were not taken.

        It never waits, so it cannot swallow a cancellation, as nats-py's ``publish()`` does once the server stops
        reading. And it takes a whole burst at once: 3 to 4 us of CPU a message with two headers, against 6 to 9.
        """
        queue = self._flush_queue
        if (
            queue is None
            or self._status != NatsClient.CONNECTED
            or self._pending_data_size > MAX_PENDING_BYTES
        ):
            return False
        self._pending.append(frames)
        self._pending_data_size += len(frames)
        if queue.empty():
            queue.put_nowait(asyncio.get_running_loop().create_future())
        return True

    def listen(self, subject: str, handler: Handler) -> int:
        """Subscribe; the subscription's id. Messages go straight to ``handler``, without a queue or a task."""
        self._sid += 1
        self._handlers[self._sid] = handler
        self.push(b"SUB %b  %d\r\n" % (subject.encode(), self._sid))
        return self._sid

    def unsubscribe(self, sid: int) -> None:
        """Tell the server; what is still on its way reaches the handler until :meth:`forget`."""
        self.push(b"UNSUB %d\r\n" % sid)

    def forget(self, sid: int) -> None:
        """Drop the handler."""
        self._handlers.pop(sid, None)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        handler = self._handlers.get(sid)
        if handler is None:
            return
        try:
            handler(subject, reply, data, headers or b"")
        except Exception:  # an exception here would end nats-py's read loop without a word
            logger.exception("A handler of incoming messages failed.")

    async def _process_pong(self) -> None:
        # nats-py sets a result on a future that a timed-out flush has cancelled, and its read loop dies.
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():
                future.set_result(True)
            self._pongs_received += 1
            self._pings_outstanding = 0

    # --- connecting ------------------------------------------------------------------------------

    async def _connect_to_server(self, s: Srv) -> None:
        await super()._connect_to_server(s)
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            tune_socket(writer.get_extra_info("socket"), self._tcp_timeout_s)

    def _connect_command(self) -> bytes:
        uri = self._current_server.uri if self._current_server else None
        writer = getattr(self._transport, "_io_writer", None)
        encrypted = writer is not None and writer.get_extra_info("ssl_object") is not None
        if uri is not None and uri.scheme == "tls" and not encrypted:
            # nats-py encrypts only if the server asks for it: whoever strips that from INFO gets the password.
            raise errors.Error(
                f"tls://{uri.hostname} offered an unencrypted connection; refused before sending credentials. "
                "Enable TLS on the server or write nats:// if clear text is meant."
            )
        command = super()._connect_command()
        return _decoded(command) if uri is not None and uri.username else command

    async def open(self, **options: object) -> None:
        """``connect()`` without retries after the handshake began, then watch the three loops that keep it alive."""
        try:
            await self.connect(**options)  # type: ignore[arg-type]
        except OSError as error:
            said = self._unread_error()
            if said:
                raise errors.Error(f"nats: {said}") from error
            raise
        for task in (self._reading_task, self._flusher_task, self._ping_interval_task):
            if task is not None:
                task.add_done_callback(self._loop_ended)

    def _unread_error(self) -> str:
        """
        The reason a server gave before it closed on us.

        It arrives behind INFO while nats-py writes CONNECT, which then fails with a broken pipe: the operator would
        read that instead of "maximum connections exceeded". Best effort, from the reader's buffer.
        """
        reader = getattr(self._transport, "_io_reader", None)
        found = re.search(rb"-ERR ('[^']*')", bytes(getattr(reader, "_buffer", b"")))
        return found[1].decode("utf-8", "replace") if found else ""

    # --- losing it -------------------------------------------------------------------------------

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        # nats-py's read loop ends silently on an exception it does not know, and the client stays "connected".
        self.lose(str(self._err or "the connection was closed"))

    async def _process_op_err(self, e: Exception) -> None:
        self.lose(str(e) or type(e).__name__)
        self.abort()
        await super()._process_op_err(e)

    def abort(self) -> None:
        """Close the socket without waiting for a peer that may never read what is queued."""
        self._pending.clear()
        self._pending_data_size = 0
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def discard(self) -> None:
        """Abort and end the client's tasks. Never raises."""
        self.abort()
        try:
            await asyncio.wait_for(self.close(), 1.0)
        except Exception as error:
            logger.debug("Closing a lost connection: %s", type(error).__name__)


def tune_socket(sock: socket.socket | None, timeout_s: float) -> None:
    """
    Make the kernel notice a peer that vanished: with data queued nothing above it does, for up to 15 minutes.

    Args:
        sock: The connection's socket, ``None`` is ignored (no TCP).
        timeout_s: Unacknowledged data or probes end the connection after this many seconds.
    """
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    wanted = (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", max(1, int(timeout_s))),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", max(1, int(timeout_s / 3))),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", int(timeout_s * 1000)),
    )
    for level, option, value in wanted:
        number = getattr(socket, option, None)  # not every platform has every one
        if number is not None:
            try:
                sock.setsockopt(level, number, value)
            except OSError as error:
                logger.debug("%s is not available: %s", option, error)


def _decoded(command: bytes) -> bytes:
    """The CONNECT command with a percent-encoded user part of the URL decoded, as other clients do."""
    verb, _, body = command.partition(b" ")
    fields = json.loads(body)
    for name in ("user", "pass", "auth_token"):
        if isinstance(fields.get(name), str):
            fields[name] = unquote(fields[name])
    return b"%b %b\r\n" % (verb, json.dumps(fields, sort_keys=True).encode())

"""Making one client into one verified session: choice of the server, nats-py's options, the check of the inbox."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from nats.errors import NoServersError

from jetbridge.errors import BrokerUnreachable
from jetbridge.jetstream.client import Client
from jetbridge.jetstream.denials import Denial, Denials, PermissionDenied, read_denial
from jetbridge.jetstream.options import ConnectionOptions
from jetbridge.jetstream.session import FLUSH_TIMEOUT_S, Session

RETRY_S: Final = 0.2
ROUNDS: Final = 8


class Dialer:
    """
    Dials for one :class:`~jetbridge.jetstream.connection.Connection` and remembers what it learned about the cluster.

    Args:
        denials: Told of every permission violation the server reports.
        note: Told of every other error.
    """

    def __init__(
        self, options: ConnectionOptions, *, denials: Denials, note: Callable[[Exception], None]
    ) -> None:
        self.last_url = ""
        self._options = options
        self._denials = denials
        self._note = note
        self._discovered: tuple[str, ...] = ()

    async def dial(self, client: Client) -> None:
        """
        Connect ``client`` to the first server that takes it.

        Raises:
            NoServersError: No server takes TCP, in several rounds of ``RETRY_S``.
            Exception: Whatever went wrong after TCP.
        """

        async def on_error(error: Exception) -> None:
            self._on_error(error)

        async def on_closed() -> None:
            client.lose(str(client.last_error or "closed by the server"))

        async def on_lame_duck() -> None:
            # The server closes us in a moment anyway. Going now lets us choose another; with one address there is none.
            if len(client.servers) > 1:
                client.lose("the server is shutting down (lame duck)")

        options = self._options
        await client.open(
            servers=await self._servers(),
            name=options.name,
            inbox_prefix=options.inbox_prefix,
            error_cb=on_error,
            closed_cb=on_closed,
            lame_duck_mode_cb=on_lame_duck,
            allow_reconnect=False,
            # With -1 nats-py goes round for ever by itself, and an address that moved would never be looked up again.
            max_reconnect_attempts=ROUNDS,
            reconnect_time_wait=RETRY_S * random.uniform(0.7, 1.2),
            connect_timeout=options.connect_timeout_s,
            ping_interval=options.ping_interval_s,
            max_outstanding_pings=2,
            flush_timeout=FLUSH_TIMEOUT_S,
            drain_timeout=FLUSH_TIMEOUT_S,
            dont_randomize=True,
            tls=options.tls,
            user_credentials=str(options.credentials) if options.credentials else None,
        )
        uri = client.connected_url
        self.last_url = uri.geturl() if uri else ""

    async def verify(self, session: Session) -> None:
        """
        Make sure that answers can reach us before anything is sent.

        With a wrong inbox prefix every message is stored while its sender sees a time-out, and sends it again for ever.

        Raises:
            PermissionDenied: The user may not subscribe to the inbox.
            BrokerUnreachable: The connection was lost, or the server does not answer.
        """
        refused: list[Denial] = []
        take_back = self._denials.listen(refused.append)
        try:
            alive = await session.barrier(self._options.connect_timeout_s)
        finally:
            take_back()
        if any(denial.is_subscription for denial in refused):
            raise PermissionDenied(f"{self._options.inbox_prefix}.>", "subscribe to its reply inbox")
        if not alive:
            raise BrokerUnreachable(session.reason or "The server does not answer a ping.")

    def learn(self, client: Client) -> None:
        """Keep the cluster's other servers for the next attempt."""
        self._discovered = tuple(uri.geturl() for uri in client.discovered_servers)

    async def _servers(self) -> list[str]:
        """Known servers in random order, the one just lost last."""
        options = self._options
        try:
            urls = list(options.find_urls() if options.find_urls else options.urls)
        except BrokerUnreachable as error:
            self._note(error)
            await asyncio.sleep(
                RETRY_S
            )  # a server that is just starting is found as fast as one that refuses TCP
            raise NoServersError from error
        urls += [url for url in self._discovered if url not in urls]
        random.shuffle(urls)
        return sorted(urls, key=lambda url: url == self.last_url)

    def _on_error(self, error: Exception) -> None:
        denial = read_denial(str(error))
        if denial is not None:
            self._denials.tell(denial)
            if denial.is_subscription and self._is_said_elsewhere(denial.subject):
                return
        self._note(error)

    def _is_said_elsewhere(self, subject: str) -> bool:
        """An inbox by verify(), and once: each attempt has one of its own. What may be refused by who asked for it."""
        return subject.startswith(f"{self._options.inbox_prefix}.".lower()) or self._denials.is_expected(
            subject
        )

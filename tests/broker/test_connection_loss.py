"""Every way a connection can be lost, refused or frozen, on real servers where there is one."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterable

import pytest

from jetbridge.jetstream.client import Client
from jetbridge.jetstream.connection import Connection
from testproject.processes import free_port
from tests.broker.lab import connected, freeze, make_stream, options, unique
from tests.waiting import aeventually


@pytest.mark.parametrize("hard", [False, True])
def test_a_restart_gives_a_new_epoch_soon(make_nats_server, hard):
    async def scenario() -> None:
        server = make_nats_server()
        async with connected(server.url) as connection:
            for epoch in (1, 2, 3):
                assert connection.epoch == epoch
                server.restart(hard=hard)
                started = time.monotonic()
                await aeventually(lambda: connection.epoch == epoch + 1 and connection.is_connected)  # noqa: B023
                assert time.monotonic() - started < 1.0

    asyncio.run(scenario())


def test_a_dozen_failed_attempts_are_a_few_log_lines(tmp_path, caplog):
    """nats-py's default logs a traceback for every attempt."""

    async def scenario() -> None:
        connection = Connection(options(f"nats://someone:topsecret@127.0.0.1:{free_port()}"))
        await connection.start()
        await asyncio.sleep(2.5)
        await connection.close()

    with caplog.at_level(logging.DEBUG):
        asyncio.run(scenario())
    lines = [record for record in caplog.records if record.name == "jetbridge.jetstream"]
    assert 1 <= len(lines) <= 3
    assert "topsecret" not in caplog.text
    assert "someone" not in caplog.text


def test_a_cancellation_that_nobody_asked_for_is_one_failed_attempt(make_nats_server, monkeypatch):
    """
    Somebody else's future is cancelled while we wait for it. Red if a CancelledError always ends the supervisor:
    nobody would connect again.
    """

    async def scenario() -> None:
        connection = Connection(options(make_nats_server().url))
        real, strays = connection._dialer.dial, [asyncio.CancelledError()]

        async def dial(client: Client) -> None:
            if strays:
                raise strays.pop()
            await real(client)

        monkeypatch.setattr(connection._dialer, "dial", dial)
        await connection.start()
        assert await connection.ready(10)
        assert connection.is_supervised
        await connection.close()

    asyncio.run(scenario())


def test_a_frozen_server_with_data_queued_is_left_for_another(make_nats_server):
    """nats-py's reconnect waits for the dead socket to drain: 14 s in an experiment, and still there."""
    servers = {server.url: server for server in (make_nats_server(), make_nats_server())}

    async def scenario() -> None:
        async with connected(*servers, ping_interval_s=0.3, tcp_timeout_s=30.0) as connection:
            frozen, healthy = first_and_other(connection, servers)
            freeze(servers[frozen])
            for _ in range(30):
                connection.push(b"PUB x %d\r\n%b\r\n" % (200_000, b"x" * 200_000))
                await asyncio.sleep(0)
            await aeventually(lambda: connection.epoch == 2 and connection.is_connected, timeout_s=5)
            assert connection._dialer.last_url == healthy

    asyncio.run(scenario())


def first_and_other(connection: Connection, urls: Iterable[str]) -> tuple[str, str]:
    """The address it is connected to, and the other one."""
    here = connection._dialer.last_url
    return here, next(url for url in urls if url != here)


def test_lame_duck_moves_to_another_server_and_stays_where_there_is_none(make_nats_server):
    servers = {server.url: server for server in (make_nats_server(), make_nats_server())}
    alone = make_nats_server()

    async def scenario() -> None:
        async with connected(*servers) as connection, connected(alone.url) as single:
            leaving, other = first_and_other(connection, servers)
            os.kill(servers[leaving].pid, signal.SIGUSR2)
            await aeventually(lambda: connection.epoch == 2 and connection.is_connected, timeout_s=3)
            assert connection._dialer.last_url == other
            os.kill(alone.pid, signal.SIGUSR2)
            await aeventually(lambda: "lame duck" in alone.log.lower())
            await asyncio.sleep(0.2)
            assert (single.is_connected, single.epoch) == (True, 1)
        for server in (*servers.values(), alone):
            server.kill()  # a lame duck takes ten seconds to go

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "error",
    [
        "User Authentication Expired",
        "Account Authentication Expired",
        "Slow Consumer",
        "Maximum Connections Exceeded",
        "Authorization Violation",
        "Maximum Payload Violation",
        "Stale Connection",
        "Secure Connection - TLS Required",
    ],
)
def test_errors_that_close_nats_py_for_good_only_cost_a_new_client(nats_server, error):
    """``max_reconnect_attempts=-1`` does not help: nats-py closes itself on these lines, a JWT's expiry among them."""

    async def scenario() -> None:
        async with connected(nats_server.url) as connection:
            old = connection.client
            await old._process_err(f"'{error}'".lower())  # the line as its parser hands it over
            await aeventually(lambda: connection.epoch == 2 and connection.is_connected, timeout_s=3)
            assert connection.client is not old
            s = unique()
            await make_stream(connection, s)

    asyncio.run(scenario())


def test_a_user_that_expires_is_back_when_the_server_takes_it_again(make_nats_server):
    """A real kick: the server drops the user on reload, refuses it, and takes it again."""
    users = "authorization {{ users: [ {{ user: {0}, password: pw }} ] }}"

    async def scenario() -> None:
        server = make_nats_server(users.format("relay"))
        async with connected(server.url.replace("//", "//relay:pw@")) as connection:
            server.reload(users.format("other"))
            await aeventually(lambda: not connection.is_connected)
            await aeventually(lambda: "authorization violation" in connection.last_error.lower(), timeout_s=5)
            assert "pw" not in connection.last_error
            server.reload(users.format("relay"))
            assert await connection.ready(5)
            assert connection.epoch == 2

    asyncio.run(scenario())


def test_a_server_full_of_connections_is_waited_for(make_nats_server):
    async def scenario() -> None:
        server = make_nats_server("max_connections: 1")
        async with connected(server.url):
            second = Connection(options(server.url))
            await second.start()
            await aeventually(lambda: "maximum connections" in second.last_error.lower())
            assert not second.is_connected
        assert await second.ready(5)
        await second.close()

    asyncio.run(scenario())


def test_a_read_loop_that_dies_silently_is_noticed(nats_server):
    """nats-py's read loop ends on an exception it does not know, and the client stays "connected" for ever."""

    async def scenario() -> None:
        async with connected(nats_server.url) as connection:
            task = connection.client._reading_task
            assert task is not None
            task.cancel()
            await aeventually(lambda: connection.epoch == 2 and connection.is_connected, timeout_s=3)

    asyncio.run(scenario())


def test_an_answer_to_a_ping_that_gave_up_does_not_end_the_read_loop(make_nats_server):
    """nats-py sets the result of a cancelled future there, and stops reading."""

    async def scenario() -> None:
        server = make_nats_server()
        async with connected(server.url) as connection:
            session = connection.session
            assert session is not None
            freeze(server)
            assert not await session.barrier(0.2)
            server.sigcont()
            assert await session.barrier(5)
            assert connection.epoch == 1

    asyncio.run(scenario())


def test_a_raising_handler_of_messages_does_not_end_the_read_loop(nats_server, caplog):
    async def scenario() -> None:
        async with connected(nats_server.url) as connection:
            session = connection.session
            assert session is not None

            def bad(*_: bytes) -> None:
                raise RuntimeError("boom")

            session.client.listen("boom", bad)
            connection.send("boom", b"x")
            assert await session.barrier()
            assert connection.epoch == 1

    asyncio.run(scenario())
    assert "boom" in caplog.text

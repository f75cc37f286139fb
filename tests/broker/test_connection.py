"""The supervised connection: every way a server can go away or say no, on real servers where there is one."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import socket
import time
from collections.abc import Iterable

import pytest
from nats.aio.client import Client as NatsClient

from jetbridge.errors import BrokerUnreachable
from jetbridge.jetstream.client import Client
from jetbridge.jetstream.connection import Connection
from testproject.processes import free_port
from tests.broker.lab import connected, make_stream, options, stored, unique
from tests.servers import NatsServer
from tests.waiting import aeventually

# --- coming up -------------------------------------------------------------------------------------


def test_start_returns_at_once_and_ready_says_what_is_true(nats_server):
    async def scenario() -> None:
        connection = Connection(options(nats_server.url))
        assert (connection.is_connected, connection.epoch, connection.server_version) == (False, 0, (0, 0, 0))
        await connection.start()
        assert await connection.ready(5)
        assert (connection.epoch, connection.last_error, connection.denied) == (1, "", "")
        assert connection.server_version >= (2, 10, 0)
        assert connection.max_payload == 1_048_576
        await connection.close()
        assert not await connection.ready(5)
        assert (connection.is_connected, connection.is_closed) == (False, True)
        await connection.close()

    asyncio.run(scenario())


def test_a_server_that_appears_late_is_found_at_once(tmp_path):
    """nats-py's second attempt comes two seconds after the first."""

    async def scenario() -> None:
        server = NatsServer(tmp_path, port=free_port())
        connection = Connection(options(f"nats://127.0.0.1:{server.port}"))
        await connection.start()
        try:
            assert not await connection.ready(0.3)
            assert "refused" in connection.last_error or "Connect call failed" in connection.last_error
            await asyncio.to_thread(server.start)
            started = time.monotonic()
            assert await connection.ready(5)
            assert time.monotonic() - started < 0.6
        finally:
            await connection.close()
            server.stop()

    asyncio.run(scenario())


def test_an_address_that_is_learned_later_is_used(nats_server):
    """The embedded server's port file may come, or change, after this process started."""

    async def scenario() -> None:
        known: list[str] = []

        def find() -> tuple[str, ...]:
            if not known:
                raise BrokerUnreachable(
                    "The embedded nats-server is not running. Start it with: jetbridge_dev"
                )
            return tuple(known)

        connection = Connection(options("", urls=(), find_urls=find))
        await connection.start()
        assert not await connection.ready(0.2)
        assert "jetbridge_dev" in connection.last_error
        known.append(nats_server.url)
        started = time.monotonic()
        assert await connection.ready(5)
        assert time.monotonic() - started < 0.6
        await connection.close()

    asyncio.run(scenario())


def test_the_kernel_watches_the_socket_after_every_connect(make_nats_server):
    """With data queued for a peer that vanished nothing above the kernel notices for minutes."""

    async def scenario() -> None:
        server = make_nats_server()
        async with connected(server.url, tcp_timeout_s=7.0) as connection:
            for _ in range(2):
                sock = connection.client._transport._io_writer.get_extra_info("socket")  # type: ignore[union-attr]
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                if hasattr(socket, "TCP_USER_TIMEOUT"):
                    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7_000
                epoch = connection.epoch
                server.restart()
                await aeventually(lambda: connection.epoch > epoch and connection.is_connected)  # noqa: B023

    asyncio.run(scenario())


# --- going away and coming back --------------------------------------------------------------------


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


def test_an_hour_without_a_server_is_a_few_log_lines(tmp_path, caplog):
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


def test_a_frozen_server_with_data_queued_is_left_for_another(make_nats_server):
    """nats-py's reconnect waits for the dead socket to drain: 14 s in an experiment, and still there."""
    servers = {server.url: server for server in (make_nats_server(), make_nats_server())}

    async def scenario() -> None:
        async with connected(*servers, ping_interval_s=0.3, tcp_timeout_s=30.0) as connection:
            frozen, healthy = first_and_other(connection, servers)
            servers[frozen].sigstop()
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
            server.sigstop()
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


# --- calls -----------------------------------------------------------------------------------------


def test_an_api_call_returns_the_servers_json_also_when_it_is_an_error(nats_server):
    async def scenario() -> None:
        async with connected(nats_server.url) as connection:
            answer = await connection.api("STREAM.INFO.nowhere")
            assert answer["error"]["err_code"] == 10059  # type: ignore[index]

    asyncio.run(scenario())


def test_a_call_without_an_answer_ends_in_its_time_or_with_the_connection(make_nats_server):
    async def scenario() -> None:
        server = make_nats_server()
        async with connected(server.url) as connection:
            with pytest.raises(BrokerUnreachable, match=r"Nobody answers no\.such\.service"):
                await connection.request("no.such.service", timeout_s=5)
            server.sigstop()
            with pytest.raises(BrokerUnreachable, match=r"No answer to \$JS.API.INFO within 0.2 s"):
                await connection.api("INFO", timeout_s=0.2)
            call = asyncio.create_task(connection.api("INFO", timeout_s=30))
            await asyncio.sleep(0)
            server.kill()
            started = time.monotonic()
            with pytest.raises(BrokerUnreachable, match="lost"):
                await call
            with pytest.raises(BrokerUnreachable):
                await connection.api("INFO", timeout_s=0.2)
            assert time.monotonic() - started < 1.0

    asyncio.run(scenario())


def test_an_account_without_jetstream_is_named(make_nats_server):
    async def scenario() -> None:
        server = make_nats_server("# no jetstream here")
        async with connected(server.url) as connection:
            with pytest.raises(BrokerUnreachable, match="JetStream is off"):
                await connection.api("INFO")

    asyncio.run(scenario())


def test_what_was_queued_before_close_arrives(nats_server):
    """An ack queued in the last moment before the stop must not be lost."""

    async def scenario() -> None:
        async with connected(nats_server.url) as watcher:
            s = unique()
            await make_stream(watcher, s)
            for _ in range(5):
                async with connected(nats_server.url) as connection:
                    for n in range(200):
                        assert connection.send(f"{s}.a", str(n).encode(), headers={"A": "b"})
            assert await stored(watcher, s) == 1_000

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["kill", "sigstop"])
def test_close_is_quick_and_silent_whatever_the_server_does(make_nats_server, how):
    """nats-py's close() raises when data is pending and the server is gone."""

    async def scenario() -> None:
        server = make_nats_server()
        async with connected(server.url) as connection:
            for _ in range(5):
                connection.push(b"PUB x %d\r\n%b\r\n" % (500_000, b"x" * 500_000))
            getattr(server, how)()
            started = time.monotonic()
            await connection.close()
            assert time.monotonic() - started < 4

    asyncio.run(scenario())


def test_close_before_the_first_connect(tmp_path):
    async def scenario() -> None:
        connection = Connection(options(f"nats://127.0.0.1:{free_port()}"))
        await connection.start()
        waiting = asyncio.create_task(connection.ready())
        await asyncio.sleep(0.1)
        await connection.close()
        assert await waiting is False
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []

    asyncio.run(scenario())


# --- nats-py ---------------------------------------------------------------------------------------


def test_nats_py_still_has_what_we_build_on():
    """client.py overrides and reads private names; a release that renames one must fail here, not in production."""
    for name in (
        "_process_msg",
        "_process_pong",
        "_process_op_err",
        "_process_err",
        "_connect_to_server",
        "_connect_command",
        "_close",
    ):
        assert callable(getattr(NatsClient, name)), name
    fresh = vars(NatsClient())
    for name in (
        "_flush_queue",
        "_status",
        "_pending",
        "_pending_data_size",
        "_sid",
        "_transport",
        "_pongs",
        "_pongs_received",
        "_pings_outstanding",
        "_reading_task",
        "_flusher_task",
        "_ping_interval_task",
        "_server_info",
        "_current_server",
        "_err",
    ):
        assert name in fresh, name
    assert list(inspect.signature(NatsClient._process_msg).parameters) == list(
        inspect.signature(Client._process_msg).parameters
    )

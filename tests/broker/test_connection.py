"""The supervised connection: every way a server can go away or say no, on real servers where there is one."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import time

import pytest
from nats.aio.client import Client as NatsClient

from jetbridge import conf
from jetbridge.errors import BrokerUnreachable
from jetbridge.jetstream.client import Client
from jetbridge.jetstream.connection import Connection, options_for
from testproject.processes import free_port
from tests.broker.lab import connected, freeze, make_stream, options, stored, unique
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


def test_the_options_of_a_role_come_from_the_settings(tmp_path):
    """With "embedded" nothing is read yet: a relay may start before the server."""
    raw = {"APP_NAME": "orders", "NATS_URLS": "nats://a:1, nats://b:2"}
    plain, _ = conf.read(raw, databases={"default": {}}, base_dir=tmp_path)
    embedded, _ = conf.read({**raw, "NATS_URLS": "embedded"}, databases={"default": {}}, base_dir=tmp_path)
    assert plain is not None
    assert embedded is not None

    relay, worker = options_for(plain, "relay"), options_for(embedded, "worker")

    assert (relay.urls, relay.inbox_prefix) == (("nats://a:1", "nats://b:2"), "_INBOX_orders_relay")
    assert relay.name == f"jetbridge/orders/relay/{socket.gethostname()}/{os.getpid()}"
    assert (worker.urls, worker.inbox_prefix) == ((), "_INBOX_orders_worker")
    assert worker.find_urls is not None
    with pytest.raises(BrokerUnreachable, match="jetbridge_dev"):
        worker.find_urls()


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
            freeze(server)
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
                    for _ in range(60):  # more than the kernel takes at once
                        assert connection.send(f"{s}.a", b"x" * 100_000, headers={"A": "b"})
            # Without a reply the stream takes them from its own queue, a moment after the server read them.
            await aeventually(lambda: _stored_all(watcher, s))

    async def _stored_all(watcher, stream: str) -> bool:
        return await stored(watcher, stream) == 300

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

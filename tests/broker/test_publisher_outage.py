"""The windowed publisher while the server dies, freezes or is away."""

from __future__ import annotations

import asyncio
import time

import pytest

from jetbridge.jetstream.publisher import NotSent, Stored, WindowPublisher
from tests.broker.lab import connected, freeze, kinds, make_stream, message, stored
from tests.waiting import aeventually


def test_kill_in_the_middle_of_a_page_answers_at_once_and_a_repeat_finds_the_stored_ones(make_nats_server):
    """After SIGKILL nothing waits for the deadline; published again, each message is in the stream exactly once."""

    async def scenario() -> None:
        server = make_nats_server()
        async with connected(server.url) as connection:
            await make_stream(connection, "s")
            publisher = WindowPublisher(connection)
            page = [message("s.a", str(n), id=str(n), lane=n % 50) for n in range(20_000)]
            task = asyncio.create_task(publisher.publish(page, deadline_s=60))
            async with connected(server.url) as watcher:
                await aeventually(lambda: _more_than(watcher, 500))
                server.kill()
            killed_at = time.monotonic()
            first = await task
            assert time.monotonic() - killed_at < 2
            assert set(kinds(first)) == {"Stored", "NoAnswer", "NotSent"}

            server.start()
            assert await connection.ready(5)
            second = await publisher.publish(page, deadline_s=30)

            assert set(kinds(second)) == {"Stored"}
            for before, after in zip(first, second, strict=True):
                assert isinstance(after, Stored)
                if isinstance(before, Stored):
                    assert after.duplicate
                    assert after.sequence == before.sequence
                if isinstance(before, NotSent):
                    assert not after.duplicate
            assert await stored(connection, "s") == len(page)

    async def _more_than(watcher, count: int) -> bool:
        return await stored(watcher, "s") > count

    asyncio.run(scenario())


def test_a_frozen_server_costs_the_deadline_and_no_more(make_nats_server):
    """SIGSTOP: what was sent has no answer, what was not is not sent, and the next page goes through after the thaw."""

    async def scenario() -> None:
        server = make_nats_server()
        async with connected(server.url) as connection:
            await make_stream(connection, "s")
            publisher = WindowPublisher(connection, window=10)
            freeze(server)
            started = time.monotonic()
            results = await publisher.publish([message("s.a", str(n)) for n in range(15)], deadline_s=0.5)
            took = time.monotonic() - started
            server.sigcont()

            assert kinds(results) == ["NoAnswer"] * 10 + ["NotSent"] * 5
            assert 0.4 < took < 1.5
            again = await publisher.publish([message("s.a", "after")], deadline_s=5)
            assert kinds(again) == ["Stored"]

    asyncio.run(scenario())


def test_a_frozen_server_with_data_queued_does_not_swallow_a_cancellation(make_nats_server):
    """nats-py's publish() ignores cancel() once its buffer is full."""

    async def scenario() -> None:
        server = make_nats_server()
        async with connected(server.url) as connection:
            await make_stream(connection, "s")
            publisher = WindowPublisher(connection, max_in_flight_bytes=6_000_000)
            freeze(server)
            page = [message("s.a", b"x" * 500_000) for _ in range(40)]
            task = asyncio.create_task(publisher.publish(page, deadline_s=60))
            await aeventually(lambda: _unread(connection) > 1_000_000)
            task.cancel()
            started = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - started < 0.5
            server.sigcont()

    def _unread(connection) -> int:
        """Bytes that this process still holds because the server does not read."""
        return int(connection.client._transport._io_writer.transport.get_write_buffer_size())

    asyncio.run(scenario())


def test_a_late_answer_to_an_older_page_is_not_taken_for_a_newer_one(make_nats_server):
    """The server thaws after the first page gave up: its answers must not settle the second page's messages."""

    async def scenario() -> None:
        server = make_nats_server()
        async with connected(server.url) as connection, connected(server.url) as silent:
            await make_stream(connection, "s")
            silent.client.listen("never.answers", lambda *_: None)
            assert silent.session is not None
            assert await silent.session.barrier()
            publisher = WindowPublisher(connection)
            freeze(server)
            old = await publisher.publish([message("s.a", f"old{n}") for n in range(5)], deadline_s=0.2)
            assert kinds(old) == ["NoAnswer"] * 5
            page = [message("never.answers", f"new{n}") for n in range(5)]
            second = asyncio.create_task(publisher.publish(page, deadline_s=0.7))
            await asyncio.sleep(0)
            server.sigcont()

            assert kinds(await second) == ["NoAnswer"] * 5
            assert await stored(connection, "s") == 5

    asyncio.run(scenario())


def test_without_a_connection_nothing_is_sent_and_nobody_waits(make_nats_server):
    """nats-py buffers such publishes, reports a time-out and sends them at the reconnect all the same."""

    async def scenario() -> None:
        server = make_nats_server()
        async with connected(server.url) as connection:
            await make_stream(connection, "s")
            publisher = WindowPublisher(connection)
            server.kill()
            await aeventually(lambda: not connection.is_connected)
            started = time.monotonic()
            results = await publisher.publish([message("s.a", "ghost")], deadline_s=5)
            assert time.monotonic() - started < 0.2
            assert kinds(results) == ["NotSent"]

            server.start()
            assert await connection.ready(5)
            assert await stored(connection, "s") == 0

    asyncio.run(scenario())

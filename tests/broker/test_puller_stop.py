"""Stopping a pull loop, and asking it whether the queue is empty."""

from __future__ import annotations

import asyncio
import time

import pytest

from jetbridge.jetstream.incoming import Incoming
from tests.broker.lab import Sink, ack_pending, freeze, pulling, put, queue
from tests.waiting import aeventually

# --- stopping --------------------------------------------------------------------------------------


@pytest.mark.parametrize("credit", [20, 500])
def test_a_stop_under_load_leaves_nothing_delivered_that_was_not_handed_over(nats_server, credit):
    """close() and unsubscribe() leave a whole pull (500 of 500) delivered but unacked until ack_wait."""

    async def scenario() -> None:
        async with queue(nats_server, messages=20_000, max_ack_pending=20_000, ack_wait=60_000_000_000) as (
            connection,
            s,
            _,
        ):
            sink = Sink(connection)
            kept: list[Incoming] = []

            def deliver(incoming: Incoming) -> None:
                sink.got.append(incoming)
                if incoming.sequence % 10:
                    connection.send(incoming.reply, b"+ACK")
                else:
                    kept.append(incoming)

            for stop_at in range(1_000, 16_000, 1_500):
                async with pulling(connection, s, deliver, credit=lambda: credit) as puller:
                    await aeventually(lambda: len(sink.got) >= stop_at, interval_s=0)  # noqa: B023
                    assert puller.asked > 0
                    started = time.monotonic()
                    await puller.stop(5)
                    assert time.monotonic() - started < 2
                    count = len(sink.got)
                # The durable reads acks from a queue of its own, a moment after the server has them.
                await aeventually(lambda: _pending_is(connection, s, len(kept)), timeout_s=3)
                assert len(sink.got) == count

    async def _pending_is(connection, stream: str, count: int) -> bool:
        return await ack_pending(connection, stream) == count

    asyncio.run(scenario())


def test_a_stop_on_an_idle_queue_is_quick_and_cancels_the_waiting_pull(nats_server):
    """A message published after the stop must not be delivered into the void."""

    async def scenario() -> None:
        async with queue(nats_server) as (connection, s, publisher):
            sink = Sink(connection)
            async with pulling(connection, s, sink.deliver, credit=sink.credit, expires_s=30) as puller:
                await aeventually(lambda: puller.asked > 0)
                started = time.monotonic()
                await puller.stop(10)
                assert time.monotonic() - started < 1.0
            await put(publisher, s, 5)
            assert await ack_pending(connection, s) == 0
            assert sink.got == []

    asyncio.run(scenario())


def test_a_stop_without_a_server_does_not_wait_for_it(make_nats_server):
    async def scenario() -> None:
        server = make_nats_server()
        async with queue(server) as (connection, s, _), pulling(connection, s, lambda _: None) as puller:
            await aeventually(lambda: puller.asked > 0)
            server.kill()
            started = time.monotonic()
            await puller.stop(5)
            assert time.monotonic() - started < 1.0

    asyncio.run(scenario())


def test_a_stop_with_a_frozen_server_keeps_to_its_time(make_nats_server):
    async def scenario() -> None:
        server = make_nats_server()
        async with (
            queue(server) as (connection, s, _),
            pulling(connection, s, lambda _: None, heartbeat_s=2.0) as puller,
        ):
            await aeventually(lambda: puller.asked > 0)
            freeze(server)
            started = time.monotonic()
            await puller.stop(1.0)
            assert time.monotonic() - started < 2.0
            server.sigcont()

    asyncio.run(scenario())


def test_run_ends_when_the_connection_is_closed(nats_server):
    async def scenario() -> None:
        async with queue(nats_server) as (connection, s, _), pulling(connection, s, lambda _: None) as puller:
            await aeventually(lambda: puller.asked > 0)
            await connection.close()
            await aeventually(lambda: puller.asked == 0)

    asyncio.run(scenario())


# --- probing ---------------------------------------------------------------------------------------


def test_a_probe_tells_an_empty_queue_from_one_with_messages(nats_server):
    async def scenario() -> None:
        async with queue(nats_server) as (connection, s, publisher):
            sink = Sink(connection, auto=True)
            free = 0
            async with pulling(connection, s, sink.deliver, credit=lambda: free) as puller:
                await aeventually(lambda: puller.generation == 1)
                assert await puller.probe_empty() is False, "no credit, no probe"
                free = 100
                puller.wake()
                await aeventually(lambda: puller.asked > 0)
                assert await puller.probe_empty() is True
                assert await puller.probe_empty() is True
                await put(publisher, s, 500)
                await aeventually(lambda: len(sink.got) == 500)
                await aeventually(puller.probe_empty)
                assert puller.asked <= 100

    asyncio.run(scenario())


def test_a_probe_delivers_what_it_finds(nats_server):
    async def scenario() -> None:
        async with queue(nats_server, messages=2) as (connection, s, _):
            sink = Sink(connection, free=0)
            async with pulling(connection, s, sink.deliver, credit=sink.credit) as puller:
                await aeventually(lambda: puller.generation == 1)
                sink.free = 1
                assert await puller.probe_empty() is False
                assert sink.bodies == [b"0"]

    asyncio.run(scenario())


def test_a_probe_without_a_server_is_false(make_nats_server):
    async def scenario() -> None:
        server = make_nats_server()
        async with queue(server) as (connection, s, _), pulling(connection, s, lambda _: None) as puller:
            await aeventually(lambda: puller.asked > 0)
            freeze(server)
            probe = asyncio.create_task(puller.probe_empty())
            await asyncio.sleep(0)
            server.kill()
            started = time.monotonic()
            assert await probe is False
            assert time.monotonic() - started < 1.0
            assert await puller.probe_empty() is False

    asyncio.run(scenario())

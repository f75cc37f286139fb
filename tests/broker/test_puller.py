"""The pull loop against a real nats-server: deliveries, acks, credit, restarts, missing consumers."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from jetbridge.jetstream import acks
from jetbridge.jetstream.incoming import Incoming
from jetbridge.jetstream.publisher import WindowPublisher
from tests.broker.lab import (
    Sink,
    connected,
    freeze,
    make_durable,
    make_stream,
    message,
    pulling,
    put,
    queue,
    stored,
    unique,
)
from tests.waiting import aeventually

# --- deliveries ------------------------------------------------------------------------------------


def test_a_delivery_carries_all_that_the_reply_subject_says(nats_server):
    async def scenario() -> None:
        async with queue(nats_server) as (connection, s, publisher):
            headers = {"nats-msg-id": "e1", "X-Odd": "ü: a, b"}
            page = [message(f"{s}.a", "first", id="e1:b", **headers), message(f"{s}.a", b"")]
            before = time.time_ns()
            await publisher.publish(page, deadline_s=5)
            sink = Sink(connection)
            async with pulling(connection, s, sink.deliver, credit=sink.credit):
                await aeventually(lambda: len(sink.got) == 2)
            one, two = sink.got
            assert one.headers == {"Nats-Msg-Id": "e1:b", **headers}
            assert (one.subject, one.body, one.stream, one.consumer) == (f"{s}.a", b"first", s, "w")
            assert (one.sequence, one.consumer_sequence, one.delivered, one.pending) == (1, 1, 1, 1)
            assert before <= one.stored_ns <= time.time_ns()
            assert (two.headers, two.body, two.sequence, two.pending) == ({}, b"", 2, 0)

    asyncio.run(scenario())


def test_a_message_whose_headers_pretend_to_be_a_status_is_a_message(nats_server):
    """A foreign producer may store ``NATS/1.0 503``: taken for a status it would stall the durable for good."""

    async def scenario() -> None:
        async with queue(nats_server) as (connection, s, _):
            block = b"NATS/1.0 503 No Responders\r\nX: y\r\n\r\n"
            connection.push(b"HPUB %b.a %d %d\r\n%b\r\n" % (s.encode(), len(block), len(block), block))
            sink = Sink(connection, auto=True)
            async with pulling(connection, s, sink.deliver, credit=sink.credit) as puller:
                await aeventually(lambda: len(sink.got) == 1)
                # This server drops the status on storing; one that does not would deliver just that block.
                puller._on_message(b"q.a", b"$JS.ACK.q.w.1.2.2.1700000000000000000.0", b"raw", block)
                assert not puller.missing
            assert sink.bodies == [b"", b"raw"]
            assert [incoming.headers["X"] for incoming in sink.got] == ["y", "y"]

    asyncio.run(scenario())


def test_a_handler_that_raises_does_not_stop_the_loop(nats_server):
    async def scenario() -> None:
        async with queue(nats_server, messages=3) as (connection, s, _):
            sink = Sink(connection, auto=True)
            raised: list[bytes] = []

            def deliver(incoming: Incoming) -> None:
                if incoming.body == b"1" and not raised:
                    raised.append(incoming.body)
                    raise RuntimeError("no room")
                sink.deliver(incoming)

            async with pulling(connection, s, deliver, credit=sink.credit):
                await aeventually(lambda: sink.bodies == [b"0", b"2", b"1"])
            assert sink.got[-1].delivered == 2

    asyncio.run(scenario())


def test_the_second_reply_format_works_end_to_end(make_nats_server):
    """Servers can be switched to the longer ack subject; a client that knows one format acks nothing."""

    async def scenario() -> None:
        server = make_nats_server("feature_flags { js_ack_fc_v2: true }")
        async with queue(server, messages=5) as (connection, s, _):
            sink = Sink(connection, auto=True)
            async with pulling(connection, s, sink.deliver, credit=sink.credit):
                await aeventually(lambda: len(sink.got) == 5)
                assert len(sink.got[0].reply.split(".")) > 9
                assert (sink.got[0].stream, sink.got[0].sequence) == (s, 1)
                await aeventually(lambda: _left(connection, s, 0))

    asyncio.run(scenario())


async def _left(connection, stream: str, count: int) -> bool:
    return await stored(connection, stream) == count


# --- acks ------------------------------------------------------------------------------------------


def test_ack_nak_term_and_in_progress_do_what_they_say(nats_server):
    async def scenario() -> None:
        async with queue(nats_server, messages=4, ack_wait=700_000_000) as (connection, s, _):
            sink = Sink(connection)
            async with pulling(connection, s, sink.deliver, credit=sink.credit):
                await aeventually(lambda: len(sink.got) == 4)
                done, again, gone, held = sink.got
                started = time.monotonic()
                assert await acks.ack(connection, done.reply)
                assert await acks.nak(connection, again.reply, 0.3)
                assert await acks.term(connection, gone.reply, "no\r\nuse — really")
                await aeventually(lambda: len(sink.got) == 5 or None, interval_s=0.01)
                took = time.monotonic() - started
                assert 0.25 < took < 0.65
                assert (sink.got[4].sequence, sink.got[4].delivered) == (again.sequence, 2)
                await acks.ack(connection, sink.got[4].reply)
                while time.monotonic() < started + 1.5:
                    assert await acks.in_progress(connection, held.reply)
                    await asyncio.sleep(0.1)
                assert len(sink.got) == 5, "in_progress did not hold the message"
                assert await stored(connection, s) == 1
            assert await acks.ack(connection, "not a reply") is False

    asyncio.run(scenario())


def test_an_ack_without_a_connection_says_so_and_does_not_raise(make_nats_server):
    async def scenario() -> None:
        server = make_nats_server()
        async with connected(server.url) as connection:
            server.kill()
            await aeventually(lambda: not connection.is_connected)
            reply = "$JS.ACK.S.w.1.1.1.1.1"
            assert not await acks.ack(connection, reply)
            assert not await acks.nak(connection, reply, 1.0)
            assert not await acks.term(connection, reply, "x")
            assert not await acks.in_progress(connection, reply)

    asyncio.run(scenario())


# --- credit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "max_batch"), [(1, 256), (7, 3), (100, 16)])
def test_it_never_holds_more_than_its_credit(nats_server, free, max_batch):
    """Asked for plus handed over never exceeds the slots, while slots come and go."""

    async def scenario() -> None:
        async with queue(nats_server, messages=600) as (connection, s, _):
            held: list[Incoming] = []
            done = 0
            most = 0

            def deliver(incoming: Incoming) -> None:
                nonlocal most
                held.append(incoming)
                most = max(most, len(held))

            async with pulling(
                connection, s, deliver, credit=lambda: free - len(held), max_batch=max_batch
            ) as puller:

                async def work() -> bool:
                    nonlocal done
                    assert puller.asked + len(held) <= free
                    for _ in range(min(len(held), 3)):
                        await acks.ack(connection, held.pop(0).reply)
                        done += 1
                        puller.wake()
                        assert puller.asked + len(held) <= free
                    return done == 600

                await aeventually(work, interval_s=0.0005, timeout_s=30)
            assert 0 < most <= free

    asyncio.run(scenario())


def test_without_credit_nothing_is_asked_and_wake_starts_it(nats_server):
    """No lease, full, or a barrier: credit 0 means not a single pull, and no time lost afterwards."""

    async def scenario() -> None:
        async with queue(nats_server, messages=5) as (connection, s, _):
            sink = Sink(connection, free=0)
            async with pulling(connection, s, sink.deliver, credit=sink.credit, heartbeat_s=0.2) as puller:
                await aeventually(lambda: puller.generation == 1)
                await asyncio.sleep(0.8)  # longer than two heartbeats: silence that nobody promised to break
                assert (puller.asked, sink.got, puller.generation) == (0, [], 1)
                sink.free = 5
                puller.wake()
                await aeventually(lambda: len(sink.got) == 5, timeout_s=0.5)

    asyncio.run(scenario())


# --- trouble ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [False, True])
def test_a_restart_of_the_server_is_not_slept_through(make_nats_server, hard):
    """nats-py's fetch() waits for the answer to a pull that died with the server: 12 s in an experiment."""

    async def scenario() -> None:
        server = make_nats_server()
        async with queue(server) as (connection, s, publisher):
            sink = Sink(connection, auto=True)
            async with pulling(
                connection, s, sink.deliver, credit=sink.credit, expires_s=30, heartbeat_s=10
            ) as puller:
                await aeventually(lambda: puller.asked > 0)
                server.kill() if hard else server.stop()
                await aeventually(lambda: not connection.is_connected)
                server.start()
                back = time.monotonic()
                assert await connection.ready(5)
                await put(publisher, s, 1)
                await aeventually(lambda: sink.bodies == [b"0"])
                assert time.monotonic() - back < 1.0
                assert puller.generation == 2

    asyncio.run(scenario())


def test_a_frozen_durable_is_noticed_by_its_heartbeats(make_nats_server):
    """Two heartbeats missed: a new inbox and a new pull, though the connection looks healthy."""

    async def scenario() -> None:
        server = make_nats_server()
        async with queue(server) as (connection, s, publisher):
            sink = Sink(connection, auto=True)
            async with pulling(connection, s, sink.deliver, credit=sink.credit, heartbeat_s=0.2) as puller:
                await aeventually(lambda: puller.asked > 0)
                freeze(server)
                await aeventually(lambda: puller.generation >= 2, timeout_s=3)
                assert connection.is_connected
                server.sigcont()
                await put(publisher, s, 3)
                await aeventually(lambda: sink.bodies == [b"0", b"1", b"2"])

    asyncio.run(scenario())


def test_a_blocked_loop_is_not_taken_for_a_silent_server(nats_server):
    """Whoever blocks the loop for two heartbeats must not cost the inbox with what is already on its way."""

    async def scenario() -> None:
        async with queue(nats_server) as (connection, s, publisher):
            sink = Sink(connection, auto=True)
            async with pulling(connection, s, sink.deliver, credit=sink.credit, heartbeat_s=0.2) as puller:
                await aeventually(lambda: puller.asked > 0)
                threading.Event().wait(1.0)  # the accident itself: somebody blocks the loop
                await asyncio.sleep(0.1)
                assert puller.generation == 1
                await put(publisher, s, 1)
                await aeventually(lambda: sink.bodies == [b"0"])

    asyncio.run(scenario())


def test_a_deleted_consumer_is_reported_and_works_again_when_it_is_back(nats_server):
    """nats-py's fetch() shows a deleted consumer as "no messages"."""

    async def scenario() -> None:
        async with queue(nats_server) as (connection, s, publisher):
            sink = Sink(connection, auto=True)
            async with pulling(connection, s, sink.deliver, credit=sink.credit, heartbeat_s=0.3) as puller:
                await aeventually(lambda: puller.asked > 0)
                assert not puller.missing
                await connection.api(f"CONSUMER.DELETE.{s}.w")
                await aeventually(lambda: puller.missing, timeout_s=2)
                assert "no such consumer" in puller.trouble
                await put(publisher, s, 2)
                await make_durable(connection, s)
                await aeventually(lambda: sink.bodies == [b"0", b"1"], timeout_s=3)
                assert (puller.missing, puller.trouble) == (False, "")

    asyncio.run(scenario())


def test_a_consumer_that_was_never_there_is_waited_for(nats_server):
    async def scenario() -> None:
        async with connected(nats_server.url) as connection:
            s = unique("q")
            sink = Sink(connection, auto=True)
            async with pulling(connection, s, sink.deliver, credit=sink.credit, heartbeat_s=0.3) as puller:
                await aeventually(lambda: puller.missing, timeout_s=2)
                await make_stream(connection, s)
                await make_durable(connection, s)
                await aeventually(lambda: not puller.missing, timeout_s=4)
                await put(WindowPublisher(connection), s, 1)
                await aeventually(lambda: sink.bodies == [b"0"])

    asyncio.run(scenario())


def test_a_pull_larger_than_the_durable_allows_is_made_smaller(nats_server):
    """409 Exceeded MaxRequestBatch: an operator's limit must not stop the consumer for good."""

    async def scenario() -> None:
        async with queue(nats_server, messages=30, max_batch=10) as (connection, s, _):
            sink = Sink(connection, auto=True)
            async with pulling(connection, s, sink.deliver, credit=sink.credit) as puller:
                await aeventually(lambda: len(sink.got) == 30, timeout_s=5)
                await aeventually(lambda: puller.trouble == "")

    asyncio.run(scenario())


def test_more_waiting_pulls_than_the_durable_allows_does_not_starve(nats_server):
    """409 Exceeded MaxWaiting, while another process holds the only place."""

    async def scenario() -> None:
        async with queue(nats_server, max_waiting=1) as (connection, s, publisher):
            first, second = Sink(connection, auto=True), Sink(connection, auto=True)
            async with pulling(connection, s, first.deliver, credit=first.credit, expires_s=1.0) as holder:
                await aeventually(lambda: holder.asked > 0)
                async with pulling(connection, s, second.deliver, credit=second.credit, expires_s=1.0):
                    await asyncio.sleep(0.5)
                    await holder.stop(1)
                    await put(publisher, s, 50)
                    await aeventually(lambda: len(second.got) == 50)

    asyncio.run(scenario())


def test_a_denied_pull_is_trouble_and_not_silence(make_nats_server):
    permissions = (
        "authorization { users: [ { user: admin, password: pw }, { user: w, password: pw, permissions: "
        '{ publish: ["nothing"], subscribe: ["_INBOX_t_relay.>"] } } ] }'
    )

    async def scenario() -> None:
        server = make_nats_server(permissions)
        async with (
            connected(server.url.replace("//", "//w:pw@")) as connection,
            pulling(connection, "S", lambda _: None) as puller,
        ):
            await aeventually(lambda: "$JS.API.CONSUMER.MSG.NEXT.S.w" in puller.trouble, timeout_s=2)
            assert not puller.missing
            assert connection.is_connected

    asyncio.run(scenario())

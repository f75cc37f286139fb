"""The windowed publisher against a real nats-server: results, order per lane, what is refused before it is sent."""

from __future__ import annotations

import asyncio
import time

import pytest

from jetbridge.jetstream.publisher import NoAnswer, Refused, Stored, WindowPublisher
from tests.broker.lab import bodies, connected, kinds, make_stream, message, stored, unique


def test_every_message_gets_the_result_at_its_place(nats_server):
    """Stored with the stream's sequence, duplicate for a repeated id, refused for a subject of no stream."""

    async def scenario() -> None:
        async with connected(nats_server.url) as connection:
            s = unique()
            await make_stream(connection, s)
            publisher = WindowPublisher(connection)
            page = [
                message(f"{s}.a", "1", id="1"),
                message("nobody.listens", "2"),
                message(f"{s}.a", "1", id="1"),
                message(f"{s}.b", "3"),
            ]
            results = await publisher.publish(page, deadline_s=5)

            assert results == [
                Stored(s, 1, False),
                Refused(503, 0, "no responders"),
                Stored(s, 1, True),
                Stored(s, 2, False),
            ]
            assert await publisher.publish([], deadline_s=5) == []

    asyncio.run(scenario())


def test_headers_arrive_in_their_case_and_order(nats_server):
    async def scenario() -> None:
        async with connected(nats_server.url) as connection:
            s = unique()
            await make_stream(connection, s)
            headers = {"Nats-Msg-Id": "e:b", "nats-msg-id": "e", "Jetbridge-Key": "a%3Ab"}
            page = [message(f"{s}.a", "body", id="", **headers)]
            assert kinds(await WindowPublisher(connection).publish(page, deadline_s=5)) == ["Stored"]
            answer = await connection.api(f"STREAM.MSG.GET.{s}", {"seq": 1})

            import base64

            block = base64.b64decode(answer["message"]["hdrs"])  # type: ignore[index]
            assert block == b"NATS/1.0\r\nNats-Msg-Id: e:b\r\nnats-msg-id: e\r\nJetbridge-Key: a%3Ab\r\n\r\n"

    asyncio.run(scenario())


@pytest.mark.parametrize("window", [1, 2, 512])
def test_a_refused_message_holds_back_its_lane_and_no_other(nats_server, window):
    """Number 3 of a key must not be stored while number 2 was refused; other keys and no key go on."""

    async def scenario() -> None:
        async with connected(nats_server.url) as connection:
            s = unique()
            await make_stream(connection, s, max_msg_size=100)
            page = [
                message(f"{s}.a", "a1", lane="a"),
                message(f"{s}.a", b"x" * 200, lane="a"),
                message(f"{s}.a", "a3", lane="a"),
                message(f"{s}.a", "b1", lane="b"),
                message(f"{s}.a", "a4", lane="a"),
                message(f"{s}.a", "free"),
                message(f"{s}.a", "b2", lane="b"),
            ]
            results = await WindowPublisher(connection, window=window).publish(page, deadline_s=5)

            assert kinds(results) == ["Stored", "Refused", "NotSent", "Stored", "NotSent", "Stored", "Stored"]
            assert isinstance(results[1], Refused)
            assert results[1].err_code == 10054
            assert set(await bodies(connection, s)) == {b"a1", b"b1", b"b2", b"free"}

    asyncio.run(scenario())


def test_a_subject_at_its_cap_is_told_from_a_full_stream(nats_server):
    async def scenario() -> None:
        async with connected(nats_server.url) as connection:
            s = unique()
            await make_stream(connection, s, max_msgs_per_subject=2, discard_new_per_subject=True)
            page = [message(f"{s}.full", str(n), lane="k") for n in range(4)] + [message(f"{s}.other", "y")]
            results = await WindowPublisher(connection).publish(page, deadline_s=5)

            assert kinds(results) == ["Stored", "Stored", "Refused", "NotSent", "Stored"]
            assert isinstance(results[2], Refused)
            assert results[2].err_code == 10077
            assert "per subject" in results[2].description

    asyncio.run(scenario())


@pytest.mark.parametrize("window", [1, 7, 512])
def test_lanes_keep_their_order_whatever_the_window(nats_server, window):
    """2,000 messages on 13 lanes: the stream holds each lane in the order given."""

    async def scenario() -> None:
        async with connected(nats_server.url) as connection:
            s = unique()
            await make_stream(connection, s)
            count = 2_000 if window > 1 else 200
            page = [message(f"{s}.a", f"{n % 13}:{n}", lane=n % 13) for n in range(count)]
            results = await WindowPublisher(connection, window=window).publish(page, deadline_s=20)
            assert all(isinstance(result, Stored) for result in results)

            sequences: dict[int, list[int]] = {}
            for n, result in enumerate(results):
                assert isinstance(result, Stored)
                sequences.setdefault(n % 13, []).append(result.sequence)
            assert all(found == sorted(found) for found in sequences.values())
            assert await stored(connection, s) == count

    asyncio.run(scenario())


def test_a_page_larger_than_the_byte_window_goes_through(nats_server):
    """Back-pressure by bytes: 40 MB in messages of 400 kB with one megabyte in flight."""

    async def scenario() -> None:
        async with connected(nats_server.url) as connection:
            s = unique()
            await make_stream(connection, s)
            page = [message(f"{s}.a", b"x" * 400_000) for _ in range(100)]
            publisher = WindowPublisher(connection, max_in_flight_bytes=1_000_000)
            task = asyncio.create_task(publisher.publish(page, deadline_s=30))
            most = 0
            while not task.done():
                most = max(most, connection.client.pending_data_size)
                await asyncio.sleep(0)
            assert all(isinstance(result, Stored) for result in await task)
            assert 0 < most <= 1_300_000

    asyncio.run(scenario())


def test_headers_that_push_a_message_over_max_payload_do_not_cost_the_connection(make_nats_server):
    """nats-py checks the body alone; the server then closes the connection, again for each retry of that one row."""

    async def scenario() -> None:
        server = make_nats_server("max_payload: 4096")
        async with connected(server.url) as connection:
            await make_stream(connection, "s")
            limit = connection.max_payload
            epoch = connection.epoch
            page = [
                message("s.a", b"x" * (limit - 20), id="i" * 40),
                message("s.a", "fits", id="1"),
                message("s.a", b"x" * (limit - len(b"NATS/1.0\r\n\r\n"))),
            ]
            results = await WindowPublisher(connection).publish(page, deadline_s=5)

            assert kinds(results) == ["Refused", "Stored", "Stored"]
            assert results[0] == Refused(
                400, 10054, "message of 4143 bytes with its headers exceeds the server's max_payload of 4096"
            )
            assert (connection.is_connected, connection.epoch) == (True, epoch)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("subject", "headers"),
    [
        ("a..b", {}),
        ("W.*", {}),
        ("a b", {}),
        ("s.a\r\nPUB s.a 1\r\nx", {}),
        ("", {}),
        ("s.a", {"X": "one\r\nNats-Rollup: all"}),
        ("s.a", {"X": "one\ntwo"}),
        ("s.a", {"Na me": "v"}),
        ("s.a", {"Na:me": "v"}),
        ("s.a", {"": "v"}),
        ("s.a", {"X": "\ud800"}),
    ],
)
def test_what_cannot_go_on_the_wire_is_refused_here(nats_server, subject, headers):
    """A line break would inject a protocol command; the server would store ``W.*`` under just that name."""

    async def scenario() -> None:
        async with connected(nats_server.url) as connection:
            s = unique()
            await make_stream(connection, s)
            page = [message(subject, "bad", **headers), message(f"{s}.a", "good")]
            results = await WindowPublisher(connection).publish(page, deadline_s=5)

            assert kinds(results) == ["Refused", "Stored"]
            assert isinstance(results[0], Refused)
            assert results[0].code == 400
            assert await bodies(connection, s) == [b"good"]

    asyncio.run(scenario())


PERMISSIONS = """
authorization { users: [
  { user: admin, password: pw }
  { user: relay, password: pw, permissions: { publish: ["s.allowed", "$JS.API.>"], subscribe: ["_INBOX_t_relay.>"] } }
] }
"""


def test_a_denied_subject_is_refused_at_once_and_the_others_flow(make_nats_server):
    """The server tells the connection, not the caller: without listening there it is a time-out for the whole page."""

    async def scenario() -> None:
        server = make_nats_server(PERMISSIONS)
        url = server.url.replace("//", "//relay:pw@")
        async with connected(url) as connection:
            await make_stream(connection, "s")
            page = [message("s.allowed", "1"), message("s.Denied", "2", lane="k")]
            page += [message("s.Denied", "3", lane="k"), message("s.allowed", "4"), message("s.Denied", "5")]
            started = time.monotonic()
            results = await WindowPublisher(connection).publish(page, deadline_s=10)

            assert time.monotonic() - started < 2
            assert kinds(results) == ["Stored", "Refused", "NotSent", "Stored", "Refused"]
            assert results[1] == Refused(
                403, 0, "permissions violation: this NATS user may not publish to 's.Denied'"
            )

    asyncio.run(scenario())


def test_an_answer_that_says_nothing_is_no_answer(nats_server):
    """Another service may answer on the subject: empty or foreign text is no proof that a stream has the message."""

    async def scenario() -> None:
        async with connected(nats_server.url) as connection, connected(nats_server.url) as other:
            subject = unique("svc")
            session = other.session
            assert session is not None
            answers = iter([b"", b"thanks", b"{}", b'{"stream":"x","seq":0}', b"[1]"])

            def respond(_subject: bytes, reply: bytes, _body: bytes, _headers: bytes) -> None:
                other.send(reply.decode(), next(answers))

            session.client.listen(subject, respond)
            assert await session.barrier()
            results = await WindowPublisher(connection).publish([message(subject)] * 5, deadline_s=5)
            assert kinds(results) == ["NoAnswer"] * 5
            assert all(isinstance(result, NoAnswer) and "answer" in result.reason for result in results)

    asyncio.run(scenario())


def test_calls_at_the_same_time_take_turns(nats_server):
    async def scenario() -> None:
        async with connected(nats_server.url) as connection:
            s = unique()
            await make_stream(connection, s)
            publisher = WindowPublisher(connection)
            pages = [[message(f"{s}.a", f"{p}:{n}") for n in range(300)] for p in range(4)]
            done = await asyncio.gather(*(publisher.publish(page, deadline_s=10) for page in pages))
            assert all(isinstance(result, Stored) for results in done for result in results)
            await publisher.close()
            assert kinds(await publisher.publish(pages[0][:1], deadline_s=1)) == ["NotSent"]

    asyncio.run(scenario())


def test_speed_is_printed_and_not_asserted(nats_server, capsys):
    """For the record: the ratio to one request after the other in the same run."""

    async def scenario() -> tuple[float, float]:
        async with connected(nats_server.url) as connection:
            s = unique()
            await make_stream(connection, s)
            body = b"x" * 300
            started = time.perf_counter()
            for _ in range(500):
                await connection.request(f"{s}.a", body)
            sequential = 500 / (time.perf_counter() - started)
            page = [
                message(f"{s}.a", body, id=f"{n}:b", lane=n % 500, **{"nats-msg-id": str(n)})
                for n in range(5_000)
            ]
            started = time.perf_counter()
            results = await WindowPublisher(connection).publish(page, deadline_s=30)
            window = len(page) / (time.perf_counter() - started)
            assert all(isinstance(result, Stored) for result in results)
            return sequential, window

    sequential, window = asyncio.run(scenario())
    with capsys.disabled():
        print(f"\nwindow {window:,.0f}/s, sequential {sequential:,.0f}/s, ratio {window / sequential:.1f}")

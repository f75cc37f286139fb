"""The kind of a failed publish, by table, and by what a real server answers."""

from __future__ import annotations

import asyncio

import pytest

from jetbridge.jetstream.classify import Fault, classify
from jetbridge.jetstream.publisher import NoAnswer, NotSent, Refused, Stored, WindowPublisher
from jetbridge.jetstream.results import read_ack
from tests.broker.lab import connected, make_stream, message, unique


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        (NoAnswer("lost"), Fault.OUTAGE),
        (NotSent("not connected"), Fault.OUTAGE),
        (Refused(503, 10077, "maximum messages exceeded"), Fault.OUTAGE),
        (Refused(503, 10077, "maximum bytes exceeded"), Fault.OUTAGE),
        (Refused(503, 10077, "maximum messages per subject exceeded"), Fault.SUBJECT),
        (Refused(400, 10077, "Maximum Messages Per Subject exceeded"), Fault.SUBJECT),
        (Refused(503, 0, "no responders"), Fault.SUBJECT),
        (Refused(403, 0, "permissions violation"), Fault.SUBJECT),
        (Refused(404, 10059, "stream not found"), Fault.SUBJECT),
        (Refused(400, 10109, "invalid operation on sealed stream"), Fault.SUBJECT),
        (Refused(503, 10008, "JetStream system temporarily unavailable"), Fault.OUTAGE),
        (Refused(400, 10002, "resource limits exceeded for account"), Fault.OUTAGE),
        (Refused(500, 10047, "insufficient storage resources available"), Fault.OUTAGE),
        (Refused(409, 10158, "duplicate message id is in process"), Fault.OUTAGE),
        (Refused(400, 10054, "message size exceeds maximum allowed"), Fault.MESSAGE),
        (Refused(400, 10071, "wrong last sequence: 1"), Fault.MESSAGE),
        (Refused(500, 10111, "rollup not permitted"), Fault.MESSAGE),
        (Refused(400, 0, "subject is not ..."), Fault.MESSAGE),
        (Refused(418, 99999, "something new"), Fault.OUTAGE),
    ],
)
def test_each_result_has_its_kind(result, fault):
    """An unknown number must not condemn good rows; only JetStream's 400 is the message's own fault."""
    assert classify(result) is fault


def test_a_stored_message_has_no_fault():
    with pytest.raises(ValueError, match="no fault"):
        classify(Stored("s", 1, False))


@pytest.mark.parametrize(
    ("body", "headers", "result"),
    [
        (b'{"stream":"S","seq":7}', b"", Stored("S", 7, False)),
        (b'{"stream":"S","seq":7,"duplicate":true}', b"", Stored("S", 7, True)),
        (b'{"stream":"S","seq":7,"duplicate": true}', b"", Stored("S", 7, True)),
        (b'{"stream":"S","domain":"hub","seq":7}', b"", Stored("S", 7, False)),
        (b'{"type":"x","stream":"S","seq":7,"batch":"b","count":3}', b"", Stored("S", 7, False)),
        (
            b'{"error":{"code":503,"err_code":10077,"description":"full"},"stream":"S","seq":0}',
            b"",
            Refused(503, 10077, "full"),
        ),
        (b'{"error":{"code":500}}', b"", Refused(500, 0, "")),
        (b"", b"NATS/1.0 503\r\n\r\n", Refused(503, 0, "no responders")),
    ],
)
def test_an_answer_of_the_stream_is_read(body, headers, result):
    assert read_ack(body, headers) == result


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ok",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b'"x"',
        b"\xff\xfe",
        b'{"stream":"S","seq":0}',
        b'{"seq":4}',
        b'{"stream":"S","seq":"x"}',
        b'{"error":null}',
        b'{"error":{"err_code":1}}',
    ],
)
def test_any_other_answer_is_no_answer(body):
    """Counting such an answer as stored would lose the message."""
    assert isinstance(read_ack(body, b""), NoAnswer)


def test_the_numbers_of_a_real_server(nats_server):
    """One number (10077) stands for a full stream and for a full subject: the text decides."""

    async def scenario() -> None:
        async with connected(nats_server.url) as connection:
            full, capped, plain = unique("full"), unique("capped"), unique("plain")
            await make_stream(connection, full, max_msgs=1)
            await make_stream(connection, capped, max_msgs_per_subject=1, discard_new_per_subject=True)
            await make_stream(connection, plain, max_msg_size=100)
            page = [
                message(f"{full}.a"),
                message(f"{full}.b"),
                message(f"{capped}.a"),
                message(f"{capped}.a"),
                message(f"{plain}.a", b"x" * 200),
                message("nobody.at.all"),
                message(f"{plain}.a", **{"Nats-Rollup": "all"}),
                message(f"{plain}.a", **{"Nats-Expected-Last-Sequence": "77"}),
            ]
            results = await WindowPublisher(connection, window=1).publish(page, deadline_s=5)
            found = [None if isinstance(result, Stored) else classify(result) for result in results]
            assert found == [
                None,
                Fault.OUTAGE,
                None,
                Fault.SUBJECT,
                Fault.MESSAGE,
                Fault.SUBJECT,
                Fault.MESSAGE,
                Fault.MESSAGE,
            ]

    asyncio.run(scenario())

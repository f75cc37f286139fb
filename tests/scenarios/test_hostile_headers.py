"""Whatever stands in the headers, event, dead letter and notice go their way; nothing of it is obeyed."""

from __future__ import annotations

import uuid

import pytest

import jetbridge
from tests.worlds import World, body, dead_letters, outbox


@pytest.fixture
def watched(handlers: None) -> list[jetbridge.Delivery]:
    """What the handler of everything is given."""
    seen: list[jetbridge.Delivery] = []

    @jetbridge.handler(">", name="t.watch")
    def watch(event: jetbridge.Delivery) -> None:
        seen.append(event)

    return seen


@pytest.fixture
def world(transactional_db: None, nats_server, handlers: None) -> World:
    """A world in which the outcome of a message never waits."""
    return World(nats_server.url, MAX_ATTEMPTS=1).provision()


HEADER_BLOCKS: dict[str, bytes] = {
    "no header at all": b"NATS/1.0\r\n\r\n",
    "a status": b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    "a status without text": b"NATS/1.0 404\r\n\r\n",
    "bytes that are no UTF-8": b"NATS/1.0\r\nX-A: \xff\xfe\r\n\r\n",
    "NUL": b"NATS/1.0\r\nX-A: a\x00b\r\n\r\n",
    "a name that is no ASCII": "NATS/1.0\r\nX-ä: 1\r\n\r\n".encode(),
    "a name with blanks": b"NATS/1.0\r\nX A B: 1\r\n\r\n",
    "a lone line feed": b"NATS/1.0\r\nX-A: a\nX-B: b\r\n\r\n",
    "a lone carriage return": b"NATS/1.0\r\nX-A: a\rb\r\n\r\n",
    "no colon": b"NATS/1.0\r\nnonsense\r\n\r\n",
    "no name": b"NATS/1.0\r\n: value\r\n\r\n",
    "a name of 10,000 characters": b"NATS/1.0\r\n" + b"x" * 10_000 + b": 1\r\n\r\n",
    "a value of 10,000 characters": b"NATS/1.0\r\nX-A: " + b"x" * 10_000 + b"\r\n\r\n",
    "a thousand headers": b"NATS/1.0\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(1000)) + b"\r\n",
    "the same name twice": b"NATS/1.0\r\nX-A: 1\r\nX-A: 2\r\n\r\n",
    "control characters": b"NATS/1.0\r\nX-A: \x01\x1b[31m\x7f\r\n\r\n",
}


def test_odd_headers_reach_the_handler_or_a_dead_letter_whose_notice_is_sent(world, handlers):
    """No header of a foreign message keeps its event, its dead letter or its notice from going on."""
    seen: list[str] = []

    @jetbridge.handler(">", name="t.watch")
    def watch(event: jetbridge.Delivery) -> None:
        seen.append(str(event.event_id))
        raise jetbridge.Reject("no")

    world.send_raw(*[(block, body(str(number))) for number, block in enumerate(HEADER_BLOCKS.values())])
    world.consume()
    report = world.relay_of_billing()

    assert sorted(seen, key=int) == [str(number) for number in range(len(HEADER_BLOCKS))]
    assert len(dead_letters(reason="rejected")) == len(HEADER_BLOCKS)
    assert [(row.event_id, row.error) for row in outbox()] == []
    assert (report.totals.published, report.totals.refused) == (len(HEADER_BLOCKS), 0)


def test_a_status_line_in_a_stored_message_is_not_taken_for_the_servers(world, watched):
    """A message that looks like a 404 or 409 of a pull is a message: it has a reply subject of its own."""
    codes = (b"100", b"404 No Messages", b"408 Request Timeout", b"409 Consumer Deleted", b"503")
    world.send_raw(*[(b"NATS/1.0 " + code + b"\r\n\r\n", body(uuid.uuid4().hex)) for code in codes])
    world.consume()

    assert len(watched) == 5


def test_batch_headers_are_not_copied_to_the_notice(world, handlers):
    """A copy with ``Nats-Batch-*`` would be taken for a member of a batch and swallowed by the stream."""

    @jetbridge.handler(">", name="t.reject")
    def reject(event: jetbridge.Delivery) -> None:
        raise jetbridge.Reject("no")

    subject = f"{world.shop}.sync.{world.billing}"

    async def atomic_batch(client):
        for number in (1, 2):
            headers = {"Nats-Batch-Id": "b1", "Nats-Batch-Sequence": str(number), "X-Own": "kept"}
            if number == 2:
                headers["Nats-Batch-Commit"] = "1"
            answer = await client.request(subject, body(str(number)), headers=headers, timeout=5)
        assert b'"count":2' in answer.data.replace(b" ", b""), answer.data

    world.nats(atomic_batch)
    assert "Nats-Batch-Id" in world.stored()[0].headers  # the stored message does keep them
    world.consume()
    report = world.relay_of_billing()

    notices = world.stored(world.billing, f"{world.billing}.sync.dlq")
    assert (report.totals.published, len(notices)) == (2, 2)
    for notice in notices:
        assert not [name for name in notice.headers if name.lower().startswith("nats-batch")]
        assert notice.headers["X-Own"] == "kept"


def test_headers_of_nats_in_any_case_are_stripped_from_the_notice(world, handlers):
    """Also ``nats-expected-last-sequence``, ``NATS-ROLLUP`` and ``nats-msg-id``."""

    @jetbridge.handler(">", name="t.reject")
    def reject(event: jetbridge.Delivery) -> None:
        raise jetbridge.Reject("no")

    block = (
        b"NATS/1.0\r\nnats-batch-id: b\r\nNATS-BATCH-SEQUENCE: 2\r\nnats-expected-last-sequence: 99\r\n"
        b"NATS-ROLLUP: all\r\nnats-ttl: 1s\r\nnats-msg-id: x\r\nNats-Schedule-Target: y\r\nX-Own: kept\r\n\r\n"
    )
    world.send_raw((block, body("1")))
    world.consume()
    world.relay_of_billing()

    (notice,) = world.stored(world.billing)
    assert [name for name in notice.headers if name.lower().startswith("nats-")] == [
        "Nats-Msg-Id",
        "Nats-TTL",
    ]
    assert notice.headers["X-Own"] == "kept"


def test_forged_dead_letter_headers_do_not_survive_beside_the_real_ones(world, handlers):
    """A reader without case must find one ``x-dlq-reason``, and it must be ours."""

    @jetbridge.handler(">", name="t.reject")
    def reject(event: jetbridge.Delivery) -> None:
        raise jetbridge.Reject("no")

    world.send((body("1"), {"X-DLQ-Reason": "forged", "X-Dead-Letter": "false", "X-Deliveries": "99"}))
    world.consume()
    world.relay_of_billing()

    (notice,) = world.stored(world.billing)
    lowered = [(name.lower(), value) for name, value in notice.header_list]
    assert [value for name, value in lowered if name == "x-dlq-reason"] == ["rejected"]
    assert [value for name, value in lowered if name == "x-dead-letter"] == ["true"]
    assert [value for name, value in lowered if name == "x-deliveries"] == ["1"]

"""Durables that somebody else made: what they give up, and what somebody terminates, is saved or told."""

from __future__ import annotations

import json
import logging

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

import jetbridge
from jetbridge.models import DeadLetter, Deferred, Lease, Worker
from jetbridge.models.clock import WallClock
from testproject.billing.models import Invoice
from tests.running import api, consuming
from tests.waiting import eventually
from tests.worlds import World, body, dead_letters, inbox

HALF_S = 500_000_000


def place(world: World) -> tuple[str, str]:
    return f"jetbridge-{world.shop}", f"{world.billing}-workers"


def change_durable(world: World, **config: object) -> None:
    stream, name = place(world)
    found = api(world, f"CONSUMER.INFO.{stream}.{name}")["config"]
    api(world, f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": {**found, **config}})


def pull(world: World, times: int = 1, *, answer: bytes = b"") -> list[Msg]:
    """Take the next message so often, and die each time; or answer it."""
    stream, name = place(world)

    async def main(client: Client) -> list[Msg]:
        inbox = await client.subscribe(client.new_inbox())
        got = []
        for _ in range(times):
            request = json.dumps({"batch": 1, "expires": 10_000_000_000}).encode()
            await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", request, reply=inbox.subject)
            got.append(await inbox.next_msg(timeout=10))
            if answer:
                await client.publish(got[-1].reply, answer)
        await client.flush()
        return got

    return world.nats(main)


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process tells of itself is in its row soon."""
    monkeypatch.setattr("jetbridge.leases.heartbeat.EVERY_S", 0.2)


def handle_all() -> list[str]:
    ran: list[str] = []

    @jetbridge.handler("order.placed", name="t.given_up")
    def handle(event: jetbridge.Event) -> None:
        ran.append(str(event.event_id))
        Invoice.objects.create(order_id=1, event_id=str(event.event_id), total=0)

    return ran


def info() -> dict[str, object]:
    worker = Worker.objects.filter(role="consumer").order_by("-beat_at").first()
    return dict(worker.info) if worker is not None else {}


@pytest.mark.parametrize("standby", [False, True])
def test_a_message_whose_deliveries_are_used_up_is_saved(world, caplog, standby):
    """
    Two processes died with it, and the server gives it up: it runs from the deferred table, under the name it has
    in the stream, and with an unknown one beside it. A standby hears the advisory, too, and acts when the lease is its
    own. Red without Stranded: the messages stay in the stream for good, and nobody says so.
    """
    ran = handle_all()
    change_durable(world, max_deliver=2, ack_wait=HALF_S)
    world.send(body(None), body("u", "order.unknown"))
    tokens = [message.reply.split(".") for message in pull(world, times=4)]
    if standby:
        Lease.objects.create(
            name=f"consume/{place(world)[0]}", owner="other", epoch=1, expires_at=WallClock(60)
        )
    with consuming(world), caplog.at_level(logging.INFO, "jetbridge"):
        if standby:
            eventually(lambda: "Connected to" in caplog.text)
            stream, name = place(world)
            request = json.dumps({"batch": 1, "no_wait": True}).encode()
            asked = eventually(lambda: world.nats(lambda c: _ask(c, stream, name, request)))
            assert asked
            assert ran == []
            Lease.objects.update(owner="", expires_at=WallClock())
        eventually(lambda: ran and dead_letters(), 20)
        eventually(lambda: Deferred.objects.count() == 0)
        eventually(lambda: info().get("given_up_saved") == 2, 15)

    assert ran == [f"{place(world)[0]}:1:{tokens[0][7]}"]
    assert [row.event_id for row in inbox(handler="t.given_up")] == ran
    assert [(letter.event_id, letter.reason) for letter in dead_letters()] == [("u", "unknown_event")]
    assert f"nats stream rmm {place(world)[0]} 1" in caplog.text
    assert caplog.text.count("has given up message 1 ") == 1
    assert "its max_deliver is 2 instead of -1" in caplog.text
    assert len(world.stored()) == 2, "the copies are an operator's to remove"


async def _ask(client: Client, stream: str, name: str, request: bytes) -> bool:
    """Look for a message, at which the server notices that it has given up one."""
    answer = await client.request(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", request, timeout=5)
    return bool(answer.headers and answer.headers.get("Status") == "404")


def test_a_message_that_somebody_terminates_is_told(world, caplog):
    """Terminated, it is gone from a work queue. Red without the second advisory: an event vanishes in silence."""
    ran = handle_all()
    world.send(body("t1"))
    with consuming(world), caplog.at_level(logging.INFO, "jetbridge"):
        eventually(lambda: ran == ["t1"])
        Lease.objects.update(owner="other", expires_at=WallClock(60))
        eventually(lambda: "is lost; its messages are another's now" in caplog.text)
        world.send(body("t2"))
        pull(world, answer=b"+TERM not wanted")
        Lease.objects.update(owner="", expires_at=WallClock())
        eventually(lambda: "Somebody terminated message 2" in caplog.text)
        eventually(lambda: info().get("given_up_lost") == 1, 15)
    assert "not wanted" in caplog.text
    assert (ran, DeadLetter.objects.count()) == (["t1"], 0)


def test_a_terminated_message_with_an_outcome_is_no_alarm(world, caplog):
    """The ack of a handled message got lost, and somebody terminated the second copy."""
    ran = handle_all()
    world.send(body("t1"))
    stream, name = place(world)
    with consuming(world), caplog.at_level(logging.INFO, "jetbridge"):
        eventually(lambda: ran == ["t1"])
        for sequence in (1, 99):
            say(world, stream, name, sequence)
        eventually(lambda: "Somebody terminated message 99" in caplog.text)
    assert "Somebody terminated message 1 " not in caplog.text


def say(world: World, stream: str, name: str, sequence: int) -> None:
    """The server's own words, in its place."""
    advisory = {"stream": stream, "consumer": name, "stream_seq": sequence, "deliveries": 1}

    async def main(client: Client) -> None:
        subject = f"$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{stream}.{name}"
        await client.publish(subject, json.dumps(advisory).encode())
        await client.flush()

    world.nats(main)


def test_one_that_cannot_be_read_stops_none_behind_it(transactional_db, handlers, nats_server, caplog):
    """
    Its stream was deleted, and no other will say for sure what became of it. Red if all wait until it can be read:
    advisories come once, and at the next restart what waits is forgotten.
    """
    world = World(nats_server.url, sources=["depot"]).provision()
    gone = f"jetbridge-{world.others['depot']}"

    async def tell(client: Client) -> None:
        for stream in (gone, f"jetbridge-{world.shop}"):
            durable = f"{world.billing}-workers"
            said = {"stream": stream, "consumer": durable, "stream_seq": 1, "deliveries": 2}
            subject = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.{durable}"
            await client.publish(subject, json.dumps(said).encode())
        await client.flush()

    with consuming(world), caplog.at_level(logging.INFO, "jetbridge"):
        eventually(lambda: caplog.text.count("Pulling ") == 2)
        api(world, f"STREAM.DELETE.{gone}")
        world.nats(tell)
        eventually(lambda: f"has given up message 1 of stream jetbridge-{world.shop} " in caplog.text)

"""The two lasting commands as scripts see them: exit codes and the last line of a one-shot run."""

from __future__ import annotations

import json

import pytest

import jetbridge
from jetbridge.models import Scheduled
from testproject.processes import free_port
from tests.worlds import World, body

OK = """\
import jetbridge


@jetbridge.handler(">", name="t.ok", max_attempts=1)
def handle(event: jetbridge.Event) -> None:
    if event.payload.get("fails"):
        raise ValueError("as asked")
"""
ONE_SHOT = ("--until-empty", "--timeout", "15")


def test_a_one_shot_relay_ends_with_0_and_says_what_it_did(world, processes):
    with world.as_shop():
        for n in range(3):
            jetbridge.publish("order.placed", {"n": n})
        jetbridge.publish("order.placed", {"n": 3}, delay=3600)

    relay = processes.relay(world, *ONE_SHOT)

    assert relay.wait() == 0, relay.log
    expected = {"published": 3, "duplicates": 0, "refused": 0, "parked": 0, "dead": 0, "left": 0}
    assert {key: relay.last_line[key] for key in expected} == expected
    assert relay.last_line["schema"] == 1
    assert Scheduled.objects.count() == 1


def test_a_one_shot_relay_ends_with_3_when_something_was_parked(
    transactional_db, handlers, nats_server, processes
):
    world = World(nats_server.url, publisher={"MAX_MESSAGES_PER_SUBJECT": 1}).provision()
    with world.as_shop():
        jetbridge.publish("order.placed", {"n": 1})
        jetbridge.publish("order.placed", {"n": 2})

    relay = processes.relay(world, *ONE_SHOT)

    assert relay.wait() == 3, relay.log
    assert (relay.last_line["published"], relay.last_line["parked"], relay.last_line["left"]) == (1, 1, 1)


def test_a_one_shot_relay_ends_with_6_when_the_time_is_up(transactional_db, handlers, nats_server, processes):
    """The stream is missing: nothing can go, and nothing is touched."""
    world = World(nats_server.url)
    with world.as_shop():
        jetbridge.publish("order.placed", {"n": 1})

    relay = processes.relay(world, "--until-empty", "--timeout", "1", "--format", "json")

    assert relay.wait() == 6, relay.log
    assert (relay.last_line["published"], relay.last_line["left"]) == (0, 1)


@pytest.mark.parametrize("command", ["jetbridge_relay", "jetbridge_consume"])
def test_a_one_shot_run_without_a_broker_ends_with_4(transactional_db, handlers, processes, command):
    world = World(f"nats://127.0.0.1:{free_port()}")
    keys = world.publisher if command == "jetbridge_relay" else world.consumer

    process = processes.start(command, "--until-empty", "--timeout", "1", "--format", "json", keys=keys)

    assert process.wait() == 4, process.log
    assert process.last_line["error"]["code"] == 4


def test_a_one_shot_run_without_a_database_ends_with_4(world, processes):
    """Named as the database, so that nobody looks at the broker."""
    missing = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "x",
            "USER": "x",
            "HOST": "127.0.0.1",
            "PORT": str(free_port()),
        }
    }

    process = processes.start("jetbridge_relay", *ONE_SHOT, keys=world.publisher, databases=missing)

    assert process.wait() == 4, process.log
    assert "Database 'default' cannot be reached" in process.log


def test_a_one_shot_consumer_ends_with_0_and_3(world, processes):
    """0 when all is handled, 3 when something died meanwhile; the last line counts them."""
    world.send(body("1"), body("2"), body("2"))
    first = processes.consumer(world, OK, *ONE_SHOT)
    assert first.wait() == 0, first.log
    expected = {"handled": 2, "duplicates": 1, "dead": 0, "refused": 0, "parked": 0, "left": 0}
    assert {key: first.last_line[key] for key in expected} == expected

    world.send(body("3"), body("4", payload={"fails": True}))
    second = processes.consumer(world, OK, *ONE_SHOT, "--format", "json")
    assert second.wait() == 3, second.log
    assert (second.last_line["handled"], second.last_line["dead"]) == (1, 1)
    assert json.loads((second._out).read_text())["schema"] == 1


def test_a_one_shot_consumer_waits_for_retries_and_for_what_a_dead_one_held(world, processes):
    """
    Neither a retry in memory nor a delivery that a killed process never settled is "empty". Red if only pulls
    are asked: the server shows them nothing until ack_wait is over.
    """
    from tests.running import api

    world.send(body("1"))
    world.nats(lambda client: _take_without_ack(client, world))
    assert api(world, f"CONSUMER.INFO.jetbridge-{world.shop}.{world.billing}-workers")["num_ack_pending"] == 1

    retrying = OK.replace('event.payload.get("fails")', "event.attempt == 1").replace(
        "max_attempts=1", "backoff=1"
    )
    consumer = processes.consumer(world, retrying, *ONE_SHOT)

    assert consumer.wait() == 0, consumer.log
    assert consumer.last_line["handled"] == 1


async def _take_without_ack(client, world: World) -> None:
    inbox = await client.subscribe(client.new_inbox())
    subject = f"$JS.API.CONSUMER.MSG.NEXT.jetbridge-{world.shop}.{world.billing}-workers"
    await client.publish(subject, b"1", reply=inbox.subject)
    await inbox.next_msg(5)


def test_a_one_shot_consumer_ends_with_6_when_the_time_is_up(
    transactional_db, handlers, nats_server, processes
):
    """The durable is missing."""
    process = processes.consumer(World(nats_server.url), OK, "--until-empty", "--timeout", "1")

    assert process.wait() == 6, process.log
    assert "does not exist in the stream" in process.log


@pytest.mark.parametrize(
    ("command", "arguments", "code", "words"),
    [
        ("jetbridge_relay", ["--database", "nowhere"], 2, "--database 'nowhere' is not one of"),
        (
            "jetbridge_relay",
            ["--until-empty", "--timeout", "soon"],
            2,
            "a positive number of seconds is expected",
        ),
    ],
)
def test_usage_faults_end_with_2(transactional_db, handlers, processes, command, arguments, code, words):
    process = processes.start(command, *arguments, keys=World("nats://127.0.0.1:1").publisher)

    assert process.wait() == code, process.log
    assert words in process.log


def test_faults_of_the_settings_end_with_2_and_all_are_named(transactional_db, handlers, processes):
    process = processes.start("jetbridge_consume", keys={"APP_NAME": "a.b", "LEASE_S": "long"})

    assert process.wait() == 2
    assert 'JETBRIDGE["APP_NAME"]' in process.log
    assert 'JETBRIDGE["LEASE_S"]' in process.log


def test_a_broken_handlers_module_ends_a_consumer(world, processes):
    """It must know all its handlers before the first event, or events would die as unknown."""
    process = processes.consumer(world, "import jetbridge\nimport nowhere_to_be_found\n")

    assert process.wait() != 0
    assert "nowhere_to_be_found" in process.log

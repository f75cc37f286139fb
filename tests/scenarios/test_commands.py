"""The two lasting commands as scripts see them: exit codes and the last line of a one-shot run."""

from __future__ import annotations

import json
from typing import Any

import pytest

import jetbridge
from jetbridge.models import Lease, Scheduled
from testproject.processes import free_port
from tests.running import Process, consuming
from tests.waiting import eventually
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
    address = f"nats://user:secret@127.0.0.1:{free_port()}"
    world = World(address)
    keys = world.publisher if command == "jetbridge_relay" else world.consumer

    process = processes.start(command, "--until-empty", "--timeout", "1", "--format", "json", keys=keys)

    assert process.wait() == 4, process.log
    assert process.last_line["error"]["code"] == 4
    text = process.last_line["error"]["text"]
    assert text.startswith(f"NATS cannot be reached: {address.replace('user:secret', '***')}: ")
    assert text.endswith('. Start it, or set JETBRIDGE["NATS_URLS"].')
    assert "secret" not in process.log


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
    """The durable is missing, which the end of the log says."""
    world = World(nats_server.url)
    process = processes.consumer(world, OK, "--until-empty", "--timeout", "1")

    assert process.wait() == 6, process.log
    durable = f"{world.billing}-workers does not exist in the stream jetbridge-{world.shop}"
    assert f"Timed out. The durable {durable}. Run: manage.py jetbridge_provision" in process.log


def test_a_one_shot_consumer_says_who_holds_what_it_waits_for(world, processes):
    """Red if it ends with 6 and no word: nobody would think of the consumer on the other machine."""
    with consuming(world):
        [lease] = eventually(lambda: list(Lease.objects.exclude(owner="")), 10, what="a lease to be held")
        process = processes.consumer(world, OK, "--until-empty", "--timeout", "2")

        assert process.wait() == 6, process.log
    assert f"Timed out. The lease {lease.name} is held by {lease.owner}" in process.log
    assert process.last_line["handled"] == 0


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
        ("jetbridge_relay", ["--timeout", "5"], 2, "--timeout 5 needs --until-empty"),
        ("jetbridge_consume", ["--timeout", "5"], 2, "--timeout 5 needs --until-empty"),
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


def only_document(process: Process) -> dict[str, Any]:
    """Fails unless stdout is one JSON document and nothing else."""
    document: dict[str, Any] = json.loads(process._out.read_text())
    assert document["schema"] == 1
    return document


@pytest.mark.parametrize(
    "arguments",
    [["--no-such-option"], ["--timeout", "soon"], ["--timeout", "5"], ["--database", "nowhere"]],
)
def test_usage_faults_are_documents_too(transactional_db, handlers, processes, arguments):
    """Red if argparse prints its own words: whoever reads JSON from stdout finds nothing there."""
    keys = World("nats://127.0.0.1:1").publisher

    process = processes.start("jetbridge_relay", *arguments, "--format", "json", keys=keys)

    assert process.wait() == 2, process.log
    error = only_document(process)["error"]
    assert error["code"] == 2
    assert arguments[0] in error["text"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import jetbridge\nimport nowhere_to_be_found\n", [", line 2", "nowhere_to_be_found"]),
        ("import jetbridge\n\n\ndef (:\n", [", line 4", "SyntaxError"]),
        ("import nowhere_to_be_found\n", [", line 1", "nowhere_to_be_found"]),
        ('import jetbridge\njetbridge.handler("a", no=1)\n', [", line 2", "TypeError"]),
    ],
)
def test_a_broken_handlers_module_ends_a_consumer(world, processes, source, words):
    """It must know all its handlers before the first event, or events would die as unknown."""
    process = processes.consumer(world, source, "--format", "json")

    assert process.wait() == 1, process.log
    error = only_document(process)["error"]
    assert error["code"] == 1
    assert error["text"].startswith("Handlers cannot be imported: ")
    assert all(word in error["text"] for word in words), error["text"]
    assert "Traceback" in process.log

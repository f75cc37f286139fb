"""
Relay and consumer with the credentials that ``--print-permissions`` describes, and nothing more.

The server traces every protocol line; from that we know what the two processes asked of it.
"""

from __future__ import annotations

import asyncio
import json
import re

import nats
import pytest

import jetbridge
from jetbridge.conf import Settings
from jetbridge.jetstream.permissions import ROLES, render
from jetbridge.models import Archive
from testproject.billing.models import Invoice
from tests.running import Processes
from tests.servers import NatsServer
from tests.waiting import eventually
from tests.worlds import World

SENT = re.compile(r"cid:(\d+) .*<<- \[H?PUB (\S+) ")
CONNECTED = re.compile(r'cid:(\d+) .*<<- \[CONNECT .*"user":\s*"([^"]+)"')
HANDLER = """\
import jetbridge
from testproject.billing.models import Invoice


@jetbridge.handler("order.placed", name="t.invoice", max_attempts=1)
def handle(event: jetbridge.Event) -> None:
    if event.payload.get("fails"):
        raise ValueError
    Invoice.objects.create(order_id=event.payload["id"], event_id=event.event_id, total=0)
"""


def users_of(settings: Settings) -> str:
    """The users of an app, with the role as password."""
    return "\n".join(
        re.sub(r"password: \$\S+", f"password: secret-{role}", render(settings, role)) for role in ROLES
    )


@pytest.fixture
def server(make_nats_server) -> NatsServer:
    started: NatsServer = make_nats_server()
    return started


@pytest.fixture
def locked(transactional_db: None, handlers: None, server: NatsServer) -> World:
    """A world on a server that knows the users of its two apps and nobody else."""
    world = World(server.url)
    with world.as_shop() as settings:
        users = users_of(settings)
    with world.as_billing() as settings:
        users += users_of(settings)
    # A restart, since a reload cannot bring accounts with JetStream into being.
    server.extra = (
        f'trace: true\njetstream {{ store_dir: "@STORE@" }}\n'
        f"accounts {{ BRIDGE {{ jetstream: enabled, users: [\n{users}\n"
        "{ user: all, password: secret-all }\n] } }"
    )
    server.restart()
    for keys, role in ((world.publisher, "admin"), (world.consumer, "admin")):
        keys["NATS_URLS"] = [address(server, keys["APP_NAME"], role)]
    return world


def address(server: NatsServer, app: str, role: str) -> str:
    return server.url.replace("//", f"//{app}_{role}:secret-{role}@")


def asked(server: NatsServer, user: str) -> set[str]:
    """Every subject a user has published to."""
    users = dict(CONNECTED.findall(server.log))
    return {subject for cid, subject in SENT.findall(server.log) if users.get(cid) == user}


def test_relay_and_consumer_work_with_the_least_rights(
    locked: World, server: NatsServer, processes: Processes
):
    """
    An event goes all the way, a failing one becomes a dead letter and its notice is relayed; of the JetStream
    API the two lasting processes use CONSUMER.MSG.NEXT and CONSUMER.INFO of the own durable alone.
    """
    world = locked.provision()
    place = f"jetbridge-{world.shop}.{world.billing}-workers"
    with world.as_shop():
        jetbridge.publish("order.placed", {"id": 1})
        jetbridge.publish("order.placed", {"id": 2, "fails": True})
    relay = processes.relay(world, NATS_URLS=[address(server, world.shop, "relay")])
    eventually(lambda: Archive.objects.count() == 2, 20)
    assert relay.terminate() == 0  # both services share a database here, and the notice is not the shop's
    consumer = processes.consumer(world, HANDLER, NATS_URLS=[address(server, world.billing, "worker")])
    eventually(lambda: Invoice.objects.count() == 1, 20)
    eventually(lambda: len([s for s in asked(server, f"{world.billing}_worker") if "JS.ACK" in s]) >= 2, 10)
    eventually(lambda: any("CONSUMER.INFO" in s for s in asked(server, f"{world.billing}_worker")), 10)
    assert consumer.terminate() == 0

    of_relay = asked(server, f"{world.shop}_relay")
    of_worker = asked(server, f"{world.billing}_worker")
    assert {s for s in of_relay if not s.startswith("_INBOX_")} == {f"{world.shop}.sync.{world.billing}"}
    api = {s for s in of_worker if s.startswith("$JS.API")}
    assert api == {f"$JS.API.CONSUMER.MSG.NEXT.{place}", f"$JS.API.CONSUMER.INFO.{place}"}
    assert all(s.startswith((f"$JS.ACK.{place}.", "_INBOX_")) for s in of_worker - api)
    assert "violation" not in server.log.lower()

    answers = processes.start(
        "jetbridge_relay",
        "--until-empty",
        "--timeout",
        "15",
        keys={**world.consumer, "NATS_URLS": [address(server, world.billing, "relay")]},
    )
    assert answers.wait() == 0, answers.log
    assert answers.last_line["published"] == 1
    assert asked(server, f"{world.billing}_relay") >= {f"{world.billing}.sync.dlq"}


def test_one_shot_runs_work_with_the_same_rights(locked: World, server: NatsServer, processes: Processes):
    """They ask one thing more, INFO of the own durable, which the role has."""
    world = locked.provision()
    with world.as_shop():
        jetbridge.publish("order.placed", {"id": 1})
    one_shot = ("--until-empty", "--timeout", "15")

    relay = processes.relay(world, *one_shot, NATS_URLS=[address(server, world.shop, "relay")])
    assert relay.wait() == 0, relay.log
    consumer = processes.consumer(
        world, HANDLER, *one_shot, NATS_URLS=[address(server, world.billing, "worker")]
    )
    assert consumer.wait() == 0, consumer.log

    assert Invoice.objects.count() == 1
    api = {s.split(".")[3] for s in asked(server, f"{world.billing}_worker") if s.startswith("$JS.API")}
    assert api == {"MSG", "INFO"}
    assert "violation" not in server.log.lower()


def test_a_user_without_the_advisories_works_and_is_told_once(
    locked: World, server: NatsServer, processes: Processes
):
    """
    The list of an earlier version lacks them. The consumer says what it cannot hear, once, also after a reconnect,
    and does its work. Red if a refused subscription counts as trouble with the connection.
    """
    world = locked.provision()
    lines = [line for line in server.extra.splitlines() if "$JS.EVENT" not in line]
    server.extra = "\n".join(lines)
    server.restart()
    with world.as_shop():
        jetbridge.publish("order.placed", {"id": 1})
    one_shot = ("--until-empty", "--timeout", "15")
    relay = processes.relay(world, *one_shot, NATS_URLS=[address(server, world.shop, "relay")])
    assert relay.wait() == 0, relay.log

    consumer = processes.consumer(world, HANDLER, NATS_URLS=[address(server, world.billing, "worker")])
    eventually(lambda: Invoice.objects.count() == 1, 20)
    refused = server.log.lower().count("subscription violation")
    server.restart()
    eventually(lambda: server.log.lower().count("subscription violation") == 2 * refused, 20)
    assert consumer.terminate() == 0

    assert refused == 2
    assert consumer.log.count("may not listen to the advisories of its durables") == 1
    assert "violation" not in consumer.log.lower()


def test_a_message_that_may_not_be_read_is_told_with_the_remedy(
    locked: World, server: NatsServer, processes: Processes
):
    """The printed list leaves STREAM.MSG.GET out. One error, no loop; and with it the message is saved."""
    world = locked.provision()
    stream, name = f"jetbridge-{world.shop}", f"{world.billing}-workers"
    keys = {"NATS_URLS": [address(server, world.billing, "worker")]}
    consumer = processes.consumer(world, HANDLER, **keys).says("Pulling")
    advisory = {"stream": stream, "consumer": name, "stream_seq": 1, "deliveries": 3}

    as_the_server_says(server, f"MAX_DELIVERIES.{stream}.{name}", json.dumps(advisory).encode())

    consumer.says(f"has given up message 1 of stream {stream} after 3 deliveries. It stays in the stream.")
    consumer.says(f"Allow $JS.API.STREAM.MSG.GET.{stream} to save such messages")
    assert consumer.terminate() == 0
    assert consumer.log.count("has given up message 1 ") == 1


def as_the_server_says(server: NatsServer, what: str, body: bytes) -> None:
    """A bystander whom the account allows anything publishes an advisory."""

    async def main() -> None:
        client = await nats.connect(server.url.replace("//", "//all:secret-all@"))
        await client.publish(f"$JS.EVENT.ADVISORY.CONSUMER.{what}", body)
        await client.flush()
        await client.close()

    asyncio.run(main())


def test_the_wrong_users_are_named_in_the_log(locked: World, server: NatsServer, processes: Processes):
    """A consumer with the relay's credentials says what is missing instead of waiting in silence."""
    world = locked.provision()

    consumer = processes.consumer(world, HANDLER, NATS_URLS=[address(server, world.billing, "relay")])

    consumer.says("Cannot work with these NATS permissions")
    consumer.kill()

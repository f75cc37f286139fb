"""
The users that ``jetbridge_provision --print-permissions`` describes can do their work and nothing else.

The server traces every protocol line; from that we know what was really asked of it, and by whom.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from jetbridge.conf import Settings
from jetbridge.jetstream.connection import Connection, options_for
from jetbridge.jetstream.denials import PermissionDenied
from jetbridge.jetstream.embedded import EmbeddedServer, find_binary
from jetbridge.jetstream.permissions import ROLES, Role, permissions, render
from jetbridge.jetstream.provision import provision
from jetbridge.jetstream.provision_report import ProvisionReport
from jetbridge.jetstream.subjects import covered
from tests.broker.provisioning import actions, binaries, connected, settings_of
from tests.waiting import eventually

SENT = re.compile(r"cid:(\d+) .*<<- \[H?PUB (\S+) ")
CONNECTED = re.compile(r'cid:(\d+) .*<<- \[CONNECT .*"user":\s*"([^"]+)"')
ORDERS = {"DESTINATIONS": {"billing": {"partitions": 2}, "mail-room": {}}, "SOURCES": ["billing"]}
BILLING = {"DESTINATIONS": ["orders"], "SOURCES": {"orders": {"partitions": 2}}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A server that knows six users and nobody else."""

    server: EmbeddedServer

    def settings(self, app: str, role: str) -> Settings:
        keys = ORDERS if app == "orders" else BILLING
        return settings_of(
            app, self.server.url.replace("//", f"//{app}_{role}:{password(app, role)}@"), **keys
        )

    def provision(self, app: str) -> ProvisionReport:
        settings = self.settings(app, "admin")
        return connected(settings, lambda one: provision(one, settings))

    def sent(self) -> list[tuple[str, str]]:
        """(user, subject) of everything that clients published."""
        log = self.server.log_path.read_text(errors="replace")
        users = dict(CONNECTED.findall(log))
        return [(users[cid], subject) for cid, subject in SENT.findall(log)]


def password(app: str, role: str) -> str:
    return f"secret-of-{app}-{role}"


def users_of(app: str, keys: Mapping[str, object]) -> list[str]:
    settings = settings_of(app, "nats://127.0.0.1:4222", **keys)
    return [render(settings, role) for role in ROLES]


# Servers from 2.14 on can be told to send acknowledgement subjects with domain and account in front.
SERVERS = [pytest.param((one, ""), id=one.name) for one in binaries()]
SERVERS.append(pytest.param((find_binary(), "feature_flags { js_ack_fc_v2: true }"), id="ack-v2"))


@pytest.fixture(params=SERVERS)
def broker(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Broker]:
    for app in ("orders", "billing"):
        for role in ROLES:
            monkeypatch.setenv(f"{app}_{role}_PASSWORD".upper(), password(app, role))
    users = "\n".join([*users_of("orders", ORDERS), *users_of("billing", BILLING)])
    binary, flags = request.param
    extra = f"trace: true\n{flags}\naccounts {{ BRIDGE {{ jetstream: enabled, users: [\n{users}\n] }} }}"
    with EmbeddedServer(tmp_path, conf_extra=extra, binary=binary) as server:
        yield Broker(server=server)


async def pull(client: Client, stream: str, durable: str) -> Msg:
    """The next message of a durable, by the pull protocol alone."""
    inbox = await client.subscribe(client.new_inbox())
    await client.publish(
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}",
        json.dumps({"batch": 1, "expires": 5_000_000_000}).encode(),
        reply=inbox.subject,
    )
    return await inbox.next_msg(timeout=6)


def test_each_role_can_do_its_work_and_asks_for_nothing_else(broker: Broker) -> None:
    """Provision both sides, publish as the relay, pull and ack as the worker; then read the trace."""
    assert [actions(broker.provision(app)) for app in ("orders", "billing", "orders")] == [
        ["created", "missing"],
        ["created", "created", "created"],
        ["unchanged", "created"],
    ]
    relay, worker = broker.settings("orders", "relay"), broker.settings("billing", "worker")

    async def publish(connection: Connection) -> list[dict[str, object]]:
        subjects = ("orders.sync.billing.1", "orders.sync.mail-room", "orders.sync.dlq")
        return [json.loads(await connection.request(subject, b"{}")) for subject in subjects]

    async def consume() -> None:
        client = await nats.connect(*worker.nats_urls, inbox_prefix=worker.inbox_prefix_for("worker"))
        message = await pull(client, "jetbridge-orders", "billing-workers-1")
        assert message.subject == "orders.sync.billing.1"
        await message.ack()
        await client.flush()
        await client.close()

    acks = connected(relay, publish, "relay")
    asyncio.run(consume())

    assert [ack["stream"] for ack in acks] == ["jetbridge-orders"] * 3
    place = "jetbridge-orders.billing-workers-1"
    info = connected(worker, lambda one: one.api(f"CONSUMER.INFO.{place}"), "worker")
    assert (info["num_ack_pending"], info["num_pending"]) == (0, 0)
    stream = connected(relay, lambda one: one.api("STREAM.INFO.jetbridge-orders"), "relay")
    assert isinstance(stream["state"], dict)
    assert stream["state"]["messages"] == 2

    sent = eventually(
        lambda: [one for one in broker.sent() if one[1].startswith("$JS.ACK")] and broker.sent()
    )
    allowed = {
        f"{app}_{role}": permissions(broker.settings(app, role), role).publish
        for app in ("orders", "billing")
        for role in ROLES
    }
    assert {user for user, _ in sent} == {"orders_admin", "billing_admin", "orders_relay", "billing_worker"}
    strays = [(user, what) for user, what in sent if not any(covered(what, by) for by in allowed[user])]
    assert strays == []
    changing = {
        what for user, what in sent if "admin" not in user and re.search(r"CREATE|UPDATE|DELETE", what)
    }
    assert changing == set()


@pytest.mark.parametrize(
    ("role", "subject"),
    [
        ("relay", "billing.sync.orders"),
        ("relay", "$JS.API.STREAM.UPDATE.jetbridge-orders"),
        ("relay", "$JS.API.STREAM.PURGE.jetbridge-orders"),
        ("relay", "$JS.API.CONSUMER.MSG.NEXT.jetbridge-billing.orders-workers"),
        ("worker", "orders.sync.billing"),
        ("worker", "$JS.API.CONSUMER.CREATE.jetbridge-billing.orders-workers.billing.sync.orders"),
        ("worker", "$JS.API.CONSUMER.MSG.NEXT.jetbridge-orders.billing-workers-0"),
        ("worker", "$JS.API.STREAM.MSG.GET.jetbridge-billing"),
        ("admin", "$JS.API.STREAM.DELETE.jetbridge-orders"),
        ("admin", "$JS.API.CONSUMER.CREATE.jetbridge-billing.orders-workers.orders.sync.billing"),
        ("admin", "orders.sync.billing"),
    ],
)
def test_everything_else_is_denied_at_once(broker: Broker, role: Role, subject: str) -> None:
    async def ask(connection: Connection) -> float:
        started = time.monotonic()
        with pytest.raises(PermissionDenied):
            await connection.request(subject, b"{}", timeout_s=5.0)
        return time.monotonic() - started

    assert connected(broker.settings("orders", role), ask, role) < 2.0


def test_no_role_reads_the_replies_of_another(broker: Broker) -> None:
    """With a shared ``_INBOX.>`` a worker could read what the relay is told."""
    settings = broker.settings("orders", "worker")

    async def main() -> bool:
        connection = Connection(options_for(settings, "relay"))
        await connection.start()
        try:
            return await connection.ready(5.0)
        finally:
            await connection.close()

    assert asyncio.run(main()) is False


def test_provisioning_as_the_wrong_user_names_what_is_missing(broker: Broker) -> None:
    broker.provision("orders")
    settings = broker.settings("orders", "relay")

    with pytest.raises(PermissionDenied, match=r"(?i)\$JS\.API\..*--print-permissions"):
        connected(settings, lambda one: provision(one, settings), "relay")


def test_provisioning_works_without_the_listing_rights(tmp_path: Path) -> None:
    """LIST and NAMES only make messages better; who does not want to grant them need not."""
    settings = settings_of("orders", "nats://127.0.0.1:4222", DESTINATIONS=["billing"])
    user = "\n".join(
        line
        for line in render(settings, "admin").replace("$ORDERS_ADMIN_PASSWORD", "pw12").splitlines()
        if ".LIST." not in line and "STREAM.NAMES" not in line
    )
    extra = f"accounts {{ A {{ jetstream: enabled, users: [\n{user}\n] }} }}"
    with EmbeddedServer(tmp_path, conf_extra=extra) as server:
        settings = settings_of(
            "orders", server.url.replace("//", "//orders_admin:pw12@"), DESTINATIONS=["billing"]
        )
        report = connected(settings, lambda one: provision(one, settings))

    assert (actions(report), report.is_complete) == (["created"], True)


def test_the_text_is_an_entry_for_the_servers_users() -> None:
    settings = settings_of("web-shop", "nats://127.0.0.1:4222", DESTINATIONS=["billing"], SOURCES=["billing"])

    text = render(settings, "worker")

    assert text == (
        "# jetbridge_consume: its own durables and their acknowledgements\n"
        "{\n"
        "  user: web-shop_worker\n"
        "  password: $WEB_SHOP_WORKER_PASSWORD  # read from the environment of nats-server\n"
        "  permissions: {\n"
        "    publish: [\n"
        '      "$JS.API.CONSUMER.MSG.NEXT.jetbridge-billing.web-shop-workers"\n'
        '      "$JS.API.CONSUMER.INFO.jetbridge-billing.web-shop-workers"\n'
        '      "$JS.ACK.jetbridge-billing.web-shop-workers.>"\n'
        '      "$JS.ACK.*.*.jetbridge-billing.web-shop-workers.>"\n'
        '      # "$JS.API.STREAM.MSG.GET.jetbridge-billing"  # optional, saves messages that a durable with a finite '
        "max_deliver gives up\n"
        "    ]\n"
        "    subscribe: [\n"
        '      "_INBOX_web-shop_worker.>"\n'
        '      "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.jetbridge-billing.web-shop-workers"\n'
        '      "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.jetbridge-billing.web-shop-workers"\n'
        "    ]\n"
        "  }\n"
        "}"
    )

"""
NATS in every state but a healthy one, under a relay and a consumer at work.

Each test says the same four things at its end: every event has one effect, no attempt was spent, nothing is left,
and the log can be read. ``MAX_ATTEMPTS`` is 1, so whatever an outage spends is a dead letter.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import jetbridge
from jetbridge.conf import Settings
from jetbridge.consumer import process as consumer_process
from jetbridge.jetstream.options import ConnectionOptions, options_for
from jetbridge.models import Archive, DeadLetter, InboxState, Outbox, OutboxState
from jetbridge.relay import process as relay_process
from testproject.billing.models import Invoice
from tests.broker.lab import freeze
from tests.running import api, consuming, durable, numbers, relaying
from tests.servers import NatsServer
from tests.waiting import eventually
from tests.worlds import World, body, inbox, outbox

# The promise is two seconds, and the command in tests/outage measures it; this is for a machine with other work.
SOON_S = 5.0
STUCK_S = 10.0


class Traffic:
    """Orders that are published one by one, and what became of them."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.published: list[int] = []

        @jetbridge.handler(">", name="t.outage")
        def handle(event: jetbridge.Event) -> None:
            Invoice.objects.create(
                order_id=int(str(event.payload["n"])), event_id=str(event.event_id), total=0
            )

    def publish(self, count: int = 1) -> int:
        """The number of the last one."""
        for number in itertools.islice(self._numbers, count):
            jetbridge.publish("order.placed", {"n": number}, key=f"k{number % 5}")
            self.published.append(number)
        return self.published[-1]

    def handled(self, timeout_s: float = STUCK_S) -> None:
        """Wait for everything published so far."""
        eventually(lambda: set(self.published) <= set(effects()), timeout_s, what="all is handled")

    def check(self, *, left: int = 0) -> None:
        """Each event once, at its first attempt, and nothing waiting."""
        assert Counter(effects()) == Counter(self.published)
        assert {(row.state, row.attempts) for row in inbox()} == {(InboxState.PROCESSED, 1)}
        assert DeadLetter.objects.count() == 0
        eventually(lambda: Outbox.objects.count() == left, what="the archive has it")
        assert all(row.attempts == 0 for row in outbox())


def effects() -> list[int]:
    return list(Invoice.objects.order_by("id").values_list("order_id", flat=True))


def untouched() -> bool:
    """Whether something waits, and as publish() wrote it."""
    rows = outbox()
    return bool(rows) and {(row.state, row.attempts, row.error) for row in rows} == {
        (OutboxState.READY, 0, "")
    }


@contextmanager
def bridge(world: World, **keys: object) -> Iterator[None]:
    """A relay of the shop and a consumer of billing; the settings are the shop's."""
    with consuming(world, **keys), relaying(world, **keys):
        yield


@contextmanager
def quiet(caplog: pytest.LogCaptureFixture, *, lines: int) -> Iterator[None]:
    """No log storm: at most so many warnings and errors inside."""
    with caplog.at_level(logging.WARNING, "jetbridge"):
        before = len(caplog.records)
        yield
    said = [record.getMessage() for record in caplog.records[before:] if record.name.startswith("jetbridge")]
    assert len(said) <= lines, "\n".join(said)


def soon(traffic: Traffic) -> None:
    """What waited, or comes now, begins to be handled soon after the end of an outage."""
    before = len(effects())
    traffic.publish()
    eventually(lambda: len(effects()) > before, SOON_S, what="the first event after the outage")


@pytest.fixture
def traffic(transactional_db: None, handlers: None) -> Traffic:
    return Traffic()


@pytest.fixture
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that notice a silent server within a second instead of half a minute."""

    def options(settings: Settings, role: str) -> ConnectionOptions:
        return dataclasses.replace(options_for(settings, role), ping_interval_s=0.3)

    for module in (relay_process, consumer_process):
        monkeypatch.setattr(module, "options_for", options)


# --- away and back -------------------------------------------------------------------------------


@pytest.mark.postgres  # eight seconds more for nothing on SQLite, where one thread does everything
def test_twenty_restarts_under_load(traffic, make_nats_server, caplog):
    """
    Soft and hard in turn, with events on their way all the time; after each, new ones arrive within ten seconds.
    Red if the puller keeps its inbox over a reconnect.
    """
    server: NatsServer = make_nats_server()
    world = World(server.url, MAX_ATTEMPTS=1).provision()
    with bridge(world), quiet(caplog, lines=80):
        for number in range(20):
            traffic.publish(10)
            server.restart(hard=bool(number % 2))
            last = traffic.publish(10)
            eventually(lambda: last in effects(), STUCK_S, what=f"events flow after restart {number + 1}")  # noqa: B023
        traffic.handled()
        eventually(lambda: durable(world)["num_ack_pending"] == 0, 15)
    traffic.check()
    assert Archive.objects.count() == 400


@pytest.mark.parametrize("noticed", [False, True])
def test_a_frozen_server_with_data_queued(traffic, make_nats_server, caplog, request, noticed):
    """
    SIGSTOP: connections stay open and nothing answers, for a moment or for longer than the pings allow. The pages
    that got no answer are sent again, and their ids make that harmless. Red if a page without an answer is refused.
    """
    if noticed:
        request.getfixturevalue("attentive")
    server: NatsServer = make_nats_server()
    world = World(server.url, MAX_ATTEMPTS=1, PUBLISH_TIMEOUT_S=0.5, PAGE_SIZE=20).provision()
    with bridge(world), quiet(caplog, lines=20):
        traffic.publish(20)
        freeze(server)
        traffic.publish(100)
        words = "Connection lost" if noticed else "Publishing does not work (no answer before the deadline)"
        eventually(lambda: words in caplog.text, 20)
        assert untouched()
        server.sigcont()
        soon(traffic)
        traffic.handled()
    traffic.check()


@pytest.mark.parametrize("how", ["frozen", "lame_duck"])
def test_another_server_is_moved_to(traffic, make_nats_server, attentive, caplog, how):
    """The one it works with freezes with data queued, or says goodbye: the rows go to the other."""
    servers = {server.url: server for server in (make_nats_server(), make_nats_server())}
    world = World(next(iter(servers)), publisher={"PUBLISH_TIMEOUT_S": 0.5})
    for url in servers:  # both have the stream, as the servers of a cluster would
        world.publisher["NATS_URLS"] = [url]
        world._provision(world.publisher)
    world.publisher["NATS_URLS"] = list(servers)
    with relaying(world), quiet(caplog, lines=10):
        traffic.publish(5)
        eventually(lambda: Outbox.objects.count() == 0)
        here, there = sorted(servers, key=lambda url: len(numbers_at(world, url)), reverse=True)
        if how == "frozen":
            freeze(servers[here])
        else:
            os.kill(servers[here].pid, signal.SIGUSR2)
        traffic.publish(200)
        eventually(lambda: Outbox.objects.count() == 0, 20)
    assert numbers_at(world, there) == traffic.published[5:]
    assert {row.duplicate for row in Archive.objects.all()} == {False}
    servers[here].kill()


def numbers_at(world: World, url: str) -> list[int]:
    world.url = url
    return numbers(world)


def test_a_lame_duck_without_another_server(traffic, make_nats_server, caplog):
    """An orderly update of the only server: it ends JetStream, closes its clients and goes; then the next starts."""
    server: NatsServer = make_nats_server('lame_duck_duration: "30s"\nlame_duck_grace_period: "1s"')
    world = World(server.url, MAX_ATTEMPTS=1, PUBLISH_TIMEOUT_S=0.5).provision()
    with bridge(world), quiet(caplog, lines=20):
        traffic.publish(5)
        traffic.handled()
        os.kill(server.pid, signal.SIGUSR2)
        eventually(lambda: "lame duck" in server.log.lower())
        traffic.publish(5)
        eventually(lambda: not server.running, 20)
        assert untouched() or Outbox.objects.count() == 0
        server.restart()
        soon(traffic)
        traffic.handled()
    traffic.check()


# --- full ----------------------------------------------------------------------------------------

FULL = {
    "max_msgs": ("", {"max_msgs": 5}, "maximum messages exceeded"),
    "max_bytes": ("", {"max_bytes": 4_000}, "maximum bytes exceeded"),
    "server": (
        'jetstream { store_dir: "@STORE@", max_file_store: 8192 }',
        {},
        "insufficient",
    ),
}


@pytest.mark.parametrize("limit", list(FULL))
def test_a_full_store_touches_no_row_and_empties_by_itself(traffic, make_nats_server, caplog, limit):
    """
    The stream's own limits, which come from somebody else, and the server's. Red if 10077 without "per subject",
    or a missing resource, refuses or parks rows.
    """
    extra, config, words = FULL[limit]
    server: NatsServer = make_nats_server(extra)
    world = World(server.url, MAX_ATTEMPTS=1).provision()
    if config:
        change_stream(world, **config)
    with quiet(caplog, lines=10), relaying(world):
        traffic.publish(40)
        eventually(lambda: "Publishing does not work" in caplog.text)
        assert words in caplog.text
        assert untouched()
        with consuming(world), world.as_shop():
            soon(traffic)
            traffic.handled(30)
    traffic.check()


def change_stream(world: World, **config: object) -> None:
    name = f"jetbridge-{world.shop}"
    found = api(world, f"STREAM.INFO.{name}")["config"]
    api(world, f"STREAM.UPDATE.{name}", {**found, **config})


# --- the stream ----------------------------------------------------------------------------------


def test_a_stream_that_is_made_again_under_our_hands(traffic, make_nats_server, caplog):
    """
    Deleted while both work, and made by the next deployment: the relay goes on, and the consumer finds its durable.
    Sequences start again, and nothing new is taken for something old. Red if a subject without a stream is refused.
    """
    server: NatsServer = make_nats_server()
    world = World(server.url, MAX_ATTEMPTS=1).provision()
    with bridge(world), quiet(caplog, lines=12):
        traffic.publish(3)
        traffic.handled()
        eventually(lambda: durable(world)["num_ack_pending"] == 0)
        api(world, f"STREAM.DELETE.jetbridge-{world.shop}")
        traffic.publish(3)
        eventually(lambda: "Publishing does not work" in caplog.text)
        eventually(lambda: "does not exist" in caplog.text)
        assert untouched()
        world.provision()
        soon(traffic)
        traffic.handled()
    traffic.check()
    sequences = [row.sequence for row in inbox()]
    assert len(sequences) > len(set(sequences))


def test_the_same_place_in_a_stream_made_again_is_another_event(traffic, make_nats_server):
    """Both are number 1 of a stream of this name. Red if the fallback identity is stream and sequence alone."""
    server: NatsServer = make_nats_server()
    world = World(server.url, MAX_ATTEMPTS=1).provision()
    with bridge(world):
        for n in (1, 2):
            world.send(body(None, payload={"n": n}))
            eventually(lambda: effects()[-1:] == [n])  # noqa: B023
            eventually(lambda: durable(world)["num_ack_pending"] == 0)
            api(world, f"STREAM.DELETE.jetbridge-{world.shop}")
            world.provision()
    assert {(row.sequence, row.duplicates) for row in inbox()} == {(1, 0)}
    assert effects() == [1, 2]


# --- refused by the server -----------------------------------------------------------------------

USERS = "authorization {{ users: [ {{ user: u, password: pw{0} }}, {{ user: admin, password: pw }} ] }}"
EVERYTHING = USERS.format("")
NOBODY = "authorization { users: [ { user: admin, password: pw } ] }"
NO_PUBLISH = USERS.format(', permissions: { publish: { deny: ["*.sync.>"] } }')
NO_INBOX = USERS.format(', permissions: { subscribe: { deny: [">"] } }')
NO_PULL = USERS.format(', permissions: { publish: { deny: ["$JS.API.>"] } }')
NO_ACK = USERS.format(', permissions: { publish: { deny: ["$JS.ACK.>"] } }')
DENIED = {
    "user": (NOBODY, "Authorization Violation"),
    "publish": (NO_PUBLISH, "may not publish to"),
    "inbox": (NO_INBOX, "subscribe to its reply inbox"),
    "pull": (NO_PULL, "may not publish to '$JS.API.CONSUMER.MSG.NEXT"),
    "ack": (NO_ACK, "Permissions Violation"),
}


@pytest.mark.parametrize("what", list(DENIED))
def test_rights_that_are_taken_away_and_given_back(traffic, make_nats_server, caplog, what):
    """
    The user is gone (as with an expired JWT), or lost one right, while everything runs; nobody restarts us when it
    is repaired. Red without leaving a session whose reply inbox is gone: the server stores every page, and the
    relay, deaf, sends it again and again, also after the repair.
    """
    rules, words = DENIED[what]
    server: NatsServer = make_nats_server(EVERYTHING)
    keys: dict[str, Any] = {"MAX_ATTEMPTS": 1, "PUBLISH_TIMEOUT_S": 1, "PARK_RETRY_S": 1}
    world = World(server.url.replace("//", "//u:pw@"), **keys).provision()
    world.url = server.url.replace("//", "//admin:pw@")
    with bridge(world), quiet(caplog, lines=25):
        traffic.publish(5)
        traffic.handled()
        server.reload(rules)
        eventually(lambda: "Reloaded server configuration" in server.log)
        traffic.publish(5)
        eventually(lambda: words.lower() in caplog.text.lower(), 15)
        # Those whose subject is denied are parked; all others are as they were, or gone.
        states = {"parked"} if what == "publish" else {"ready"}
        eventually(lambda: set(Outbox.objects.values_list("state", flat=True)) <= states)
        assert not Outbox.objects.filter(attempts__gt=0).exists()
        server.reload(EVERYTHING)
        eventually(lambda: server.log.count("Reloaded server configuration") == 2)
        soon(traffic)
        traffic.handled(15)
    traffic.check()
    assert "u:pw" not in caplog.text


def test_a_max_payload_that_is_lowered_refuses_what_is_too_large_and_nothing_else(
    traffic, make_nats_server, caplog
):
    """
    The server does not tell its clients: the first large message costs the connection. Then the limit is known, the
    row is refused with the reason, and the others flow. Red without the check before sending: a loop of reconnects.
    """
    server: NatsServer = make_nats_server()
    world = World(server.url, MAX_ATTEMPTS=1).provision()
    with bridge(world), quiet(caplog, lines=10):
        traffic.publish(5)
        traffic.handled()
        server.reload("max_payload: 4096")
        eventually(lambda: "Reloaded server configuration" in server.log)
        jetbridge.publish("order.placed", {"n": 0, "fill": "x" * 20_000}, key="large")
        eventually(lambda: outbox(state=OutboxState.REFUSED))
        soon(traffic)
        assert "exceeds the server's max_payload of 4096" in outbox()[0].error
        traffic.handled()
    assert caplog.text.count("Connection lost") <= 4
    traffic.check(left=1)

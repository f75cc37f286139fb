"""A relay through outages, crashes and lost leases: nothing lost, nothing touched that was not at fault."""

from __future__ import annotations

import logging
import signal
import time

import jetbridge
from jetbridge.models import Archive, Lease, Outbox, OutboxState
from jetbridge.models.clock import WallClock
from jetbridge.outbox import store
from testproject.processes import free_port
from tests.running import api, numbers, relaying
from tests.servers import NatsServer
from tests.waiting import eventually
from tests.worlds import World, outbox

LEASE_S = 2.0
SHORT = {"LEASE_S": LEASE_S, "ACK_WAIT_S": 1, "PUBLISH_TIMEOUT_S": 1}


def publish(*ns: int, key: str = "k") -> None:
    for n in ns:
        jetbridge.publish("order.placed", {"n": n}, key=key)


def untouched() -> bool:
    """Whether every waiting row is as publish() wrote it."""
    rows = outbox()
    return bool(rows) and all(
        (row.state, row.attempts, row.error) == (OutboxState.READY, 0, "")
        and abs((row.state_at - row.created_at).total_seconds()) < 0.001
        for row in rows
    )


# --- outages -------------------------------------------------------------------------------------


def test_a_missing_stream_touches_no_row_and_resumes_by_itself(
    transactional_db, handlers, nats_server, caplog
):
    """Before the first provision everything waits. Red if a 503 parks or refuses rows."""
    world = World(nats_server.url)
    with relaying(world), caplog.at_level(logging.WARNING, "jetbridge.relay"):
        publish(1, 2, 3)
        eventually(lambda: "Publishing does not work (no responders)" in caplog.text)
        assert untouched()
        world.provision()
        with world.as_shop():
            eventually(lambda: Outbox.objects.count() == 0)
    assert numbers(world) == [1, 2, 3]


def test_a_page_full_of_what_the_stream_does_not_take_stops_nobody_behind_it(world):
    """
    A destination that the shared stream does not know yet. Red if a page of nothing but 503 is always an outage: the
    rows in front are never parked, and nothing behind them is ever sent.
    """
    stream = f"jetbridge-{world.shop}"
    world.publisher["DESTINATIONS"] = [world.billing, "new"]
    config = api(world, f"STREAM.INFO.{stream}")["config"]
    api(world, f"STREAM.UPDATE.{stream}", {**config, "subjects": [f"{world.shop}.sync.{world.billing}"]})
    with world.as_shop():
        for n in range(8):
            jetbridge.publish("order.placed", {"n": n}, to="new", key="k")
        jetbridge.publish("order.placed", {"n": 99}, to=world.billing)

    with relaying(world, PAGE_SIZE=3, PARK_RETRY_S=1):
        eventually(lambda: numbers(world) == [99])
        assert {row.state for row in outbox(destination="new")} <= {"ready", "parked"}
        api(world, f"STREAM.UPDATE.{stream}", config)
        eventually(lambda: numbers(world) == [99, *range(8)], 20)


def test_a_killed_and_restarted_broker_loses_and_repeats_nothing(
    transactional_db, handlers, make_nats_server
):
    """SIGKILL while pages fly. Stored without its ack: a duplicate in the archive, not twice in the stream."""
    server: NatsServer = make_nats_server()
    world = World(server.url, publisher={"PAGE_SIZE": 50}).provision()
    with relaying(world):
        for n in range(400):
            publish(n, key=f"k{n % 7}")
        eventually(lambda: Archive.objects.count() >= 50)
        server.kill()
        publish(400)
        server.start()
        eventually(lambda: Outbox.objects.count() == 0, 30)
    found = numbers(world)
    assert sorted(found) == list(range(401))
    for key in range(7):
        assert [n for n in found if n % 7 == key and n < 400] == list(range(key, 400, 7))
    assert Archive.objects.count() == 401


def test_a_broker_that_is_away_at_the_start_is_waited_for(transactional_db, handlers, make_nats_server):
    """No connection is no fault of a row."""
    server: NatsServer = make_nats_server()
    server.stop()
    world = World(server.url)
    with relaying(world):
        publish(1)
        server.start()
        world.provision()
        with world.as_shop():
            eventually(lambda: numbers(world) == [1])


def test_a_broker_that_is_away_for_a_whole_term_takes_the_leases_away(
    transactional_db, handlers, make_nats_server
):
    """Another relay may see the broker that this one does not. Back again, it takes them up: red if it renews on."""
    server: NatsServer = make_nats_server()
    world = World(server.url, LEASE_S=2, ACK_WAIT_S=1, PUBLISH_TIMEOUT_S=1).provision()
    with relaying(world):
        eventually(lambda: Lease.objects.exclude(owner="").count() == 64)
        server.stop()
        eventually(lambda: Lease.objects.exclude(owner="").count() == 0)
        publish(1)
        server.start()
        eventually(lambda: numbers(world) == [1])


# --- leases --------------------------------------------------------------------------------------


def steal(seconds: float) -> None:
    """What a takeover by another relay leaves in the table."""
    Lease.objects.update(owner="thief", expires_at=WallClock(seconds))


def test_what_another_owner_parked_meanwhile_is_learned_at_the_return(world):
    """
    A relay loses its leases and gets them back; the owner in between has parked rows and died. Red if the
    relay keeps its old list of buckets: the parked rows would wait for ever, and be overtaken.
    """
    with relaying(world, **SHORT, PARK_RETRY_S=0.1):
        publish(0)
        eventually(lambda: numbers(world) == [0])
        steal(60)
        # The relay may act on its leases until its own clock says two thirds: then the thief parks.
        moment = time.monotonic() + LEASE_S * 2 / 3
        eventually(lambda: time.monotonic() > moment)
        publish(1, 2)
        store.move(
            [row.pk for row in outbox()], OutboxState.PARKED, code="10077", error="full", using="default"
        )
        steal(0)
        publish(3)
        eventually(lambda: Outbox.objects.count() == 0, what="the parked rows follow")
    assert numbers(world) == [0, 1, 2, 3]


def test_without_leases_nothing_is_sent(world):
    """Two relays on one database never both send. Red if tick() goes on without asking the holder."""
    names = [f"relay/{number:02d}" for number in range(64)]
    Lease.objects.bulk_create(
        [Lease(name=name, owner="other", epoch=1, expires_at=WallClock(1.5)) for name in names]
    )
    began = time.monotonic()
    with relaying(world):
        publish(1)
        eventually(lambda: numbers(world) == [1])
    assert time.monotonic() - began > 1.2
    assert Lease.objects.filter(epoch=2, owner="").count() == 64


def test_a_drained_relay_hands_over_at_once(world, processes):
    """SIGTERM: exit code 0, the leases free, no waiting for the term. Red without release() at the end."""
    keys = {"LEASE_S": 30, "ACK_WAIT_S": 1, "PUBLISH_TIMEOUT_S": 1}
    first = processes.relay(world, **keys).says("Leases: 64 of 64 held")
    second = processes.relay(world, **keys).says("Connected to")
    with world.as_shop():
        publish(1)
        eventually(lambda: numbers(world) == [1])

        assert first.terminate() == 0
        freed = time.monotonic()
        publish(2)
        eventually(lambda: numbers(world) == [1, 2])

    assert time.monotonic() - freed < 5
    second.says("Leases: 64 of 64 held")
    assert second.terminate() == 0
    assert Lease.objects.exclude(owner="").count() == 0


def test_sigterm_in_the_middle_of_a_backlog_settles_the_page_under_way(world, processes):
    """What was stored is in the archive when the process has ended: the next relay finds no duplicates."""
    with world.as_shop():
        jetbridge.publish_many(
            [jetbridge.Event("order.placed", {"n": n}, key=f"k{n % 50}") for n in range(3000)]
        )
    relay = processes.relay(world, PAGE_SIZE=20)
    eventually(lambda: Archive.objects.exists(), 30)

    assert relay.terminate() == 0

    archived = Archive.objects.count()
    assert 0 < archived < 3000, "it ended too late to show anything"
    assert len(world.stored()) == archived
    report = world.relay()
    assert (report.totals.duplicates, Archive.objects.count()) == (0, 3000)


def test_a_second_signal_ends_at_once_with_143(transactional_db, handlers, processes, make_nats_server):
    """The way out when draining hangs: the broker is frozen, so the page under way waits for its deadline."""
    server: NatsServer = make_nats_server()
    world = World(server.url, PUBLISH_TIMEOUT_S=60, LEASE_S=120).provision()
    relay = processes.relay(world).says("Leases: 64 of 64 held")
    server.sigstop()
    with world.as_shop():
        publish(1)
    relay.send(signal.SIGTERM)
    relay.says("SIGTERM: draining.")
    relay.send(signal.SIGTERM)

    assert relay.wait(5) == 143
    server.sigcont()


def test_a_database_that_fails_for_a_moment_is_waited_for(world, caplog):
    """One line for the outage, and the rows go when it is over. Red if an error ends the loop."""
    from django.db import connection

    with relaying(world), caplog.at_level(logging.INFO, "jetbridge.runtime"):
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE jetbridge_outbox RENAME TO jetbridge_outbox_away")
        try:
            eventually(lambda: "relay waits: a table is missing" in caplog.text)
        finally:
            with connection.cursor() as cursor:
                cursor.execute("ALTER TABLE jetbridge_outbox_away RENAME TO jetbridge_outbox")
        publish(1)
        eventually(lambda: numbers(world) == [1])
        eventually(lambda: "relay works again" in caplog.text)


def test_nothing_listens_on_the_port_of_a_one_shot_run(transactional_db, handlers, processes):
    """A one-shot run ends with 4 where a lasting one waits."""
    world = World(f"nats://127.0.0.1:{free_port()}")

    process = processes.relay(world, "--until-empty", "--timeout", "1")

    assert process.wait() == 4
    assert f"127.0.0.1:{world.url.rpartition(':')[2]}" in process.log or "refused" in process.log.lower()

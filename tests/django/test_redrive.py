"""Redrive, the whole way: a handler fails, a dead letter, ``jetbridge_dlq redrive``, a real consumer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import jetbridge
from jetbridge.models import DeadLetter, Deferred, Inbox
from testproject.billing.models import Invoice
from tests.django.commands import run, run_json
from tests.running import consuming
from tests.servers import NatsServer
from tests.worlds import World, no_handlers


@pytest.fixture
def world(transactional_db: None, nats_server: NatsServer) -> Iterator[World]:
    with no_handlers():
        yield World(nats_server.url).provision()


class Till:
    """A handler that fails until it is repaired. Each success writes an invoice."""

    def __init__(self, name: str = "till") -> None:
        self.name = name
        self.broken = True
        self.runs: list[str] = []
        jetbridge.handler("order.placed", name=name, max_attempts=1)(self)

    def __call__(self, event: jetbridge.Event) -> None:
        self.runs.append(str(event.event_id))
        Invoice.objects.create(order_id=int(str(event.payload["id"])), event_id=str(event.event_id), total=1)
        if self.broken:
            raise ValueError(f"the till is stuck at order {event.payload['id']}")


def publish(world: World, *ids: int, key: str | None = None) -> list[str]:
    with world.as_shop():
        found = [jetbridge.publish("order.placed", {"id": id}, key=key) for id in ids]
    world.relay()
    return found


def consume(world: World) -> int:
    with world.as_billing():
        return run("jetbridge_consume", "--until-empty", "--timeout", "30")[0]


def dlq(world: World, *arguments: str) -> tuple[int, dict[str, Any]]:
    with world.as_billing():
        return run_json("jetbridge_dlq", *arguments)


def test_a_redriven_event_has_its_effect_once(world: World) -> None:
    till = Till()
    [event_id] = publish(world, 7)
    assert consume(world) == 3
    assert Invoice.objects.count() == 0
    dead = DeadLetter.objects.get()

    till.broken = False
    code, acted = dlq(world, "redrive", str(dead.pk))
    redriving = DeadLetter.objects.get().state

    assert (code, acted) == (0, {"matched": 1, "done": 1, "skipped": [], "ids": [dead.pk]})
    assert redriving == "redriving"
    assert consume(world) == 0
    assert consume(world) == 0
    assert [one.event_id for one in Invoice.objects.all()] == [event_id]
    dead.refresh_from_db()
    assert (dead.state, dead.redrives) == ("redriven", 1)
    assert "@" in dead.resolved_by
    assert Inbox.objects.get(handler="till").state == "processed"
    assert not Deferred.objects.exists()


def test_an_event_that_fails_again_is_the_same_dead_letter(world: World) -> None:
    till = Till()
    publish(world, 7)
    consume(world)
    dead = DeadLetter.objects.get()

    for number in (1, 2):
        assert dlq(world, "redrive", "--handler", "till")[0] == 0
        assert consume(world) == 3
        dead.refresh_from_db()
        assert (dead.state, dead.redrives, dead.attempts) == ("open", number, 1)

    till.broken = False
    dlq(world, "redrive", "--all")
    assert consume(world) == 0
    assert (DeadLetter.objects.count(), Invoice.objects.count(), len(till.runs)) == (1, 1, 4)


def test_a_hundred_dead_letters_of_a_key_run_in_the_order_in_which_they_were_published(world: World) -> None:
    """
    Story 20. More than the consumer takes at once, so that it comes back for the rest several times. Red if what is
    due is taken in the order in which it was redriven.
    """
    till = Till()
    ids = publish(world, *range(100), key="one")
    world.consumer["MAX_IN_FLIGHT"] = 16
    consume(world)
    till.broken, till.runs = False, []
    letters = [str(one.pk) for one in DeadLetter.objects.order_by("-id")]

    first, acted = dlq(world, "redrive", *letters[:50])
    second, rest = dlq(world, "redrive", *letters[50:])
    consume(world)

    assert (first, second, acted["done"] + rest["done"]) == (0, 0, 100)
    assert till.runs == ids


def test_an_unknown_event_runs_once_its_handler_exists(world: World) -> None:
    publish(world, 7)
    assert consume(world) == 3
    dead = DeadLetter.objects.get()
    assert (dead.handler, dead.reason) == ("", "unknown_event")

    code, acted = dlq(world, "redrive", str(dead.pk))
    assert (code, acted["done"]) == (1, 0)
    assert "no handler wants 'order.placed'" in acted["skipped"][0]["why"]

    tills = [Till("one"), Till("two")]
    for till in tills:
        till.broken = False
    assert dlq(world, "redrive", str(dead.pk))[0] == 0
    assert consume(world) == 0
    dead.refresh_from_db()
    assert dead.state == "redriven"
    assert [len(till.runs) for till in tills] == [1, 1]
    assert Invoice.objects.count() == 2


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
def test_an_unknown_event_runs_on_the_database_of_its_handler(nats_server: NatsServer) -> None:
    with no_handlers():
        world = World(nats_server.url, DATABASES=["default", "other"]).provision()
        publish(world, 7)
        consume(world)
        jetbridge.handler("order.placed", name="far", using="other")(lambda event: None)

        assert dlq(world, "redrive", "--all")[0] == 0
        assert consume(world) == 0

    assert Inbox.objects.using("other").get().state == "processed"
    assert not Inbox.objects.filter(handler="far").exists()


def test_waiting_tells_what_became_of_it(world: World) -> None:
    """A redrive that nobody runs ends with 6; one that fails again is a failed act."""
    Till()
    publish(world, 7)
    consume(world)
    dead = DeadLetter.objects.get()

    code, acted = dlq(world, "redrive", str(dead.pk), "--wait", "0.3")
    assert (code, acted["done"]) == (6, 0)
    assert "has not run" in acted["skipped"][0]["why"]

    consume(world)
    with consuming(world):
        code, acted = dlq(world, "redrive", str(dead.pk), "--wait", "20")
    assert (code, acted["done"]) == (1, 0)
    assert "failed again" in acted["skipped"][0]["why"]
    assert "the till is stuck" in acted["skipped"][0]["why"]


def test_waiting_for_a_redrive_that_works(world: World) -> None:
    till = Till()
    publish(world, 7)
    consume(world)
    till.broken = False

    with consuming(world):
        code, acted = dlq(world, "redrive", "--all", "--wait", "20")

    assert (code, acted["done"], Invoice.objects.count()) == (0, 1, 1)

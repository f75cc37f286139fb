"""Redrive where a source has several durables: whoever holds that of the key runs it, and need not hold the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import jetbridge
from jetbridge.dead_letters import redrive, store
from jetbridge.dead_letters.store import Selection
from jetbridge.leases import store as leases
from jetbridge.models import Deferred
from jetbridge.partition import partition
from testproject.billing.models import Invoice
from tests.running import consuming
from tests.servers import NatsServer
from tests.waiting import eventually
from tests.worlds import World, no_handlers


@pytest.fixture
def world(transactional_db: None, nats_server: NatsServer) -> Iterator[World]:
    with no_handlers():
        world = World(nats_server.url)
        world.publisher["DESTINATIONS"] = {world.billing: {"partitions": 2}}
        world.consumer["SOURCES"] = {world.shop: {"partitions": 2}}
        yield world.provision()


def test_a_redrive_runs_where_two_consumers_share_the_durables_of_its_source(world: World) -> None:
    """
    Leases are taken one by one, so two consumers that start together may share those of a source for good.
    Red if a stored message waits for somebody who holds all of them.
    """
    broken = True

    @jetbridge.handler("order.placed", name="till", max_attempts=1)
    def _(event: jetbridge.Event) -> None:
        if broken:
            raise ValueError("the till is stuck")
        Invoice.objects.create(order_id=event.payload["n"], event_id=str(event.event_id), total=1)

    keys = {partition(f"k{n}", 2): f"k{n}" for n in range(20)}
    with world.as_shop():
        for number, key in keys.items():
            jetbridge.publish("order.placed", {"n": number}, key=key)
    world.relay()
    world.consume()
    broken = False
    with world.as_billing() as settings:
        acted = redrive.redrive(
            store.select(Selection(all=True), states=None, using="default"),
            by="a test",
            settings=settings,
            using="default",
        )
    assert len(acted.ids) == 2
    others = f"consume/jetbridge-{world.shop}/1"
    assert leases.acquire([others], owner="another", ttl_s=3_600, limit=1, using="default") == {others}

    with consuming(world):
        eventually(lambda: Invoice.objects.exists(), 15)
        leases.release([others], owner="another", using="default")
        eventually(lambda: Invoice.objects.count() == 2 and not Deferred.objects.exists(), 15)

    assert list(Invoice.objects.order_by("id").values_list("order_id", flat=True)) == [0, 1]

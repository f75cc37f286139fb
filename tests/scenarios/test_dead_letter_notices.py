"""The row in the database is the truth about a dead letter, and its notice a copy that may be late."""

from __future__ import annotations

import jetbridge
from jetbridge.relay.process import run_relay
from tests.running import Running, api, durable
from tests.waiting import eventually
from tests.worlds import World, body, dead_letters, inbox, outbox


def cap(world: World, messages: int) -> None:
    """How many messages of a subject the stream of billing takes."""
    stream = f"jetbridge-{world.billing}"
    config = api(world, f"STREAM.INFO.{stream}")["config"]
    api(world, f"STREAM.UPDATE.{stream}", {**config, "max_msgs_per_subject": messages})


def test_a_notice_that_nats_does_not_take_leaves_its_event_accounted_for(world):
    """
    Story 19: the event is settled and acked, its dead letter is open, and the notice waits in the outbox until
    there is room. Red if the ack waited for the notice, or the notice went before the row.
    """

    @jetbridge.handler(">", name="t.rejects")
    def rejects(event: jetbridge.Delivery) -> None:
        raise jetbridge.Reject("no")

    cap(world, 1)
    world.send(body("1"), body("2"))
    world.consume()
    assert durable(world)["num_ack_pending"] == 0
    assert [(letter.event_id, letter.state) for letter in dead_letters()] == [("1", "open"), ("2", "open")]
    assert [row.state for row in inbox()] == ["dead", "dead"]

    world.relay_of_billing()
    (waiting,) = outbox()
    assert (waiting.state, waiting.subject) == ("parked", f"{world.billing}.sync.dlq")

    cap(world, 10)
    with world.as_billing(PARK_RETRY_S=0.2) as settings:
        relay = Running(lambda stop: run_relay(settings, using="default", stop=stop))
        try:
            eventually(lambda: not outbox(), 30)
        finally:
            relay.stop()
    notices = world.stored(world.billing, f"{world.billing}.sync.dlq")
    assert [notice.headers["x-dlq-reason"] for notice in notices] == ["rejected", "rejected"]

"""The steps, as data: between which two things the victim is hit, who that is, and in which scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from jetbridge.models import OutboxState
from tests.matrix.points import Call, Called, Committed, Point, Sent, Side
from tests.matrix.scenes import Role, Scene

OUTBOX: Final = "jetbridge.outbox.store"
LEASES: Final = "jetbridge.leases.store"
INBOX: Final = "jetbridge.inbox.store"
LETTERS: Final = "jetbridge.dead_letters.store"
DEFERRED: Final = "jetbridge.deferred.store"
ACKS: Final = "jetbridge.jetstream.acks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """
    One row of the matrix.

    Attributes:
        upto: The seed chooses at which pass of the point the fault strikes: the first to this one. The scene
            must bring the victim there so often.
        only: The one database that has this step.
    """

    name: str
    victim: Role
    point: Point
    scene: Scene = Scene.PLAIN
    upto: int = 1
    only: str = ""

    @property
    def is_ordered(self) -> bool:
        """Whether the order of each key must survive: the relay's promise. The consumer's has known limits."""
        return self.victim is Role.RELAY


def _some(call: Call) -> bool:
    return bool(call.result)


def _lanes(call: Call) -> bool:
    return bool(call.args[0])


def _to(state: OutboxState) -> Callable[[Call], bool]:
    return lambda call: call.args[1] is state


def _around(name: str, victim: Role, target: str, scene: Scene, when: Callable[[Call], bool]) -> list[Step]:
    """Just before a function and just after it."""
    sides: tuple[Side, ...] = ("before", "after")
    return [
        Step(
            name=f"{name}.{side}",
            victim=victim,
            point=Called(target=target, side=side, when=when),
            scene=scene,
        )
        for side in sides
    ]


def _any(call: Call) -> bool:
    return True


_PUBLISH: Final = [
    Step(
        name="publish.insert.before",
        victim=Role.WRITER,
        point=Called(target=f"{OUTBOX}:insert", side="before"),
        upto=6,
    ),
    Step(
        name="publish.commit.before",
        victim=Role.WRITER,
        point=Committed(of=f"{OUTBOX}:insert", side="before"),
        upto=6,
    ),
    Step(
        name="publish.commit.after",
        victim=Role.WRITER,
        point=Committed(of=f"{OUTBOX}:insert", side="after"),
        upto=6,
    ),
]

_RELAY: Final = [
    Step(
        name="relay.leases.acquired",
        victim=Role.RELAY,
        point=Called(target=f"{LEASES}:acquire", side="after", when=_some),
    ),
    Step(
        name="relay.leases.renew.before",
        victim=Role.RELAY,
        point=Called(target=f"{LEASES}:renew", side="before"),
        upto=2,
    ),
    Step(
        name="relay.leases.renewed",
        victim=Role.RELAY,
        point=Called(target=f"{LEASES}:renew", side="after"),
        upto=2,
    ),
    Step(
        name="relay.page.read",
        victim=Role.RELAY,
        point=Called(target=f"{OUTBOX}:page", side="after", when=_some),
        upto=2,
    ),
    Step(
        name="relay.publish.before",
        victim=Role.RELAY,
        point=Called(target="jetbridge.jetstream.publisher:WindowPublisher.publish", side="before"),
        upto=2,
    ),
    Step(
        name="relay.publish.answered",
        victim=Role.RELAY,
        point=Called(target="jetbridge.jetstream.publisher:_PageRun._on_answer", side="before"),
        upto=6,
    ),
    Step(name="relay.publish.acked", victim=Role.RELAY, point=Sent(signal="publish_acked"), upto=2),
    Step(
        name="relay.settle.inside",
        victim=Role.RELAY,
        point=Called(target=f"{OUTBOX}:_archived", side="after"),
        upto=6,
        only="sqlite",
    ),
    Step(name="relay.settled", victim=Role.RELAY, point=Sent(signal="outbox_settled"), upto=2),
    *_around("relay.park", Role.RELAY, f"{OUTBOX}:move", Scene.FULL, _to(OutboxState.PARKED)),
    Step(
        name="relay.parked.read",
        victim=Role.RELAY,
        point=Called(target=f"{OUTBOX}:parked_page", side="after", when=_some),
        scene=Scene.FULL,
    ),
    *_around("relay.refuse", Role.RELAY, f"{OUTBOX}:move", Scene.REFUSED, _to(OutboxState.REFUSED)),
    Step(
        name="relay.hold.before",
        victim=Role.RELAY,
        point=Called(target=f"{OUTBOX}:move", side="before", when=_to(OutboxState.HELD)),
        scene=Scene.REFUSED,
    ),
    *_around("relay.release", Role.RELAY, f"{OUTBOX}:release", Scene.REFUSED, _lanes),
    Step(
        name="relay.promote.before",
        victim=Role.RELAY,
        point=Called(target=f"{OUTBOX}:promote_due", side="before"),
        scene=Scene.SCHEDULED,
        upto=4,
    ),
    Step(
        name="relay.promote.after",
        victim=Role.RELAY,
        point=Called(target=f"{OUTBOX}:promote_due", side="after", when=_some),
        scene=Scene.SCHEDULED,
    ),
    *_around("relay.drain", Role.RELAY, f"{LEASES}:release", Scene.DRAIN, _any),
]

_CONSUME: Final = [
    Step(
        name="consume.leases.renewed",
        victim=Role.CONSUMER,
        point=Called(target=f"{LEASES}:renew", side="after"),
        upto=2,
    ),
    Step(
        name="consume.delivered",
        victim=Role.CONSUMER,
        point=Called(target="jetbridge.consumer.consumer:Consumer.take", side="before"),
        upto=5,
    ),
    Step(
        name="consume.claim.before",
        victim=Role.CONSUMER,
        point=Called(target=f"{INBOX}:claim", side="before"),
        upto=5,
    ),
    Step(name="consume.started", victim=Role.CONSUMER, point=Sent(signal="handler_started"), upto=5),
    Step(
        name="consume.commit.before",
        victim=Role.CONSUMER,
        point=Committed(of="handler_started", side="before"),
        upto=5,
    ),
    Step(name="consume.committed", victim=Role.CONSUMER, point=Sent(signal="handler_committed"), upto=5),
    Step(
        name="consume.ack.before",
        victim=Role.CONSUMER,
        point=Called(target=f"{ACKS}:ack", side="before"),
        upto=5,
    ),
    Step(name="consume.acked", victim=Role.CONSUMER, point=Sent(signal="delivery_acked"), upto=5),
    Step(
        name="consume.start.before",
        victim=Role.CONSUMER,
        point=Called(target=f"{INBOX}:record_start", side="before"),
        scene=Scene.REDELIVERED,
        upto=2,
    ),
    Step(
        name="consume.start.committed",
        victim=Role.CONSUMER,
        point=Committed(of=f"{INBOX}:record_start", side="after"),
        scene=Scene.REDELIVERED,
        upto=2,
    ),
    Step(
        name="consume.retry.before",
        victim=Role.CONSUMER,
        point=Called(target=f"{INBOX}:record_failure", side="before"),
        scene=Scene.FLAKY,
        upto=3,
    ),
    Step(
        name="consume.retry.after",
        victim=Role.CONSUMER,
        point=Called(target=f"{INBOX}:record_failure", side="after"),
        scene=Scene.FLAKY,
        upto=3,
    ),
    Step(
        name="consume.finish.before",
        victim=Role.CONSUMER,
        point=Called(target=f"{INBOX}:finish", side="before"),
        scene=Scene.FLAKY,
        upto=2,
    ),
    Step(
        name="consume.nak.before",
        victim=Role.CONSUMER,
        point=Called(target=f"{ACKS}:nak", side="before"),
        scene=Scene.DRAIN,
    ),
    *_around("consume.give_back", Role.CONSUMER, f"{INBOX}:give_back", Scene.DRAIN, _any),
]

_DEAD: Final = [
    Step(
        name="dead.bury.before",
        victim=Role.CONSUMER,
        point=Called(target=f"{LETTERS}:bury", side="before"),
        scene=Scene.POISON,
        upto=2,
    ),
    Step(
        name="dead.commit.before",
        victim=Role.CONSUMER,
        point=Committed(of=f"{INBOX}:bury", side="before"),
        scene=Scene.POISON,
        upto=2,
    ),
    Step(
        name="dead.committed",
        victim=Role.CONSUMER,
        point=Sent(signal="dead_lettered"),
        scene=Scene.POISON,
        upto=2,
    ),
]

_REDRIVE: Final = [
    Step(
        name="redrive.reopen.before",
        victim=Role.REDRIVE,
        point=Called(target=f"{INBOX}:reopen", side="before"),
        scene=Scene.REDRIVE,
        upto=2,
    ),
    Step(
        name="redrive.commit.before",
        victim=Role.REDRIVE,
        point=Committed(of=f"{DEFERRED}:add", side="before"),
        scene=Scene.REDRIVE,
        upto=2,
    ),
    Step(
        name="redrive.commit.after",
        victim=Role.REDRIVE,
        point=Committed(of=f"{DEFERRED}:add", side="after"),
        scene=Scene.REDRIVE,
        upto=2,
    ),
    Step(
        name="redrive.dispatched",
        victim=Role.CONSUMER,
        point=Called(target=f"{DEFERRED}:due", side="after", when=_some),
        scene=Scene.REDRIVE,
    ),
    Step(
        name="redrive.completed.before",
        victim=Role.CONSUMER,
        point=Committed(of="jetbridge.dead_letters.redrive:completed", side="before"),
        scene=Scene.REDRIVE,
        upto=2,
    ),
    Step(
        name="redrive.completed.after",
        victim=Role.CONSUMER,
        point=Committed(of="jetbridge.dead_letters.redrive:completed", side="after"),
        scene=Scene.REDRIVE,
        upto=2,
    ),
    Step(
        name="redrive.failed_again",
        victim=Role.CONSUMER,
        point=Committed(of=f"{INBOX}:bury", side="before"),
        scene=Scene.REDRIVE_AGAIN,
        upto=2,
    ),
]

_PROVISION: Final = [
    Step(
        name="provision.call.before",
        victim=Role.PROVISION,
        point=Called(target="jetbridge.jetstream.connection:Connection.api", side="before"),
        upto=5,
    ),
    Step(
        name="provision.call.after",
        victim=Role.PROVISION,
        point=Called(target="jetbridge.jetstream.connection:Connection.api", side="after"),
        upto=5,
    ),
]

STEPS: Final[Sequence[Step]] = (*_PUBLISH, *_RELAY, *_CONSUME, *_DEAD, *_REDRIVE, *_PROVISION)
BY_NAME: Final = {step.name: step for step in STEPS}

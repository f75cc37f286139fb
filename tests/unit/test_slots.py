"""Slots: several side by side, or one alone; nobody waits for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from jetbridge.consumer.slots import Slots


def played(play: Callable[[Slots], Awaitable[None]], size: int = 3) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await play(Slots(size))

    asyncio.run(main())


def test_who_is_alone_is_alone_and_two_of_them_never_wait_for_each_other():
    """Red if the slots are taken one by one: two that hold a part each stop everything."""
    running: set[int] = set()
    most = 0

    async def one(slots: Slots, number: int, alone: bool) -> None:
        nonlocal most
        async with slots.taken(alone=alone):
            assert not (alone and running)
            running.add(number)
            most = max(most, len(running))
            for _ in range(number % 4):
                await asyncio.sleep(0)
                assert running == {number} or not alone
            running.discard(number)

    async def play(slots: Slots) -> None:
        await asyncio.gather(*(one(slots, number, number % 5 == 0) for number in range(100)))

    played(play)
    assert most == 3


def test_nobody_overtakes_who_must_be_alone():
    """Red if a busy consumer lets others in for as long as it is busy."""
    order: list[str] = []

    async def one(slots: Slots, name: str, *, alone: bool = False) -> None:
        async with slots.taken(alone=alone):
            order.append(name)
            await asyncio.sleep(0)

    async def play(slots: Slots) -> None:
        await asyncio.gather(
            one(slots, "a"), one(slots, "b"), one(slots, "alone", alone=True), one(slots, "c")
        )

    played(play)
    assert order == ["a", "b", "alone", "c"]


@pytest.mark.parametrize("seed", range(5))
def test_cancelled_waiters_leave_nothing_taken(seed):
    """Whenever they are cancelled: before their turn, or after it."""
    rng = random.Random(seed)

    async def one(slots: Slots, alone: bool) -> None:
        async with slots.taken(alone=alone):
            await asyncio.sleep(0)

    async def play(slots: Slots) -> None:
        tasks = [asyncio.create_task(one(slots, rng.random() < 0.3)) for _ in range(60)]
        while any(not task.done() for task in tasks):
            rng.choice(tasks).cancel()
            await asyncio.sleep(0)
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        async with slots.taken(alone=True):
            pass

    played(play)

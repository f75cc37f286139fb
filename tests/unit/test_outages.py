"""While a database is away one attempt asks for it, and the log has two lines of it."""

from __future__ import annotations

import logging

import pytest

from jetbridge.consumer.outages import Outages


@pytest.fixture
def outages(caplog: pytest.LogCaptureFixture) -> Outages:
    caplog.set_level(logging.INFO, logger="jetbridge.consumer")
    return Outages()


def test_one_asks_and_the_others_wait_until_it_has_an_answer(outages, caplog):
    """A hundred events in hand; red if each of them is told to try."""
    first, *others = (object() for _ in range(100))
    assert [outages.met(one, "default", "no") for one in (first, *others)] == [True] + [False] * 99

    assert outages.over(first, "default") is None
    waiting = [outages.over(one, "default") for one in others]
    assert all(event is not None and not event.is_set() for event in waiting)
    assert outages.over(others[0], "other") is None

    outages.answered("default")
    assert all(event is not None and event.is_set() for event in waiting)
    assert outages.over(others[0], "default") is None
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "Handlers wait",
        caplog.records[1].message,
    ]
    assert caplog.records[1].message.startswith("The database 'default' answers again, after ")


def test_the_next_one_asks_when_the_first_has_gone(outages):
    """It was drained, or its lease lost. Red if the outage goes with it: nobody would ask, and all wait."""
    first, second = object(), object()
    outages.met(first, "default", "no")
    waiting = outages.over(second, "default")

    outages.leave(second)
    assert waiting is not None
    assert not waiting.is_set()
    outages.leave(first)
    assert waiting.is_set()
    assert outages.met(second, "default", "no")


def test_at_the_end_nobody_waits(outages):
    """Draining wakes all of them."""
    outages.met(object(), "default", "no")
    waiting = outages.over(object(), "default")
    outages.leave()
    assert waiting is not None
    assert waiting.is_set()

"""The polling helper: what every other test relies on."""

from __future__ import annotations

import asyncio

import pytest

from tests.waiting import aeventually, eventually


def test_the_first_true_value_is_returned():
    values = iter([None, 0, "", "there"])

    assert eventually(lambda: next(values), interval_s=0) == "there"


def test_a_failed_assert_means_not_yet():
    calls: list[int] = []

    def fact() -> bool:
        calls.append(1)
        assert len(calls) == 3
        return True

    assert eventually(fact, interval_s=0)


def test_the_deadline_names_the_fact_and_the_last_value():
    with pytest.raises(AssertionError, match=r"Not true within 0 s: a visitor\. Last value: \[\]"):
        eventually(list, 0, what="a visitor")


def test_other_errors_are_not_waited_for():
    with pytest.raises(ZeroDivisionError):
        eventually(lambda: 1 / 0)


def test_coroutine_functions_are_awaited():
    values = iter([False, 7])

    async def fact() -> int:
        return next(values)

    assert asyncio.run(aeventually(fact, interval_s=0)) == 7

"""Comparing subjects with wildcards as the server does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetbridge.jetstream.subjects import covered, overlap, union

token = st.sampled_from(["a", "b", "*"])
patterns = st.builds(
    lambda tokens, rest: ".".join([*tokens, *rest]),
    st.lists(token, min_size=1, max_size=3),
    st.sampled_from([[], [">"]]),
)
subjects = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5).map(".".join)


@pytest.mark.parametrize(
    ("subject", "by", "expected"),
    [
        ("a.sync.b", "a.sync.b", True),
        ("a.sync.b", "a.sync.*", True),
        ("a.sync.b.3", "a.sync.*", False),
        ("a.sync.b.3", "a.sync.>", True),
        ("a.sync", "a.sync.>", False),
        ("a.sync.*", "a.sync.>", True),
        ("a.sync.>", "a.sync.*", False),
        ("a.*.b", "a.sync.b", False),
        ("a.sync.b", ">", True),
    ],
)
def test_covered(subject: str, by: str, expected: bool) -> None:
    assert covered(subject, by) is expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("a.sync.*", "*.sync.b", True),
        ("a.sync.b", "a.sync.c", False),
        ("a.sync.b", "a.sync.b.*", False),
        ("a.>", "a.sync.b", True),
        ("a.sync.>", "a.sync", False),
    ],
)
def test_overlap(a: str, b: str, expected: bool) -> None:
    assert overlap(a, b) is overlap(b, a) is expected


@given(patterns, patterns, subjects)
def test_both_agree_with_what_matches(one: str, other: str, subject: str) -> None:
    """A concrete subject is matched by a pattern exactly if the pattern covers it."""
    in_one, in_other = covered(subject, one), covered(subject, other)

    assert not (in_one and in_other) or overlap(one, other)
    assert not (covered(one, other) and in_one) or in_other


@given(st.lists(patterns, max_size=4), st.lists(patterns, max_size=4), subjects)
def test_a_union_takes_everything_that_either_took(found: list[str], wanted: list[str], subject: str) -> None:
    taken = any(covered(subject, one) for one in [*found, *wanted])

    assert any(covered(subject, one) for one in union(found, wanted)) is taken


def test_a_union_keeps_what_was_there_and_drops_what_became_redundant() -> None:
    assert union(["x", "a.sync.b"], ["a.sync.>"]) == ["x", "a.sync.>"]
    assert union(["a.sync.>"], ["a.sync.b", "c"]) == ["a.sync.>", "c"]
    assert union(["a", "b"], ["b", "a"]) == ["a", "b"]

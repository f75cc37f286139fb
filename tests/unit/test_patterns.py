"""Event patterns: a name, ``*`` for one token, a final ``>`` for the rest."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetbridge import patterns

tokens = st.sampled_from(["a", "b", "order", "x1"])
types = st.lists(tokens, min_size=1, max_size=4).map(".".join)


@st.composite
def some_patterns(draw: st.DrawFn) -> str:
    parts = draw(st.lists(tokens | st.just("*"), max_size=4))
    rest = draw(st.booleans()) or not parts
    return ".".join([*parts, ">"] if rest else parts)


def reference(pattern: str, event_type: str) -> bool:
    """The rule as a regular expression."""
    if pattern == ">":
        return True
    expression = ""
    for number, part in enumerate(pattern.split(".")):
        token = {"*": r"[^.]+", ">": r".+"}.get(part, re.escape(part))
        expression += (r"\." if number else "") + token
    return re.fullmatch(expression, event_type) is not None


@given(some_patterns(), types)
def test_matching_is_the_rule(pattern, event_type):
    """Compared with an independent reading of the rule."""
    assert patterns.check_pattern(pattern) == pattern
    assert patterns.matches(pattern, event_type) == reference(pattern, event_type)


@pytest.mark.parametrize(
    ("pattern", "event_type", "expected"),
    [
        ("order.placed", "order.placed", True),
        ("order.placed", "order.placed.again", False),
        ("order.*", "order.placed", True),
        ("order.*", "order", False),
        ("order.*", "order.line.added", False),
        ("order.>", "order.line.added", True),
        ("order.>", "order.placed", True),
        ("order.>", "order", False),
        ("order.>", "orders.placed", False),
        ("*.placed", "order.placed", True),
        ("*", "ping", True),
        ("*", "order.placed", False),
        (">", "anything.at.all", True),
        ("order.*.added", "order.line.added", True),
        ("order.*.added", "order.line.removed", False),
        ("Order.placed", "order.placed", False),
    ],
)
def test_examples(pattern, event_type, expected):
    """The table a reader learns it from."""
    assert patterns.matches(pattern, event_type) is expected


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        ">.a",
        "a.>.b",
        "a*",
        "*a",
        "a.b*",
        "a>",
        "a b",
        "a\n",
        None,
        5,
        "a.>>",
        "**",
    ],
)
def test_patterns_that_could_never_match_are_refused(pattern):
    """The text shows how a pattern looks."""
    with pytest.raises(ValueError, match=r"'order\.\*'.*got ") as caught:
        patterns.check_pattern(pattern)

    assert repr(pattern) in str(caught.value)

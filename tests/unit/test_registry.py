"""``@jetbridge.handler``: what may be declared, and what is refused with a reason."""

from __future__ import annotations

import pytest

import jetbridge
from jetbridge.conf import get_settings
from jetbridge.registry import registry
from tests.worlds import no_handlers


@pytest.fixture(autouse=True)
def _fresh():
    with no_handlers():
        yield


def test_the_function_is_returned_unchanged():
    """So that it can be called and tested like any other."""

    def handle(event: jetbridge.Event) -> None:
        """Nothing."""

    assert jetbridge.handler("order.placed", name="t")(handle) is handle


def test_the_default_name_is_app_label_and_function():
    """``<app_label>.<function>``, the key of the inbox."""

    def create_invoice(event: jetbridge.Event) -> None: ...

    create_invoice.__module__ = "testproject.billing.handlers"
    jetbridge.handler("order.placed")(create_invoice)

    assert [handler.name for handler in registry.all()] == ["billing.create_invoice"]


def test_a_name_survives_a_refactor():
    """``name=`` is the identity, wherever the function lives."""

    @jetbridge.handler("order.placed", name="billing.create_invoice")
    def renamed(event: jetbridge.Event) -> None: ...

    assert registry.get("billing.create_invoice") is not None


def test_a_name_taken_twice_is_an_error_that_names_both_places():
    """Two handlers on one inbox key would hide each other's events."""

    @jetbridge.handler("order.placed", name="t.same")
    def one(event: jetbridge.Event) -> None: ...

    with pytest.raises(jetbridge.DuplicateHandler) as caught:

        @jetbridge.handler("order.paid", name="t.same")
        def two(event: jetbridge.Event) -> None: ...

    text = str(caught.value)
    assert text.count("test_registry.py:") == 2
    assert "'t.same'" in text
    assert "name=" in text


def test_the_same_function_again_is_a_reload():
    """A module imported twice by a reloader is no duplicate."""

    def handle(event: jetbridge.Event) -> None: ...

    jetbridge.handler("order.placed", name="t")(handle)
    jetbridge.handler("order.paid", name="t")(handle)

    assert [handler.patterns for handler in registry.all()] == [("order.paid",)]


def test_matching_by_pattern_and_source_in_the_order_of_declaration():
    """Several patterns and several handlers."""
    for name, patterns, source in (
        ("a", ("order.placed", "order.paid"), None),
        ("b", ("order.*",), "shop"),
        ("c", (">",), "depot"),
        ("d", ("invoice.>",), None),
    ):
        jetbridge.handler(*patterns, name=name, source=source)(lambda event: None)

    def names(event_type: str, source: str) -> list[str]:
        return [handler.name for handler in registry.matching(event_type, source)]

    assert names("order.placed", "shop") == ["a", "b"]
    assert names("order.lost", "shop") == ["b"]
    assert names("order.paid", "depot") == ["a", "c"]
    assert names("invoice.x.y", "shop") == ["d"]
    assert names("nothing", "shop") == []


def test_the_policy_fills_in_the_settings(settings):
    """``None`` means the setting; 0 is no attempt count."""
    settings.JETBRIDGE = {"APP_NAME": "t", "MAX_ATTEMPTS": 7, "BACKOFF": [1, 2]}
    jetbridge.handler("a", name="plain")(lambda event: None)
    jetbridge.handler(
        "a", name="own", max_attempts=1, backoff=[9, 8], permanent=(KeyError,), transient=(OSError,)
    )(lambda event: None)
    jetbridge.handler("a", name="one", backoff=3)(lambda event: None)
    jetbridge.handler("a", name="none", backoff=0)(lambda event: None)
    policies = {handler.name: handler.policy(get_settings()) for handler in registry.all()}

    assert (policies["plain"].max_attempts, list(policies["plain"].backoff)) == (7, [1.0, 2.0])
    assert (policies["own"].max_attempts, list(policies["own"].backoff)) == (1, [9, 8])
    assert (policies["own"].permanent, policies["own"].transient) == ((KeyError,), (OSError,))
    assert list(policies["one"].backoff) == [3]
    assert list(policies["none"].backoff) == [0]


BAD = [
    ("no pattern", (), {}, TypeError, "at least one event pattern"),
    ("a bad pattern", ("order.>.x",), {}, ValueError, "'order.>.x'"),
    ("a pattern of another type", (5,), {}, ValueError, "5"),
    ("a bad source", ("a",), {"source": "a.b"}, ValueError, "source"),
    ("no attempts", ("a",), {"max_attempts": 0}, ValueError, "max_attempts"),
    ("True as attempts", ("a",), {"max_attempts": True}, ValueError, "max_attempts"),
    ("half an attempt", ("a",), {"max_attempts": 1.5}, ValueError, "max_attempts"),
    ("text as attempts", ("a",), {"max_attempts": "3"}, ValueError, "max_attempts"),
    ("no time", ("a",), {"timeout": 0}, ValueError, "timeout"),
    ("text as time", ("a",), {"timeout": "5"}, ValueError, "timeout"),
    ("an empty back-off", ("a",), {"backoff": []}, ValueError, "backoff"),
    ("a negative back-off", ("a",), {"backoff": [1, -1]}, ValueError, "backoff"),
    ("text as back-off", ("a",), {"backoff": "5"}, ValueError, "backoff"),
    ("no number as back-off", ("a",), {"backoff": [float("nan")]}, ValueError, "backoff"),
    ("no classes", ("a",), {"permanent": ["KeyError"]}, TypeError, "permanent"),
    ("an instance", ("a",), {"transient": [KeyError()]}, TypeError, "transient"),
    ("one class without a list", ("a",), {"permanent": KeyError}, TypeError, "permanent"),
    ("a long name", ("a",), {"name": "n" * 191}, ValueError, "190"),
    ("an empty name", ("a",), {"name": ""}, ValueError, "name"),
    ("a name with a line break", ("a",), {"name": "a\nb"}, ValueError, "printable"),
]


@pytest.mark.parametrize(
    ("patterns", "options", "error", "word"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
def test_impossible_declarations_are_refused_at_import(patterns, options, error, word):
    """With the argument, what was found and what was expected; nothing is registered."""
    with pytest.raises(error) as caught:
        jetbridge.handler(*patterns, **{"name": "t", **options})(lambda event: None)

    assert word in str(caught.value)
    assert registry.all() == ()


def test_the_decorator_without_brackets_is_explained():
    """``@jetbridge.handler`` alone is a common slip."""
    with pytest.raises(TypeError, match=r'@jetbridge\.handler\("order\.placed"\)'):

        @jetbridge.handler  # type: ignore[arg-type]
        def handle(event: jetbridge.Event) -> None: ...

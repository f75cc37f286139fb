"""Names on the wire: a contract with other languages."""

from __future__ import annotations

import pytest

from jetbridge import topology


def test_the_names_of_the_contract():
    """Subjects, stream and durables exactly as DESIGN of the wire has them."""
    assert topology.subject("orders", "billing") == "orders.sync.billing"
    assert topology.subject("orders", "billing", 3) == "orders.sync.billing.3"
    assert topology.subject("orders", "billing", 0) == "orders.sync.billing.0"
    assert topology.dlq_subject("orders") == "orders.sync.dlq"
    assert topology.own_subjects("orders") == ("orders.sync.>",)
    assert topology.stream_name("orders") == "jetbridge-orders"
    assert topology.durable_name("billing") == "billing-workers"
    assert topology.durable_name("billing", 0) == "billing-workers-0"
    assert topology.filter_subject("orders", "billing") == "orders.sync.billing"
    assert topology.filter_subject("orders", "billing", 2) == "orders.sync.billing.2"


def test_the_source_is_the_first_token():
    """Only its owner may write a subject, so this proves who sent."""
    assert topology.source_of("orders.sync.billing.3") == "orders"


@pytest.mark.parametrize(
    ("subject", "durable"),
    [
        ("orders.sync.billing", "billing-workers"),
        ("orders.sync.billing.11", "billing-workers-11"),
        ("orders", ""),
        ("orders.else", ""),
        ("orders.sync.billing.more.tokens", "billing-workers"),
    ],
)
def test_the_durable_of_a_subject(subject, durable):
    """The reverse of the filter; a durable of somebody else may deliver other subjects, and none is an error."""
    assert topology.durable_of(subject) == durable


@pytest.mark.parametrize("token", ["a", "A-b_9", "x" * 64, "0"])
def test_good_tokens(token):
    """1 to 64 of ``A-Z a-z 0-9 _ -``."""
    assert topology.check_token(token, "app") == token


@pytest.mark.parametrize(
    "token", ["", "x" * 65, "a.b", "a b", "*", ">", "ä", "a\n", "a\x00", None, 5, b"a", "a/b", "$a"]
)
def test_bad_tokens_are_named(token):
    """What, the characters allowed, and what was found."""
    with pytest.raises(ValueError, match=r"The app must be 1 to 64 .* got ") as caught:
        topology.check_token(token, "The app")

    assert repr(token) in str(caught.value)


def test_a_subject_has_at_most_255_characters():
    """The border of the contract."""
    prefix = "orders.sync."
    longest = prefix + ".".join(["x" * 60] * 4)[: 255 - len(prefix)]

    assert len(longest) == 255
    assert topology.check_subject(longest, "orders") == longest
    with pytest.raises(ValueError, match="255"):
        topology.check_subject(longest + "y", "orders")


@pytest.mark.parametrize(
    "subject", ["orders.sync", "orders.sync.", "other.sync.x", "orders.sync.a..b", "orders.sync.*", 5]
)
def test_bad_subjects_are_named(subject):
    """Outside the own stream, empty tokens, wildcards."""
    with pytest.raises(ValueError) as caught:
        topology.check_subject(subject, "orders")

    assert repr(subject) in str(caught.value)

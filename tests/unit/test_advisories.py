"""Reading what the server tells about messages it has given up, and judging a durable."""

from __future__ import annotations

import json

import pytest

from jetbridge import conf
from jetbridge.consumer.durable_check import faults
from jetbridge.jetstream.advisories import Advisory, advisory_subjects, read_advisory, to_ns
from jetbridge.jetstream.provision_spec import wanted

USED_UP, TERMINATED = advisory_subjects("S", "w")
SAID = {"stream": "S", "consumer": "w", "stream_seq": 7, "deliveries": 3}


def test_an_advisory_is_read():
    used_up = read_advisory(USED_UP, json.dumps(SAID).encode())
    terminated = read_advisory(TERMINATED, json.dumps({**SAID, "reason": "why"}).encode())

    assert used_up == Advisory(stream="S", durable="w", sequence=7, deliveries=3, is_terminated=False)
    assert terminated == Advisory(
        stream="S", durable="w", sequence=7, deliveries=3, is_terminated=True, reason="why"
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        json.dumps({**SAID, "stream": "T"}).encode(),
        json.dumps({**SAID, "consumer": "v"}).encode(),
        json.dumps({**SAID, "stream_seq": "many"}).encode(),
        json.dumps({**SAID, "deliveries": None}).encode(),
    ],
)
def test_anything_else_is_none(body):
    """Any user with the right to publish there may send what he likes."""
    assert read_advisory(USED_UP, body) is None


@pytest.mark.parametrize(
    ("instant", "ns"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("2026-11-22T02:51:40.123456789Z", 1_795_315_900_123_456_789),
        ("2026-11-22T02:51:40.000000001Z", 1_795_315_900_000_000_001),
    ],
)
def test_an_instant_keeps_its_nanoseconds(instant, ns):
    """They are part of an identity. Red with a float or a datetime in between."""
    assert to_ns(instant) == ns


def test_a_durable_of_our_own_has_no_faults_and_each_dangerous_change_has_one(tmp_path):
    settings, _ = conf.read(
        {"APP_NAME": "billing", "SOURCES": ["orders"]}, databases={"default": {}}, base_dir=tmp_path
    )
    assert settings is not None
    spec = wanted(settings)[1][0]
    good = {**spec.config, "filter_subject": "orders.sync.billing"}

    assert faults(good, spec, settings) == []
    assert faults({**good, "max_ack_pending": 5, "max_waiting": 1}, spec, settings) == []
    bad = {
        "max_deliver": (5, "max_deliver is 5 instead of -1"),
        "ack_wait": (30 * 10**9, "ack_wait is 30 s, longer than two thirds of LEASE_S (10 s)"),
        "ack_policy": ("none", "ack_policy is 'none'"),
        "filter_subject": ("orders.sync.>", "it reads orders.sync.> instead of orders.sync.billing"),
    }
    for name, (value, words) in bad.items():
        found = faults({**good, name: value}, spec, settings)
        assert len(found) == 1
        assert words in found[0]

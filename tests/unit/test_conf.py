"""The one setting: every fault is found at once, and each says what was found and expected."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from jetbridge import conf
from jetbridge.conf import Destination, Settings, Source

DATABASES: dict[str, object] = {"default": {}, "other": {}}


def read(raw: object) -> tuple[Settings | None, list[str]]:
    return conf.read(raw, databases=DATABASES, base_dir=Path("/base"))


def parsed(**keys: Any) -> Settings:
    settings, faults = read({"APP_NAME": "orders", **keys})
    assert faults == []
    assert settings is not None
    return settings


def test_the_app_name_is_enough():
    """The only required key; the rest has the defaults of the documents."""
    settings = parsed()

    assert (settings.app_name, settings.stream) == ("orders", "jetbridge-orders")
    assert settings.nats_urls == ("nats://127.0.0.1:4222",)
    assert settings.embedded is False
    assert settings.databases == ("default",)
    assert (dict(settings.destinations), dict(settings.sources)) == ({}, {})
    assert (settings.unknown_events, settings.ignored_events) == ("dead_letter", ())
    assert (settings.on_refused, settings.require_atomic) == ("hold_key", False)
    assert settings.handlers_module == "handlers"
    assert settings.max_payload_bytes == 1_000_000
    assert settings.embedded_dir == Path("/base/.jetbridge")
    assert settings.dlq_ttl_s == 14 * 86_400
    assert settings.ack_wait_s <= settings.lease_s * 2 / 3
    assert settings.max_ack_pending >= settings.max_in_flight
    assert settings.inbox_prefix_for("relay") == "_INBOX_orders_relay"


def test_every_key_is_documented_and_is_an_attribute():
    """``conf.py`` is the one list."""
    assert {option.key.lower() for option in conf.OPTIONS} == {field.name for field in fields(Settings)}
    assert all(len(option.help) > 20 for option in conf.OPTIONS)


def test_settings_are_frozen():
    """Nobody changes them behind another's back."""
    with pytest.raises(FrozenInstanceError):
        parsed().app_name = "other"  # type: ignore[misc]


def test_both_spellings_of_destinations_and_sources():
    """A list of names, or a dict of options."""
    assert parsed(DESTINATIONS=["billing"]).destinations == {"billing": Destination(name="billing")}
    assert parsed(DESTINATIONS={"billing": {"partitions": 4, "message_id": False}}).destinations == {
        "billing": Destination(name="billing", partitions=4, message_id=False)
    }
    assert parsed(SOURCES=["shop"]).sources == {"shop": Source(name="shop", stream="jetbridge-shop")}
    assert parsed(SOURCES={"shop": {"stream": "ALL", "partitions": 2}, "depot": {}}).sources == {
        "shop": Source(name="shop", stream="ALL", partitions=2),
        "depot": Source(name="depot", stream="jetbridge-depot"),
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["nats://a:4222", "tls://b"], ("nats://a:4222", "tls://b")),
        ("nats://a:4222, nats://b:4222", ("nats://a:4222", "nats://b:4222")),
        ("embedded", ("embedded",)),
        (["embedded"], ("embedded",)),
    ],
)
def test_spellings_of_the_servers(given, expected):
    """A list, one comma-separated string, or "embedded"."""
    assert parsed(NATS_URLS=given).nats_urls == expected
    assert parsed(NATS_URLS=given).embedded is (expected == ("embedded",))


BAD: list[tuple[dict[Any, Any], list[str]]] = [
    ({"APP_NAME": "a.b"}, ["APP_NAME", "'a.b'"]),
    ({"APP_NAME": "dlq"}, ["APP_NAME", "'dlq'", "reserved"]),
    ({"APP_NAME": ""}, ["APP_NAME"]),
    ({"APP_NAME": None}, ["APP_NAME"]),
    ({"APP_NAME": 5}, ["APP_NAME", "5"]),
    ({"APP_NAME": "x" * 65}, ["APP_NAME", "64"]),
    ({"NATS_URLS": []}, ["NATS_URLS"]),
    ({"NATS_URLS": ""}, ["NATS_URLS"]),
    ({"NATS_URLS": 5}, ["NATS_URLS", "5"]),
    ({"NATS_URLS": ["localhost:4222"]}, ["NATS_URLS", "nats://host:4222", "localhost:4222"]),
    ({"NATS_URLS": "http://a"}, ["NATS_URLS", "http://a"]),
    ({"NATS_URLS": ["embedded", "nats://a"]}, ["NATS_URLS"]),
    ({"DESTINATIONS": "billing"}, ["DESTINATIONS", "'billing'"]),
    ({"DESTINATIONS": ["a.b"]}, ["DESTINATIONS", "'a.b'"]),
    ({"DESTINATIONS": ["dlq"]}, ["DESTINATIONS", "'dlq'"]),
    ({"DESTINATIONS": ["a", "a"]}, ["DESTINATIONS", "twice"]),
    ({"DESTINATIONS": {"a": {"partition": 2}}}, ["DESTINATIONS", "partition", "partitions"]),
    ({"DESTINATIONS": {"a": {"partitions": 0}}}, ["DESTINATIONS", "'a'", "partitions", "0"]),
    ({"DESTINATIONS": {"a": {"partitions": True}}}, ["DESTINATIONS", "partitions"]),
    ({"DESTINATIONS": {"a": {"message_id": 1}}}, ["DESTINATIONS", "message_id"]),
    ({"DESTINATIONS": {"a": None}}, ["DESTINATIONS", "None"]),
    ({"DESTINATIONS": [["a"]]}, ["DESTINATIONS"]),
    ({"DESTINATIONS": [{}]}, ["DESTINATIONS"]),
    ({"SOURCES": {"a": {"stream": "a b"}}}, ["SOURCES", "'a'", "stream", "'a b'"]),
    ({"SOURCES": 5}, ["SOURCES", "5"]),
    ({"STREAM": "a.b"}, ["STREAM", "'a.b'"]),
    ({"REPLICAS": 0}, ["REPLICAS", "1", "5", "0"]),
    ({"LEASE_S": "15"}, ["LEASE_S", "'15'"]),
    ({"LEASE_S": float("nan")}, ["LEASE_S", "nan"]),
    ({"CONCURRENCY": 1.5}, ["CONCURRENCY", "1.5"]),
    ({"CONCURRENCY": True}, ["CONCURRENCY", "True"]),
    ({"REQUIRE_ATOMIC": 1}, ["REQUIRE_ATOMIC", "True or False", "1"]),
    ({"DATABASES": "default"}, ["DATABASES", "'default'"]),
    ({"DATABASES": []}, ["DATABASES"]),
    ({"DATABASES": ["default", "default"]}, ["DATABASES"]),
    ({"DATABASES": ["nowhere"]}, ["DATABASES", "'nowhere'", "default, other"]),
    ({"UNKNOWN_EVENTS": "drop"}, ["UNKNOWN_EVENTS", "'dead_letter'", "'ignore'", "'drop'"]),
    ({"UNKNOWN_EVENTS": []}, ["UNKNOWN_EVENTS"]),
    ({"ON_REFUSED": "wait"}, ["ON_REFUSED", "'hold_key'", "'pass'", "'wait'"]),
    ({"IGNORED_EVENTS": ["a.>.b"]}, ["IGNORED_EVENTS", "'a.>.b'"]),
    ({"IGNORED_EVENTS": "audit.>"}, ["IGNORED_EVENTS", "'audit.>'"]),
    ({"BACKOFF": []}, ["BACKOFF"]),
    ({"BACKOFF": 5}, ["BACKOFF", "5"]),
    ({"BACKOFF": [-1]}, ["BACKOFF", "-1"]),
    ({"HANDLERS_MODULE": "my handlers"}, ["HANDLERS_MODULE", "'my handlers'"]),
    ({"INBOX_PREFIX": "_INBOX.>"}, ["INBOX_PREFIX", "'_INBOX.>'"]),
    ({"INBOX_PREFIX": "{who}"}, ["INBOX_PREFIX", "{app}", "{role}"]),
    ({"INBOX_PREFIX": "{app.__class__}"}, ["INBOX_PREFIX"]),
    ({"EMBEDDED_DIR": 5}, ["EMBEDDED_DIR", "5"]),
    ({"MAX_PAYLOAD_BYTES": 10}, ["MAX_PAYLOAD_BYTES", "1024", "10"]),
    ({"DESTINATION": ["a"]}, ["'DESTINATION'", "'DESTINATIONS'"]),
    ({"nats_urls": []}, ["'nats_urls'"]),
    ({5: 1}, ["5"]),
    ({"LEASE_S": 9, "PUBLISH_TIMEOUT_S": 1, "ACK_WAIT_S": 6.5}, ["ACK_WAIT_S", "LEASE_S", "6.5", "9"]),
    ({"LEASE_S": 9, "PUBLISH_TIMEOUT_S": 7, "ACK_WAIT_S": 5}, ["PUBLISH_TIMEOUT_S", "LEASE_S", "7", "9"]),
    ({"MAX_ACK_PENDING": 10, "MAX_IN_FLIGHT": 20}, ["MAX_ACK_PENDING", "MAX_IN_FLIGHT", "10", "20"]),
]


@pytest.mark.parametrize(("keys", "words"), BAD, ids=[str(keys)[:60] for keys, _ in BAD])
def test_a_fault_names_the_key_what_was_found_and_what_was_expected(keys, words):
    """Exactly one sentence for one fault."""
    settings, faults = read({"APP_NAME": "orders", **keys})

    assert settings is None
    assert len(faults) == 1, faults
    assert [word for word in words if word not in faults[0]] == [], faults


@pytest.mark.parametrize("raw", [None, [], "orders", 5, [("APP_NAME", "orders")]])
def test_what_is_no_dict_is_one_fault(raw):
    """With an example of the least."""
    settings, faults = read(raw)

    assert settings is None
    assert len(faults) == 1
    assert 'dict with at least "APP_NAME"' in faults[0]


def test_all_faults_are_listed_at_once():
    """Unknown keys, wrong types and more: nobody repairs one to meet the next."""
    _, faults = read({"DESTINATION": 1, "LEASE_S": "x", "NATS_URLS": 5, "SOURCES": ["a.b"], "CONCURRENCY": 0})

    for word in ("DESTINATION", "LEASE_S", "NATS_URLS", "SOURCES", "CONCURRENCY", "APP_NAME"):
        assert any(word in fault for fault in faults), word
    assert len(faults) == 6


def test_impossible_combinations_are_all_listed():
    """Values that are fine alone and impossible together."""
    _, faults = read(
        {"APP_NAME": "a", "LEASE_S": 1, "DATABASES": ["x", "y"], "MAX_IN_FLIGHT": 2_000, "MAX_ACK_PENDING": 1}
    )

    assert len(faults) == 5, faults


def test_no_password_is_shown_in_a_fault():
    """A fault ends in logs and tickets."""
    for given in (
        ["http://user:secret@host"],
        "nats:/user:secret@host",
        ["user:secret@host:4222"],
        ["nats://u:secret@h", 5],
    ):
        _, faults = read({"APP_NAME": "a", "NATS_URLS": given})
        assert faults
        assert "secret" not in "".join(faults), faults


def test_the_cache_follows_the_setting(settings):
    """Reset on ``setting_changed``."""
    settings.JETBRIDGE = {"APP_NAME": "one"}
    assert conf.get_settings().app_name == "one"
    assert conf.get_settings() is conf.get_settings()
    settings.JETBRIDGE = {"APP_NAME": "two"}
    assert conf.get_settings().app_name == "two"


def test_faults_are_raised_together_one_a_line(settings):
    """``get_settings()`` raises ``ImproperlyConfigured``."""
    settings.JETBRIDGE = {"APP_NAME": "a b", "LEASE_S": 0}
    with pytest.raises(ImproperlyConfigured) as caught:
        conf.get_settings()

    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_setting_is_explained(settings):
    """``"jetbridge"`` in INSTALLED_APPS and no ``JETBRIDGE``."""
    del settings.JETBRIDGE
    conf.get_settings.cache_clear()
    with pytest.raises(ImproperlyConfigured, match="APP_NAME"):
        conf.get_settings()

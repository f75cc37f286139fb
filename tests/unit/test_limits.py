"""How long things may take follows from the settings."""

from __future__ import annotations

import pytest
from django.db import connections

from jetbridge.conf import Settings, get_settings
from jetbridge.runtime import sessions
from jetbridge.runtime.limits import limits_of


@pytest.fixture
def known(settings) -> Settings:
    settings.JETBRIDGE = {
        **settings.JETBRIDGE,
        "DATABASE_TIMEOUT_S": 30,
        "LEASE_S": 15,
        "PUBLISH_TIMEOUT_S": 5,
    }
    return get_settings()


def test_limits_follow_from_deadlines(known, monkeypatch):
    """A tick may take what its parts may take; a renewal beyond two thirds of the term is worth nothing."""
    monkeypatch.setattr(sessions, "deadline_s", lambda wanted_s, _aliases: wanted_s)
    limits = limits_of(known, ["default", "other"])

    assert (limits.query_s, limits.lease_query_s) == (30.0, 10.0)
    assert (limits.relay_s, limits.dispatch_s, limits.upkeep_s) == (70.0, 90.0, 30.0)


@pytest.mark.sqlite
def test_on_sqlite_no_deadline_is_shorter_than_its_own_wait_for_the_writer(monkeypatch):
    """Red if it is: each try would leave one thread more waiting for the same writer."""
    options = connections.settings["default"].get("OPTIONS", {})
    monkeypatch.setitem(connections.settings["default"], "OPTIONS", {**options, "timeout": 20})

    assert sessions.deadline_s(10.0, ["default"]) == 25.0
    assert sessions.deadline_s(30.0, ["default"]) == 30.0


@pytest.mark.postgres
def test_elsewhere_a_deadline_is_what_was_wanted():
    assert sessions.deadline_s(10.0, ["default"]) == 10.0

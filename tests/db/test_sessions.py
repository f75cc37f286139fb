"""How a worker's sessions are set: what a stopped copy holds is freed by the database."""

from __future__ import annotations

import threading

import psycopg
import pytest
from django.db import DatabaseError, connection, connections, transaction

from jetbridge.models import Lease
from jetbridge.runtime.sessions import HARDENED, harden_connections, idle_limit_s, limit_idle_transactions
from tests.waiting import eventually

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, databases=["default", "other"])]


def in_a_thread(job):
    """Run ``job`` with connections of its own; its result or error."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(job())
        except BaseException as error:
            found.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    return found[0]


def setting(name: str, alias: str = "default") -> str:
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SHOW {name}")
        return str(cursor.fetchone()[0])


@pytest.fixture
def limited():
    undo = limit_idle_transactions(["default"], idle_s=0.5)
    yield
    undo()
    for name in HARDENED:
        connections.settings["default"]["OPTIONS"].pop(name, None)


def test_new_sessions_of_the_alias_have_the_limit_and_no_others(limited):
    assert in_a_thread(lambda: setting("idle_in_transaction_session_timeout")) == "500ms"
    assert in_a_thread(lambda: setting("idle_in_transaction_session_timeout", "other")) == "0"


def test_the_server_asks_a_dead_machine_too(limited):
    """
    Read back from the socket at the server's end: what frees the rows of a copy that was powered off, which
    otherwise takes the two hours of the operating system. Red with the client's options alone.
    """

    def there() -> list[str]:
        names = ("idle", "interval", "count")
        return [setting(f"tcp_keepalives_{name}") for name in names] + [
            setting("tcp_user_timeout"),
            setting("client_connection_check_interval"),
        ]

    assert in_a_thread(there) == ["10", "5", "3", "30000", "10s"]


@pytest.mark.parametrize(("timeout_s", "limit_s"), [(60, 90), (5, 7.5), (0.5, 1.5), (3600, 3630)])
def test_the_limit_of_a_handler_follows_its_time_out(timeout_s, limit_s):
    """Half of it more, from one to thirty seconds: a key can be had back as soon as one likes."""
    assert idle_limit_s(timeout_s) == limit_s


def test_an_idle_transaction_frees_what_it_holds(limited):
    """The inbox row of a stopped copy: another may have it after the limit, and the copy cannot commit any more."""
    Lease.objects.create(name="row", owner="", expires_at="2026-01-01T00:00:00Z")
    held, over = threading.Event(), threading.Event()
    errors: list[object] = []

    def stopped() -> None:
        try:
            with transaction.atomic():
                Lease.objects.filter(name="row").update(owner="stopped")
                held.set()
                assert over.wait(20)
                Lease.objects.count()
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=stopped)
    thread.start()
    assert held.wait(10)
    assert Lease.objects.filter(name="row").update(owner="other") == 1  # waits for the limit
    over.set()
    thread.join(10)

    assert isinstance(errors[0], DatabaseError)
    assert Lease.objects.get().owner == "other"


def test_keepalives_find_a_dead_machine(limited):
    """Of the options that reach the driver; what a project has set itself stays."""

    def parameters() -> dict[str, str]:
        connection.ensure_connection()
        assert isinstance(connection.connection, psycopg.Connection)
        return connection.connection.info.get_parameters()

    assert in_a_thread(parameters) != {}
    options = connections.settings["default"]["OPTIONS"]
    assert {name: options[name] for name in HARDENED} == HARDENED


def test_a_relays_sessions_notice_a_dead_network_and_have_no_idle_limit():
    """The driver takes every option; a relay has no transaction of somebody else's to limit."""
    options = connections.settings["default"].setdefault("OPTIONS", {})
    harden_connections(["default"])
    try:
        assert options["tcp_user_timeout"] == 30_000
        assert options["connect_timeout"] == 10
        assert in_a_thread(lambda: setting("idle_in_transaction_session_timeout")) == "0"
        assert in_a_thread(lambda: setting("tcp_user_timeout", "other")) == "0"
    finally:
        for name in HARDENED:
            options.pop(name, None)


def test_a_projects_own_keepalives_stay():
    options = connections.settings["default"].setdefault("OPTIONS", {})
    options["keepalives_idle"] = 99
    undo = limit_idle_transactions(["default"], idle_s=60)
    try:
        assert options["keepalives_idle"] == 99
        assert options["keepalives_count"] == HARDENED["keepalives_count"]
    finally:
        undo()
        for name in HARDENED:
            options.pop(name, None)


def test_undone_it_sets_nothing_any_more():
    limit_idle_transactions(["default"], idle_s=5)()

    eventually(lambda: in_a_thread(lambda: setting("idle_in_transaction_session_timeout")) == "0", 2)

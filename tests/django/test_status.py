"""``manage.py jetbridge_status``: the document, caps, thresholds, and a broker that is there, away or forbids."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

import jetbridge
from jetbridge.jetstream.permissions import ROLES, Role, render
from jetbridge.leases import store as leases
from jetbridge.models import Archive, DeadLetter, Deferred, Inbox, Outbox, Scheduled, Worker
from jetbridge.monitor import database as tables
from testproject.processes import free_port
from tests.django.commands import run, run_json
from tests.servers import NatsServer
from tests.worlds import World, no_handlers

ROOT = Path(__file__).resolve().parents[2]
CONTENT: dict[str, Any] = {
    "kind": "event",
    "event_type": "order.placed",
    "destination": "billing",
    "subject": "orders.sync.billing",
    "bucket": 1,
    "headers": {},
    "body": b"{}",
}
MESSAGE: dict[str, Any] = {
    "handler": "h",
    "source": "billing",
    "event_type": "order.placed",
    "subject": "s",
    "stream": "s",
    "sequence": 1,
    "headers": {},
    "body": b"{}",
}


@pytest.fixture
def away(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that refuses connections; nobody waits long for it here."""
    monkeypatch.setattr("jetbridge.management.commands.jetbridge_status.NATS_S", 0.1)
    settings.JETBRIDGE = {**settings.JETBRIDGE, "NATS_URLS": [f"nats://127.0.0.1:{free_port()}"]}


@pytest.fixture
def world(transactional_db: None, nats_server: NatsServer) -> Iterator[World]:
    with no_handlers():
        yield World(nats_server.url).provision()


def fill() -> None:
    """Something in every state."""
    now = timezone.now()
    for number, state in enumerate(["ready", "ready", "held", "parked", "refused"]):
        Outbox.objects.create(**CONTENT, event_id=f"o{number}", state=state)
    Outbox.objects.filter(event_id="o1").update(state_at=now - timedelta(minutes=5))
    for number, delay in enumerate([-5, 5, 5]):
        Scheduled.objects.create(**CONTENT, event_id=f"s{number}", due_at=now + timedelta(minutes=delay))
    for number in range(4):
        Archive.objects.create(
            **CONTENT, id=number + 1, event_id=f"a{number}", stream="s", sequence=number, duplicate=False
        )
    inbox = {name: value for name, value in MESSAGE.items() if name not in ("subject", "headers", "body")}
    for number, state in enumerate(["processed", "processed", "processed", "retrying", "dead", "deferred"]):
        Inbox.objects.create(**inbox, event_id=f"i{number}", state=state)
    for number, due in enumerate([now - timedelta(1), None, now + timedelta(1)]):
        Deferred.objects.create(**MESSAGE, event_id=f"d{number}", kind="retry", due_at=due)
    for number, state in enumerate(["open", "open", "redriving", "redriven", "discarded"]):
        DeadLetter.objects.create(**MESSAGE, event_id=f"x{number}", state=state, reason="r", attempts=1)


@pytest.mark.django_db
def test_the_document_has_the_keys_of_the_interface(away: None) -> None:
    fill()
    leases.ensure(["relay/0"], using="default")
    leases.acquire(["relay/0"], owner="me", ttl_s=60, limit=1, using="default")
    leases.beat("me", role="relay", host="h", pid=1, version="1", info={"buckets": 1}, using="default")

    code, document = run_json("jetbridge_status")

    assert code == 0
    assert list(document) == ["app", "idle", "databases", "nats", "leases", "workers", "capped"]
    [database] = document["databases"]
    age = database["outbox"].pop("oldest_ready_s")
    assert 299 < age < 330
    assert database == {
        "alias": "default",
        "outbox": {"ready": 2, "held": 1, "parked": 1, "refused": 1, "scheduled": 3},
        "archive": {"rows": 4},
        "inbox": {"processed": 3, "retrying": 1, "dead": 1},
        "deferred": {"due": 1, "waiting": 2},
        "dead_letters": {"open": 2, "redriving": 1},
    }
    assert document["nats"] == {
        "reachable": False,
        "server_version": None,
        "streams": [{"name": "jetbridge-orders", "messages": None}],
        "consumers": [
            {
                "stream": "jetbridge-billing",
                "name": "orders-workers",
                "pending": None,
                "ack_pending": None,
                "redelivered": None,
            }
        ],
    }
    [lease], [worker] = document["leases"], document["workers"]
    assert (lease["name"], lease["owner"], lease["epoch"]) == ("relay/0", "me", 1)
    assert (worker["id"], worker["role"], worker["info"]) == ("me", "relay", {"buckets": 1})
    assert 0 <= worker["beat_age_s"] < 10
    assert (document["idle"], document["capped"]) == (False, [])


@pytest.mark.django_db
def test_a_service_without_rows_is_shown_as_such(away: None) -> None:
    code, document = run_json("jetbridge_status")

    assert code == 0
    assert document["databases"][0]["outbox"]["oldest_ready_s"] is None
    assert document["idle"] is False, "what a broker that is away holds is not known"


@pytest.mark.django_db
def test_a_publisher_alone_is_idle_without_its_broker(settings: Any, away: None) -> None:
    settings.JETBRIDGE = {**settings.JETBRIDGE, "SOURCES": []}
    assert run_json("jetbridge_status")[1]["idle"] is True

    jetbridge.publish("order.placed", {"id": 1})
    assert run_json("jetbridge_status")[1]["idle"] is False


@pytest.mark.django_db
def test_a_planned_event_is_no_work_until_it_is_due(settings: Any, away: None) -> None:
    settings.JETBRIDGE = {**settings.JETBRIDGE, "SOURCES": []}
    jetbridge.publish("order.placed", {"id": 1}, delay=3_600)
    assert run_json("jetbridge_status")[1]["idle"] is True

    Scheduled.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    assert run_json("jetbridge_status")[1]["idle"] is False


@pytest.mark.django_db
def test_numbers_stop_at_their_cap_and_say_so(away: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fill()
    monkeypatch.setattr(tables, "CAP", 2)

    _, capped = run_json("jetbridge_status")
    _, exact = run_json("jetbridge_status", "--exact")

    assert capped["capped"] == ["default.outbox.scheduled", "default.archive.rows", "default.inbox.processed"]
    assert capped["databases"][0]["archive"]["rows"] == 2
    assert capped["databases"][0]["outbox"]["ready"] == 2, "exactly the cap is no cut"
    assert exact["capped"] == []
    assert exact["databases"][0]["archive"]["rows"] == 4
    assert "sent 2+" in run("jetbridge_status")[1]


@pytest.mark.django_db
def test_a_threshold_above_the_cap_can_be_crossed(away: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "CAP", 2)
    for number in range(5):
        Outbox.objects.create(**CONTENT, event_id=f"o{number}")

    assert run("jetbridge_status", "--fail-on", "ready=5")[0] == 3
    assert run("jetbridge_status", "--fail-on", "ready=6")[0] == 0


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ("outbox-age=60s", 3),
        ("outbox-age=4m", 3),
        ("outbox-age=1h", 0),
        ("dead=2", 3),
        ("dead=3", 0),
        ("dead=3,refused=1", 3),
        ("parked=2,held=2,refused=2,retrying=2,deferred=2,ready=3", 0),
        ("pending=1,unacked=1", 0),
        ("nats-away=1", 3),
        ("relays=1", 3),
        ("consumers=1", 3),
    ],
)
def test_thresholds(limits: str, code: int, away: None) -> None:
    fill()

    assert run("jetbridge_status", "--fail-on", limits)[0] == code


@pytest.mark.django_db
def test_a_crossed_threshold_is_named(away: None, capsys: pytest.CaptureFixture[str]) -> None:
    fill()

    code, document = run_json("jetbridge_status", "--fail-on", "dead=1")

    assert code == 3
    assert document["databases"][0]["dead_letters"]["open"] == 2
    assert "dead is 2, the limit is 1" in capsys.readouterr().err
    assert "dead is 2, the limit is 1" in run("jetbridge_status", "--fail-on", "dead=1")[1]


@pytest.mark.django_db
def test_a_running_process_satisfies_its_threshold_and_a_silent_one_does_not(away: None) -> None:
    leases.beat("me", role="relay", host="web7", pid=1, version="1", info={}, using="default")
    assert run("jetbridge_status", "--fail-on", "relays=1")[0] == 0

    Worker.objects.update(beat_at=timezone.now() - timedelta(minutes=2))
    code, text = run("jetbridge_status", "--fail-on", "relays=1")
    assert code == 3
    assert "relay@web7: last seen 2m" in text


@pytest.mark.django_db
def test_a_stuck_process_is_named_and_crosses_its_threshold(away: None) -> None:
    """It still beats, so it counts as running: red if nothing else told it from one that works."""
    info = {"stuck": ["relay"], "overdue": ["t.slow shop/e1"]}
    leases.beat("me", role="relay", host="web7", pid=12, version="1", info=info, using="default")

    code, text = run("jetbridge_status", "--fail-on", "stuck=1,overdue=1")

    assert code == 3
    [line] = [line for line in text.splitlines() if " processes " in line]
    assert line.startswith("FAIL")
    assert "relay@web7 pid 12: stuck: relay" in line
    assert "relay@web7 pid 12: overdue: t.slow shop/e1" in line
    assert "stuck is 1, the limit is 1" in text

    Worker.objects.update(info={"stuck": [], "overdue": None})
    assert run("jetbridge_status", "--fail-on", "stuck=1,overdue=1")[0] == 0


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("age_s", "relay", "level"), [(120, None, "WARN"), (120, 1, "OK"), (120, 300, "WARN"), (5, None, "OK")]
)
def test_rows_that_nobody_carries_are_a_warning(
    age_s: int, relay: int | None, level: str, away: None
) -> None:
    """Red if an outbox that only grows is "OK": the relay that was forgotten has no row that could be silent."""
    jetbridge.publish("order.placed", {"id": 1})
    Outbox.objects.update(state_at=timezone.now() - timedelta(seconds=age_s))
    if relay is not None:
        Worker.objects.create(
            id="w", role="relay", host="h", pid=1, beat_at=timezone.now() - timedelta(seconds=relay)
        )

    [line] = [line for line in run("jetbridge_status")[1].splitlines() if " outbox " in line]

    assert line.split()[0] == level
    assert ("no relay is running" in line) == (level == "WARN")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("dead", "dead needs a number"),
        ("dead=60s", "dead needs a number"),
        ("outbox-age=soon", "outbox-age needs a duration such as 60s"),
        ("deads=1", "'deads' is no threshold; there are outbox-age"),
        ("dead=0", "above 0"),
        ("", "name=value is expected, such as dead=1; got ''"),
        (" , ", "name=value is expected"),
    ],
)
def test_a_wrong_threshold_says_what_is_possible(value: str, words: str) -> None:
    with pytest.raises(CommandError) as raised:
        call_command("jetbridge_status", "--fail-on", value)

    assert words in str(raised.value)


@pytest.mark.django_db
def test_the_screen_fits_and_nothing_is_written(settings: Any, away: None) -> None:
    fill()
    sources = {f"app{number}": {"partitions": 8} for number in range(20)}
    settings.JETBRIDGE = {**settings.JETBRIDGE, "SOURCES": sources}

    with CaptureQueriesContext(connection) as queries:
        code, text = run("jetbridge_status", "--fail-on", "dead=1,refused=1,relays=1")

    assert code == 3
    assert len(text.rstrip().splitlines()) <= 20
    assert "\x1b" not in text
    assert all(one["sql"].lstrip().startswith("SELECT") for one in queries)


@pytest.mark.django_db(databases=["default", "other"])
def test_every_database_is_looked_at(settings: Any, away: None) -> None:
    settings.JETBRIDGE = {**settings.JETBRIDGE, "DATABASES": ["default", "other"]}
    jetbridge.publish("order.placed", {"id": 1}, using="other")

    _, both = run_json("jetbridge_status")
    _, one = run_json("jetbridge_status", "--database", "default")

    assert [(d["alias"], d["outbox"]["ready"]) for d in both["databases"]] == [("default", 0), ("other", 1)]
    assert [d["alias"] for d in one["databases"]] == ["default"]


# --- with a broker ---------------------------------------------------------------------------------


def test_the_way_of_an_event_is_seen(world: World) -> None:
    """Waiting in the outbox, then in the stream, then nowhere."""
    jetbridge.handler("order.placed", name="sink")(lambda event: None)
    with world.as_shop():
        jetbridge.publish("order.placed", {"id": 1})
        assert run_json("jetbridge_status")[1]["idle"] is False
    world.relay()

    with world.as_shop():
        _, shop = run_json("jetbridge_status")
    with world.as_billing():
        _, before = run_json("jetbridge_status")
        assert run("jetbridge_status", "--fail-on", "pending=1")[0] == 3
    world.consume()
    with world.as_billing():
        _, after = run_json("jetbridge_status")

    assert (shop["idle"], shop["nats"]["streams"]) == (
        True,
        [{"name": f"jetbridge-{world.shop}", "messages": 1}],
    )
    [durable] = before["nats"]["consumers"]
    assert (before["idle"], durable["pending"], durable["ack_pending"]) == (False, 1, 0)
    assert (durable["stream"], durable["name"]) == (f"jetbridge-{world.shop}", f"{world.billing}-workers")
    assert after["idle"] is True
    assert after["nats"]["reachable"] is True
    assert int(after["nats"]["server_version"].split(".")[0]) >= 2


@pytest.mark.django_db
def test_what_is_not_provisioned_is_not_known(nats_server: NatsServer) -> None:
    with World(nats_server.url).as_billing():
        code, document = run_json("jetbridge_status")
        text = run("jetbridge_status")[1]

    assert code == 0
    assert document["nats"]["reachable"] is True
    assert document["nats"]["streams"][0]["messages"] is None
    assert document["nats"]["consumers"][0]["pending"] is None
    assert document["idle"] is False
    assert "not there, or not readable" in text


@pytest.mark.parametrize("role", ROLES)
def test_the_credentials_of_any_role_do(
    role: Role,
    transactional_db: None,
    make_nats_server: Callable[..., NatsServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a role may not read is null; nothing is an error, and nothing takes long."""
    from jetbridge import conf

    keys = {"APP_NAME": "orders", "DESTINATIONS": ["billing"], "SOURCES": ["billing"]}
    with override_settings(JETBRIDGE=keys):
        settings = conf.get_settings()
    users = [render(settings, one) for one in ROLES]
    for one in ROLES:
        monkeypatch.setenv(f"ORDERS_{one.upper()}_PASSWORD", "secret")
    billing = '{ user: billing, password: secret, permissions: { publish: ">", subscribe: ">" } }'
    server = make_nats_server("authorization { users: [\n" + "\n".join([*users, billing]) + "\n] }")

    def urls(user: str) -> list[str]:
        return [server.url.replace("//", f"//{user}:secret@")]

    for app, peer in (("orders", "billing"), ("billing", "orders"), ("orders", "billing")):
        admin = "billing" if app == "billing" else "orders_admin"
        own = {"APP_NAME": app, "DESTINATIONS": [peer], "SOURCES": [peer], "NATS_URLS": urls(admin)}
        with override_settings(JETBRIDGE=own):
            run("jetbridge_provision")

    started = time.monotonic()
    with override_settings(JETBRIDGE={**keys, "NATS_URLS": urls(f"orders_{role}")}):
        code, document = run_json("jetbridge_status")

    nats = document["nats"]
    assert (code, nats["reachable"]) == (0, True)
    assert (nats["streams"][0]["messages"] is not None) == (role in ("relay", "admin"))
    assert (nats["consumers"][0]["pending"] is not None) == (role in ("worker", "admin"))
    assert time.monotonic() - started < 10


def test_a_database_that_is_away_is_exit_4() -> None:
    environment = {
        **os.environ,
        "TESTPROJECT_DB": f"postgresql://postgres@127.0.0.1:{free_port()}",
        "NATS_URL": f"nats://127.0.0.1:{free_port()}",
    }
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    result = subprocess.run(
        [sys.executable, "manage.py", "jetbridge_status", "--settings", "testproject.settings.orders"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 4
    assert "Database 'default' cannot be reached" in result.stderr


@pytest.mark.postgres
def test_a_session_that_the_database_ended_is_exit_4(transactional_db: None) -> None:
    """The database is back when the command asks. Red without the look at whose fault it was: a traceback, and 1."""
    connection.ensure_connection()
    known = connection.settings_dict
    with psycopg.connect(
        host=known["HOST"], port=known["PORT"], user=known["USER"], dbname=known["NAME"], autocommit=True
    ) as other:
        ended = other.execute("SELECT pg_terminate_backend(%s)", [connection.connection.info.backend_pid])
        assert ended.fetchone() == (True,)

    code, document = run_json("jetbridge_dlq", "list")

    assert (code, document["error"]["code"]) == (4, 4)
    assert "Run the command again." in document["error"]["text"]
    assert run_json("jetbridge_dlq", "list")[0] == 0

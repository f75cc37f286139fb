"""``manage.py jetbridge_dlq``: selecting, showing, discarding, and redriving through a real consumer."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

import jetbridge
from jetbridge.models import DeadLetter, Deferred, Inbox
from testproject.billing.models import Invoice
from tests.django.commands import run, run_json
from tests.running import consuming
from tests.servers import NatsServer
from tests.worlds import World, no_handlers


@pytest.fixture
def world(transactional_db: None, nats_server: NatsServer) -> Iterator[World]:
    with no_handlers():
        yield World(nats_server.url).provision()


class Till:
    """A handler that fails until it is repaired. Each success writes an invoice."""

    def __init__(self, name: str = "till") -> None:
        self.name = name
        self.broken = True
        self.runs: list[str] = []
        jetbridge.handler("order.placed", name=name, max_attempts=1)(self)

    def __call__(self, event: jetbridge.Event) -> None:
        self.runs.append(str(event.event_id))
        Invoice.objects.create(order_id=int(str(event.payload["id"])), event_id=event.event_id or "", total=1)
        if self.broken:
            raise ValueError(f"the till is stuck at order {event.payload['id']}")


def publish(world: World, *ids: int, key: str | None = None) -> list[str]:
    with world.as_shop():
        found = [jetbridge.publish("order.placed", {"id": id}, key=key) for id in ids]
    world.relay()
    return found


def consume(world: World) -> int:
    with world.as_billing():
        return run("jetbridge_consume", "--until-empty", "--timeout", "30")[0]


def dlq(world: World, *arguments: str) -> tuple[int, dict[str, Any]]:
    with world.as_billing():
        return run_json("jetbridge_dlq", *arguments)


def letter(**values: Any) -> DeadLetter:
    """A dead letter without the story that led to it."""
    known: dict[str, Any] = {
        "handler": "billing.create_invoice",
        "source": "orders",
        "event_id": "e-1",
        "event_type": "order.placed",
        "key": "order:1",
        "subject": "orders.sync.billing",
        "stream": "jetbridge-orders",
        "sequence": 1,
        "headers": {"traceparent": "00-1"},
        "body": b'{"event_id":"e-1"}',
        "reason": "max_attempts",
        "error_class": "ValueError",
        "error": "no",
        "attempts": 3,
    }
    return DeadLetter.objects.create(**{**known, **values})


# --- redrive, the whole way ------------------------------------------------------------------------


def test_a_redriven_event_has_its_effect_once(world: World) -> None:
    till = Till()
    [event_id] = publish(world, 7)
    assert consume(world) == 3
    assert Invoice.objects.count() == 0
    dead = DeadLetter.objects.get()

    till.broken = False
    code, acted = dlq(world, "redrive", str(dead.pk))
    redriving = DeadLetter.objects.get().state

    assert (code, acted) == (0, {"matched": 1, "done": 1, "skipped": [], "ids": [dead.pk]})
    assert redriving == "redriving"
    assert consume(world) == 0
    assert consume(world) == 0
    assert [one.event_id for one in Invoice.objects.all()] == [event_id]
    dead.refresh_from_db()
    assert (dead.state, dead.redrives) == ("redriven", 1)
    assert "@" in dead.resolved_by
    assert Inbox.objects.get(handler="till").state == "processed"
    assert not Deferred.objects.exists()


def test_an_event_that_fails_again_is_the_same_dead_letter(world: World) -> None:
    till = Till()
    publish(world, 7)
    consume(world)
    dead = DeadLetter.objects.get()

    for number in (1, 2):
        assert dlq(world, "redrive", "--handler", "till")[0] == 0
        assert consume(world) == 3
        dead.refresh_from_db()
        assert (dead.state, dead.redrives, dead.attempts) == ("open", number, 1)

    till.broken = False
    dlq(world, "redrive", "--all")
    assert consume(world) == 0
    assert (DeadLetter.objects.count(), Invoice.objects.count(), len(till.runs)) == (1, 1, 4)


def test_dead_letters_of_a_key_run_in_the_order_in_which_they_were_published(world: World) -> None:
    till = Till()
    ids = publish(world, *range(8), key="one")
    consume(world)
    till.broken, till.runs = False, []
    letters = [str(one.pk) for one in DeadLetter.objects.order_by("-id")]

    code, acted = dlq(world, "redrive", *letters)
    consume(world)

    assert (code, acted["done"]) == (0, 8)
    assert till.runs == ids


def test_an_unknown_event_runs_once_its_handler_exists(world: World) -> None:
    publish(world, 7)
    assert consume(world) == 3
    dead = DeadLetter.objects.get()
    assert (dead.handler, dead.reason) == ("", "unknown_event")

    code, acted = dlq(world, "redrive", str(dead.pk))
    assert (code, acted["done"]) == (1, 0)
    assert "no handler wants 'order.placed'" in acted["skipped"][0]["why"]

    tills = [Till("one"), Till("two")]
    for till in tills:
        till.broken = False
    assert dlq(world, "redrive", str(dead.pk))[0] == 0
    assert consume(world) == 0
    dead.refresh_from_db()
    assert dead.state == "redriven"
    assert [len(till.runs) for till in tills] == [1, 1]
    assert Invoice.objects.count() == 2


def test_waiting_tells_what_became_of_it(world: World) -> None:
    """A redrive that nobody runs ends with 6; one that fails again is a failed act."""
    Till()
    publish(world, 7)
    consume(world)
    dead = DeadLetter.objects.get()

    code, acted = dlq(world, "redrive", str(dead.pk), "--wait", "0.3")
    assert (code, acted["done"]) == (6, 0)
    assert "has not run" in acted["skipped"][0]["why"]

    consume(world)
    with consuming(world):
        code, acted = dlq(world, "redrive", str(dead.pk), "--wait", "20")
    assert (code, acted["done"]) == (1, 0)
    assert "failed again" in acted["skipped"][0]["why"]
    assert "the till is stuck" in acted["skipped"][0]["why"]


def test_waiting_for_a_redrive_that_works(world: World) -> None:
    till = Till()
    publish(world, 7)
    consume(world)
    till.broken = False

    with consuming(world):
        code, acted = dlq(world, "redrive", "--all", "--wait", "20")

    assert (code, acted["done"], Invoice.objects.count()) == (0, 1, 1)


# --- acts without a broker -------------------------------------------------------------------------


@pytest.mark.django_db
def test_discard_records_who_and_why() -> None:
    dead = letter()

    code, acted = run_json("jetbridge_dlq", "discard", str(dead.pk), "--note", "a test order", "--no-input")

    assert (code, acted) == (0, {"matched": 1, "done": 1, "skipped": [], "ids": [dead.pk]})
    dead.refresh_from_db()
    assert (dead.state, dead.note) == ("discarded", "a test order")
    assert "@" in dead.resolved_by
    assert dead.resolved_at is not None


@pytest.mark.django_db
def test_discard_needs_a_note() -> None:
    dead = letter()

    assert run("jetbridge_dlq", "discard", str(dead.pk), "--note", "  ")[0] == 2
    with pytest.raises(CommandError, match="--note"):
        call_command("jetbridge_dlq", "discard", str(dead.pk))
    dead.refresh_from_db()
    assert dead.state == "open"


@pytest.mark.django_db
@pytest.mark.parametrize("act", [["redrive"], ["discard", "--note", "x"], ["redrive", "--limit", "5"]])
def test_without_a_selector_nothing_happens(act: list[str]) -> None:
    """ "Everything" is never what was forgotten to be said."""
    dead = letter()

    code, document = run_json("jetbridge_dlq", *act)

    assert code == 2
    assert "--all" in document["error"]["text"]
    dead.refresh_from_db()
    assert dead.state == "open"


@pytest.mark.django_db
def test_an_unknown_id_stops_the_act() -> None:
    """It is a typo, and the other ids may be, too."""
    dead = letter()

    code, acted = run_json("jetbridge_dlq", "discard", str(dead.pk), "999999", "--note", "x")

    assert code == 1
    assert (acted["done"], acted["ids"]) == (0, [])
    assert acted["skipped"] == [{"id": 999999, "why": "there is no such dead letter"}]
    dead.refresh_from_db()
    assert dead.state == "open"


@pytest.mark.django_db
def test_one_in_another_state_is_skipped_and_said() -> None:
    open_, closed = letter(), letter(event_id="e-2", state="discarded")

    code, acted = run_json("jetbridge_dlq", "discard", str(open_.pk), str(closed.pk), "--note", "x")
    assert (code, acted["matched"], acted["done"]) == (1, 2, 1)
    assert [one["id"] for one in acted["skipped"]] == [closed.pk]

    code, acted = run_json("jetbridge_dlq", "redrive", str(closed.pk))
    assert code == 1
    assert "discarded" in acted["skipped"][0]["why"]


@pytest.mark.django_db
def test_a_redrive_without_its_inbox_row_is_refused_and_changes_nothing() -> None:
    dead = letter()

    code, acted = run_json("jetbridge_dlq", "redrive", str(dead.pk))

    assert (code, acted["done"]) == (1, 0)
    assert "inbox row" in acted["skipped"][0]["why"]
    dead.refresh_from_db()
    assert (dead.state, dead.redrives) == ("open", 0)


@pytest.mark.django_db
def test_a_dry_run_only_says() -> None:
    dead = letter()
    letter(event_id="e-2", state="redriven")

    code, acted = run_json("jetbridge_dlq", "redrive", "--all", "--dry-run")

    assert (code, acted) == (0, {"matched": 1, "done": 0, "skipped": [], "ids": [dead.pk]})
    assert DeadLetter.objects.get(pk=dead.pk).state == "open"


@pytest.mark.django_db
def test_no_match_is_no_failure() -> None:
    assert run_json("jetbridge_dlq", "redrive", "--handler", "nobody") == (
        0,
        {"matched": 0, "done": 0, "skipped": [], "ids": []},
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.django_db
@pytest.mark.parametrize(("answer", "state", "code"), [("y\n", "discarded", 0), ("\n", "open", 1)])
def test_a_person_is_asked_first(
    answer: str, state: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = letter()
    monkeypatch.setattr("sys.stdin", Terminal(answer))

    ended, _ = run_json("jetbridge_dlq", "discard", "--all", "--note", "x")

    assert ended == code
    assert "1 dead letters will be discarded. Continue? [y/N]" in capsys.readouterr().err
    dead.refresh_from_db()
    assert dead.state == state


# --- looking ---------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("selectors", "expected"),
    [
        ([], ["a", "b", "c"]),
        (["--all"], ["a", "b", "c", "closed"]),
        (["--handler", "billing.other"], ["b"]),
        (["--type", "order.cancelled"], ["b"]),
        (["--source", "mail"], ["c"]),
        (["--key", "order:3"], ["c"]),
        (["--reason", "permanent"], ["c"]),
        (["--reason", "permanent", "--source", "orders"], []),
        (["--since", "1h"], ["b", "c"]),
        (["--since", "2000-01-01T00:00Z"], ["a", "b", "c"]),
        (["--limit", "2"], ["a", "b"]),
        (["--handler", ""], []),
    ],
)
def test_selectors_narrow(selectors: list[str], expected: list[str]) -> None:
    letter(event_id="a", created_at=timezone.now() - timedelta(hours=2))
    letter(event_id="b", handler="billing.other", event_type="order.cancelled", state="redriving")
    letter(event_id="c", source="mail", key="order:3", reason="permanent")
    letter(event_id="closed", state="discarded", created_at=timezone.now() - timedelta(hours=2))

    code, document = run_json("jetbridge_dlq", "list", *selectors)

    assert code == 0
    assert [one["event_id"] for one in document["dead_letters"]] == expected
    assert document["count"] == len(expected)


@pytest.mark.django_db
def test_list_has_the_keys_of_the_interface() -> None:
    dead = letter()

    _, document = run_json("jetbridge_dlq", "list")

    assert document["dead_letters"] == [
        {
            "id": dead.pk,
            "event_id": "e-1",
            "source": "orders",
            "handler": "billing.create_invoice",
            "event_type": "order.placed",
            "key": "order:1",
            "reason": "max_attempts",
            "error_class": "ValueError",
            "error_message": "no",
            "attempts": 3,
            "state": "open",
            "created_at": DeadLetter.objects.get().created_at.isoformat(),
            "stream": "jetbridge-orders",
            "sequence": 1,
            "subject": "orders.sync.billing",
        }
    ]


@pytest.mark.django_db
def test_show_has_everything() -> None:
    dead = letter(traceback="Traceback …", body=b"\xff\x00", redrives=1)

    code, shown = run_json("jetbridge_dlq", "show", str(dead.pk))

    assert code == 0
    assert shown["headers"] == {"traceparent": "00-1"}
    assert (shown["body"], shown["body_encoding"]) == ("/wA=", "base64")
    assert shown["traceback"] == "Traceback …"
    assert [one["what"] for one in shown["history"]] == ["dead_lettered", "redrive", "failed_again"]


@pytest.mark.django_db
def test_text_for_people() -> None:
    dead = letter(error="first line\nsecond line " + "x" * 200)

    listed = run("jetbridge_dlq", "list")[1]
    shown = run("jetbridge_dlq", "show", str(dead.pk))[1]

    assert len(listed.splitlines()) == 2
    assert "billing.create_invoice" in listed
    assert '"event_id": "e-1"' in shown
    assert "max_attempts after 3 attempts, 0 redrives" in shown


@pytest.mark.django_db
def test_an_unknown_id_cannot_be_shown() -> None:
    code, document = run_json("jetbridge_dlq", "show", "12345")

    assert code == 1
    assert document["error"]["text"] == "There is no dead letter 12345 on database 'default'."


@pytest.mark.django_db(databases=["default", "other"])
def test_each_database_has_its_own(settings: Any) -> None:
    settings.JETBRIDGE = {**settings.JETBRIDGE, "DATABASES": ["default", "other"]}
    letter()

    assert run_json("jetbridge_dlq", "list", "--database", "other")[1]["count"] == 0
    assert run_json("jetbridge_dlq", "--database", "default", "list")[1]["count"] == 1
    assert run("jetbridge_dlq", "list", "--database", "nowhere")[0] == 2


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "list|show|redrive|discard"),
        (["redrive", "one"], "a positive whole number is expected, got 'one'"),
        (["list", "--since", "soon"], "a span such as 30m, 2h, 7d or a time"),
        (["redrive", "1", "--wait", "0"], "a positive number of seconds is expected"),
    ],
)
def test_usage_faults_say_what_is_expected(arguments: list[str], words: str) -> None:
    with pytest.raises(CommandError) as raised:
        call_command("jetbridge_dlq", *arguments)

    assert words in str(raised.value)

"""``manage.py jetbridge_dlq``: selecting, listing, showing, and acts that need no broker."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command, load_command_class
from django.utils import timezone

from jetbridge.dead_letters import waiting
from jetbridge.dead_letters.redrive import Acted
from jetbridge.dead_letters.store import DeadLetterSummary
from jetbridge.models import DeadLetter, Deferred, Inbox
from tests.django.commands import run, run_json


@pytest.fixture(autouse=True)
def _reads_from_orders(settings: Any) -> None:
    settings.JETBRIDGE = {**settings.JETBRIDGE, "SOURCES": ["billing", "orders"]}


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


def inbox_row(dead: DeadLetter) -> None:
    """What the handler that gave up has left, and a redrive re-opens."""
    Inbox.objects.create(
        handler=dead.handler, source=dead.source, event_id=dead.event_id, state="dead", sequence=dead.sequence
    )


def envelope(event_id: str) -> bytes:
    """A body that reads as an event nobody handles."""
    return json.dumps({"event_id": event_id, "event_type": "nobody.wants.this", "payload": {}}).encode()


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
    assert (acted["matched"], acted["done"], acted["ids"]) == (1, 0, [])
    assert run("jetbridge_dlq", "redrive", str(dead.pk), "999999")[1].strip() == (
        "Nothing was done because 999999 does not exist."
    )
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
    inbox_row(dead)
    letter(event_id="e-2", state="redriven")

    code, acted = run_json("jetbridge_dlq", "redrive", "--all", "--dry-run")

    assert (code, acted) == (0, {"matched": 1, "done": 0, "skipped": [], "ids": [dead.pk]})
    assert DeadLetter.objects.get(pk=dead.pk).state == "open"


@pytest.mark.django_db
@pytest.mark.parametrize("way", [["--dry-run"], []], ids=["dry", "real"])
def test_a_dry_run_refuses_what_the_real_run_refuses(way: list[str]) -> None:
    """Red if a dry run looks at the state alone: six ready, and then five skipped."""
    fine, no_row, closed, waiting = (letter(event_id=f"e-{n}") for n in range(4))
    unknown = letter(event_id="e-4", handler="", event_type="nobody.wants.this", body=envelope("e-4"))
    for one in (fine, waiting):
        inbox_row(one)
    DeadLetter.objects.filter(pk=closed.pk).update(state="discarded")
    Deferred.objects.create(
        handler=waiting.handler,
        source="orders",
        event_id=waiting.event_id,
        kind="redrive",
        sequence=1,
        headers={},
        body=b"",
    )
    gone = letter(event_id="e-5", source="mail")
    letters = [fine, no_row, closed, waiting, unknown, gone]

    code, acted = run_json("jetbridge_dlq", "redrive", *(str(one.pk) for one in letters), *way)

    assert (code, acted["matched"], acted["ids"]) == (1, 6, [fine.pk])
    assert acted["done"] == (0 if way else 1)
    assert {one["id"]: one["why"] for one in acted["skipped"]} == {
        no_row.pk: "its inbox row is gone or no longer dead",
        closed.pk: "it is discarded, only an open dead letter can be redriven",
        waiting.pk: "it already waits to be handled by 'billing.create_invoice'",
        unknown.pk: "no handler wants 'nobody.wants.this' from 'orders'",
        gone.pk: "'mail' is not in SOURCES any more, so no consumer would run it",
    }
    assert DeadLetter.objects.filter(state="redriving").count() == (0 if way else 1)
    assert Deferred.objects.count() == (1 if way else 2)


@pytest.mark.django_db
@pytest.mark.parametrize("more", [["1"], ["--handler", "x"], ["--since", "2h"]])
@pytest.mark.parametrize("act", [["redrive"], ["redrive", "--dry-run"], ["discard", "--note", "x"]])
def test_everything_and_something_is_a_contradiction(act: list[str], more: list[str]) -> None:
    """Whoever adds a filter to --all must not act on all."""
    code, document = run_json("jetbridge_dlq", *act, "--all", *more)

    assert code == 2
    assert "--all is every open dead letter" in document["error"]["text"]


def test_help_says_what_all_means_for_each_action() -> None:
    """The same word: everything at all to look at, everything open to act on."""
    parser = load_command_class("jetbridge", "jetbridge_dlq").create_parser("manage.py", "jetbridge_dlq")
    [actions] = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]

    assert "Also those that are finished" in actions.choices["list"].format_help()
    assert "Every open one" in actions.choices["redrive"].format_help()


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
    assert "1 dead letter will be discarded. Continue? [y/N]" in capsys.readouterr().err
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


@pytest.mark.django_db
def test_one_that_fails_while_it_is_looked_at_has_not_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is running when failures are looked for, and open just after. Red if that look comes first."""
    dead = letter(state="redriving")
    look = waiting._failed

    def look_and_fail(ids: Sequence[int], using: str) -> Iterator[tuple[DeadLetterSummary, str]]:
        found = list(look(ids, using))
        DeadLetter.objects.update(state="open")
        return iter(found)

    monkeypatch.setattr(waiting, "_failed", look_and_fail)
    waited = waiting.wait_until_run(Acted(ids=[dead.pk], skipped=[]), timeout_s=5, using="default")

    assert (waited.finished, waited.acted.ids) == (True, [])
    assert "failed again" in waited.acted.skipped[0].why

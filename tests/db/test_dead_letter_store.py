"""Giving an event up: inbox row, dead letter and notice are one commit that cannot fail on content."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connection

from jetbridge import received, signals
from jetbridge.conf import get_settings
from jetbridge.dead_letters import store
from jetbridge.envelope import Position
from jetbridge.inbox import store as inbox_store
from jetbridge.models import DeadLetter, Inbox, Outbox
from jetbridge.received import Received
from tests.db.work import message
from tests.worlds import body, outbox

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("shop")]


def bury(given: Received, error: BaseException | None = None, **changes: Any) -> int | None:
    """Give a message up as the consumer does."""
    options = {"reason": "max_deliver_exceeded", "attempt": 3, **changes}
    handler = options.pop("handler", "t.handler")
    return store.bury(
        given, handler, error or ValueError("why"), settings=get_settings(), using="default", **options
    )


def raised() -> ValueError:
    """An error with a traceback."""
    try:
        raise ValueError("why it failed")
    except ValueError as error:
        return error


def test_everything_that_is_known_is_kept():
    """The row is the truth."""
    data = body("e-1", payload={"id": 7, "text": "☃"})
    number = bury(message(data=data, headers={"X-Own": "1", "Nats-Msg-Id": "m"}, sequence=9), raised())

    row = DeadLetter.objects.get()
    assert row.pk == number
    assert (row.handler, row.source, row.event_id, row.event_type, row.key) == (
        "t.handler",
        "billing",
        "e-1",
        "order.placed",
        "order:7",
    )
    assert (row.subject, row.stream, row.sequence) == ("billing.sync.shop", "jetbridge-billing", 9)
    assert (row.reason, row.error_class, row.error) == ("max_deliver_exceeded", "ValueError", "why it failed")
    assert 'raise ValueError("why it failed")' in row.traceback
    assert (row.state, row.attempts, row.redrives) == ("open", 3, 0)
    assert row.headers == {"X-Own": "1", "Nats-Msg-Id": "m"}
    assert bytes(row.body) == data
    assert row.trace_id == "6ec405f8bf03239f"
    assert row.occurred_at is not None
    assert row.fingerprint


def test_the_inbox_row_says_dead():
    """So that a second copy does not run."""
    bury(message(), raised())

    row = Inbox.objects.get()
    assert (row.state, row.attempts, row.error_class, row.error) == ("dead", 3, "ValueError", "why it failed")
    assert row.finished_at is not None


def test_an_inbox_row_of_earlier_attempts_becomes_dead():
    """retrying → dead."""
    inbox_store.record_failure(
        message(), "t.handler", attempt=1, spends=True, delay_s=0, error=ValueError(), using="default"
    )

    assert bury(message()) is not None
    row = Inbox.objects.get()
    assert (row.state, row.attempts, row.starts, row.next_attempt_at) == ("dead", 3, 2, None)


def test_the_notice_lies_in_the_outbox_in_the_form_of_the_contract():
    """Original body and headers less ``Nats-*``, and the facts."""
    number = bury(
        message(headers={"X-Own": "1", "nats-msg-id": "e-1", "NATS-Batch-Id": "b"}, sequence=9), raised()
    )

    (row,) = outbox()
    assert (row.kind, row.destination, row.subject) == ("dead_letter", "dlq", "shop.sync.dlq")
    assert (row.message_id, row.state, row.key) == (f"dlq:{number}:0", "ready", "")
    assert bytes(row.body) == body("e-1")
    context = json.loads(row.headers.pop("x-dlq-context"))
    assert row.headers == {
        "X-Own": "1",
        "x-dead-letter": "true",
        "x-dlq-reason": "max_deliver_exceeded",
        "x-deliveries": "3",
        "Nats-TTL": "1209600s",
    }
    published_at = context.pop("published_at")
    assert published_at.endswith("Z")
    assert list(context.items()) == [
        ("event_id", "e-1"),
        ("reason", "max_deliver_exceeded"),
        ("error_class", "ValueError"),
        ("error_message", "why it failed"),
        ("deliveries", 3),
        ("original_subject", "billing.sync.shop"),
        ("sequence", 9),
        ("consumer", "shop-workers"),
        ("stream", "jetbridge-billing"),
    ]


def test_the_notice_of_a_partitioned_source_names_its_own_durable():
    """``consumer`` is the durable that delivered the message: ``<app>-workers-<n>``."""
    place = Position(subject="billing.sync.shop.3", stream="jetbridge-billing", sequence=1, stored_ns=1)
    bury(received.read(body(), {}, place, app="shop"))

    assert json.loads(outbox()[0].headers["x-dlq-context"])["consumer"] == "shop-workers-3"


def test_a_settled_event_is_not_given_up():
    """Another copy has succeeded or was given up meanwhile: nothing is written."""
    assert bury(message()) is not None
    assert bury(message()) is None
    Inbox.objects.update(state="processed")
    assert bury(message()) is None

    assert (DeadLetter.objects.count(), Outbox.objects.count()) == (1, 1)


def test_two_handlers_of_one_event_have_two_dead_letters_and_two_notices():
    """Dead letters are per (handler, event); the message ids of the notices differ."""
    bury(message())
    bury(message(), handler="t.other")

    assert len({row.message_id for row in outbox()}) == 2


@pytest.mark.parametrize(
    "text",
    [
        "NUL \x00",
        "surrogate \ud800",
        "x" * 1_000_000,
        "\x00" * 100_000,
        "☃" * 100_000,
        "line\r\nbreak\x7f",
        "",
    ],
    ids=["nul", "surrogate", "long", "many nuls", "many snowmen", "line breaks", "empty"],
)
def test_no_text_of_an_error_can_make_it_fail(text):
    """Escaped, cut, ASCII in the header: the notice stays small."""
    assert bury(message(), ValueError(text)) is not None

    (row,) = outbox()
    assert row.state == "ready"
    facts = row.headers["x-dlq-context"]
    assert facts.isascii()
    assert facts.isprintable()
    assert len(facts) < 10_000
    assert len(DeadLetter.objects.get().error) <= 10_000


def test_an_error_whose_text_cannot_be_made_is_no_obstacle():
    """``__str__`` may raise, too."""

    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert bury(message(), Broken()) is not None
    assert DeadLetter.objects.get().error_class.endswith("Broken")


def test_a_class_name_of_any_length_is_stored():
    """Generated classes have long names."""
    error = type("E" * 5_000, (Exception,), {})("x")

    assert bury(message(), error) is not None
    assert len(DeadLetter.objects.get().error_class) <= 255


def test_a_malformed_message_is_buried_with_what_is_known():
    """No event in it: no type, no key; the bytes stay."""
    assert bury(message(data=b"\x00\xff broken"), handler="", reason="malformed_json", attempt=0) is not None

    row = DeadLetter.objects.get()
    assert bytes(row.body) == b"\x00\xff broken"
    assert (row.event_type, row.key, row.handler, row.attempts) == ("", "", "", 0)


def test_a_notice_that_is_too_large_is_born_refused():
    """No size check can make the commit fail; the reason is in the row."""
    data = body("e-1", payload={"blob": "x" * 2_000_000})

    assert bury(message(data=data)) is not None
    (row,) = outbox()
    assert (row.state, row.error_code) == ("refused", "too_large")
    assert "too large" in row.error
    assert bytes(DeadLetter.objects.get().body) == data


def test_all_of_it_or_nothing(monkeypatch):
    """If the notice cannot be written, neither the row nor the inbox change is there."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE jetbridge_outbox RENAME TO jetbridge_outbox_away")
    try:
        with pytest.raises(Exception, match="jetbridge_outbox"):
            bury(message())
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE jetbridge_outbox_away RENAME TO jetbridge_outbox")

    assert (DeadLetter.objects.count(), Inbox.objects.count(), Outbox.objects.count()) == (0, 0, 0)


def test_the_signal_is_sent_after_the_commit_with_its_keys():
    """``dead_lettered``: a receiver that kills the process leaves a committed row."""
    seen: list[dict[str, object]] = []

    def receiver(**facts: object) -> None:
        assert not connection.in_atomic_block
        facts.pop("signal")
        seen.append(facts)

    signals.dead_lettered.connect(receiver)
    try:
        number = bury(message())
    finally:
        signals.dead_lettered.disconnect(receiver)

    assert seen == [
        {
            "sender": "jetbridge",
            "using": "default",
            "handler": "t.handler",
            "event_id": "e-1",
            "source": "billing",
            "reason": "max_deliver_exceeded",
            "dead_letter_id": number,
        }
    ]


def test_equal_failures_have_one_fingerprint():
    """So that a list can be grouped by cause."""
    bury(message("1"), raised())
    bury(message("2"), raised())
    bury(message("3"), KeyError("other"))

    first, second, third = DeadLetter.objects.order_by("id").values_list("fingerprint", flat=True)
    assert first == second != third

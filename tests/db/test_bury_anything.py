"""
Whatever a message holds and whatever an error is made of, giving the event up succeeds: if it failed on content,
the handler would be run again, every second, for ever.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from django.db import connection
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jetbridge import received
from jetbridge.conf import get_settings
from jetbridge.consumer.execute import Job, Settled, execute
from jetbridge.dead_letters import store
from jetbridge.envelope import Position
from jetbridge.models import DeadLetter, Inbox, Outbox
from jetbridge.received import MAX_SEQUENCE
from tests.db.work import message, work_for

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("shop", "handlers")]

_numbers = itertools.count()
any_text = st.text(st.characters(codec=None), max_size=300)
places = st.builds(
    Position,
    subject=any_text
    | st.sampled_from(["billing.sync.shop", "billing", "a.b", "x" * 4_000, "y" * 300 + ".sync.shop"]),
    stream=any_text | st.just("s" * 255),
    sequence=st.integers(1, 2**64 - 1),
    stored_ns=st.integers(0, 2**63),
)
headers = st.dictionaries(
    st.sampled_from(["nats-msg-id", "Jetbridge-Key", "Jetbridge-Correlation-Id", "x-dlq-reason"]) | any_text,
    any_text,
    max_size=4,
)
members = st.fixed_dictionaries(
    {},
    optional={
        "event_id": any_text,
        "event_type": any_text,
        "resource_type": any_text,
        "resource_id": any_text,
        "trace_id": any_text,
        "producer": any_text,
        "occurred_at": st.datetimes().map(str)
        | st.sampled_from(["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"]),
    },
)
bodies = st.binary(max_size=100) | members.map(lambda some: json.dumps({"payload": {}, **some}).encode())


def _raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


errors = (
    any_text.map(lambda text: ValueError(text))
    | any_text.map(lambda text: type("E" + ascii(text), (Exception,), {})(text))
    | st.lists(any_text, min_size=1, max_size=3).map(
        lambda texts: ExceptionGroup("g", [ValueError(t) for t in texts])
    )
).map(_raised)


@hypothesis_settings(max_examples=150)
@given(place=places, given_headers=headers, content=bodies, error=errors, attempt=st.integers(0, 3))
def test_any_message_and_any_error_is_buried_and_can_be_read(place, given_headers, content, error, attempt):
    """
    Inbox row, dead letter, notice. Red without the cut of subject and sequence (PostgreSQL), the escape of
    headers, or the look at a subject's tokens.
    """
    given_message = received.read(content, given_headers, place, app="shop")
    handler = f"t.{next(_numbers)}"

    number = store.bury(
        given_message,
        handler,
        error,
        reason="rejected",
        attempt=attempt,
        settings=get_settings(),
        using="default",
    )

    assert number is not None
    letter = store.get(number, using="default")
    assert letter is not None
    assert letter.body == content
    assert Inbox.objects.get(handler=handler).state == "dead"
    assert Outbox.objects.filter(message_id=f"dlq:{number}:0").count() == 1


class NoText(Exception):
    def __str__(self) -> str:
        raise SystemExit


def _odd_syntax_error() -> SyntaxError:
    error = SyntaxError("x", ("file", 1, 2, 3))  # type: ignore[arg-type]
    error.text, error.lineno, error.offset = 5, "a", object()  # type: ignore[assignment]
    return error


def _recursion() -> None:
    _recursion()


def _raiser(error: BaseException) -> Callable[[object], None]:
    def handler(event: object) -> None:
        raise error

    return handler


ENDS: dict[str, Callable[[object], None]] = {
    "KeyboardInterrupt": _raiser(KeyboardInterrupt()),
    "SystemExit": _raiser(SystemExit(0)),
    "GeneratorExit": _raiser(GeneratorExit()),
    "CancelledError": _raiser(asyncio.CancelledError()),
    "StopIteration": _raiser(StopIteration(1)),
    "MemoryError": _raiser(MemoryError()),
    "RecursionError": lambda event: _recursion(),
    "NoText": _raiser(NoText()),
    "SyntaxError": _raiser(_odd_syntax_error()),
    "ExceptionGroup": _raiser(BaseExceptionGroup("g", [KeyboardInterrupt(), NoText()])),
}


def _in_a_coroutine(function: Callable[[object], None]) -> Callable[[object], object]:
    async def handler(event: object) -> None:
        function(event)

    return handler


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("name", ENDS)
def test_a_handler_may_end_as_it_likes(name, is_async):
    """Also with what is no ``Exception``, and with what cannot be shown. Red if any of it leaves the thread."""
    handler = _in_a_coroutine(ENDS[name]) if is_async else ENDS[name]
    work, settings = work_for(handler, max_attempts=1)
    job = Job(received=message(), handler=work.handler, handler_name="t.handler", using="default")

    assert execute(job, settings, owner="me") == Settled(how="dead")
    letter = DeadLetter.objects.get()
    assert letter.reason == "max_deliver_exceeded"
    assert name in letter.error_class or (is_async and name == "StopIteration"), letter.error_class
    assert connection.in_atomic_block is False


def test_a_sequence_that_no_bigint_holds_does_not_keep_an_event_from_being_handled():
    """A stream may begin anywhere below 2**64. Red on PostgreSQL without the cut: its claim fails, and its burial."""
    work, settings = work_for(lambda event: None, received=message(sequence=2**64 - 1))
    job = Job(received=work.received, handler=work.handler, handler_name="t.handler", using="default")

    assert execute(job, settings, owner="me") == Settled(how="handled")
    assert Inbox.objects.get().sequence == MAX_SEQUENCE
    assert replace(job, received=message()).received.sequence == 1

"""From a message to the jobs it means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jetbridge import conf
from jetbridge.consumer import routing
from jetbridge.consumer.delivery import Held, Item
from jetbridge.deferred.store import DeferredRecord
from jetbridge.jetstream.incoming import Incoming
from jetbridge.registry import Handler, Registry


def settings(**keys) -> conf.Settings:
    raw = {"APP_NAME": "billing", "SOURCES": ["orders"], "DATABASES": ["default", "other"], **keys}
    parsed, faults = conf.read(raw, databases={"default": {}, "other": {}}, base_dir=Path("."))
    assert parsed is not None, faults
    return parsed


def registry(*wanted: tuple[str, str], **more) -> Registry:
    made = Registry()
    for name, pattern in wanted:
        given = {"source": None, "atomic": True, "ordered": True, "using": None, "timeout_s": None, **more}
        made.add(
            Handler(
                name=name,
                function=lambda event: None,
                patterns=(pattern,),
                max_attempts=None,
                backoff=None,
                permanent=(),
                transient=(),
                **given,
            )
        )
    return made


def incoming(
    body: bytes | None = None, *, event_type: str = "order.placed", key: str = "", **changes
) -> Incoming:
    members = {"event_id": "1", "event_type": event_type, "payload": {}, "resource_id": "7"}
    return Incoming(
        subject="orders.sync.billing",
        reply="r",
        headers={"Jetbridge-Key": key} if key else {},
        body=json.dumps(members).encode() if body is None else body,
        stream="s",
        consumer="c",
        sequence=5,
        consumer_sequence=5,
        delivered=1,
        stored_ns=9,
        pending=0,
        **changes,
    )


def test_each_handler_that_wants_the_event_has_a_job():
    jobs = routing.jobs_of(incoming(), registry(("a", "order.*"), ("b", "invoice.>"), ("c", ">")), settings())

    assert [(job.handler_name, job.using, job.redriven) for job in jobs] == [
        ("a", "default", False),
        ("c", "default", False),
    ]


def test_a_handlers_alias_is_the_jobs():
    (job,) = routing.jobs_of(incoming(), registry(("a", ">"), using="other"), settings())

    assert job.using == "other"


def test_a_handler_for_another_source_is_not_asked():
    """The source is the subject's first token, whatever the body claims."""
    (job,) = routing.jobs_of(incoming(), registry(("a", ">"), source="shop"), settings())

    assert (job.handler, job.handler_name, job.received.source) == (None, "", "orders")


@pytest.mark.parametrize(
    ("keys", "jobs"),
    [
        ({}, 1),
        ({"UNKNOWN_EVENTS": "ignore"}, 0),
        ({"IGNORED_EVENTS": ["order.*"]}, 0),
        ({"IGNORED_EVENTS": ["invoice.>"]}, 1),
    ],
)
def test_what_nobody_wants_is_a_job_without_handler_or_nothing(keys, jobs):
    found = routing.jobs_of(incoming(), registry(("a", "invoice.created")), settings(**keys))

    assert [job.handler for job in found] == [None] * jobs


def test_a_wanted_event_is_not_ignored():
    assert routing.jobs_of(incoming(), registry(("a", ">")), settings(IGNORED_EVENTS=[">"]))


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b'{"event_type": 7, "payload": {}}', b"\xff"])
def test_a_malformed_body_is_a_job_that_says_why(body):
    """Also where malformed events would be "unknown" and ignored: they are nobody's by mistake only."""
    (job,) = routing.jobs_of(incoming(body), registry(("a", ">")), settings(UNKNOWN_EVENTS="ignore"))

    assert (job.handler, job.received.event, job.received.event_id) == (None, None, "s:5:9")
    assert job.received.fault


# --- lanes ---------------------------------------------------------------------------------------


def item(event: Incoming, known: Registry, which: int = 0) -> Item:
    job = routing.jobs_of(event, known, settings())[which]
    return Item(job=job, message=Held(subject="", stream="", sequence=0, reply="", feed=""))


def test_a_lane_is_handler_source_and_key():
    known = registry(("a", ">"), ("b", ">"))

    assert item(incoming(key="k"), known).lane() == item(incoming(key="k"), known).lane()
    assert item(incoming(key="k"), known).lane() != item(incoming(key="l"), known).lane()
    assert item(incoming(key="k"), known).lane() != item(incoming(key="k"), known, 1).lane()


def test_unordered_and_keyless_items_have_a_lane_of_their_own():
    loose = registry(("a", ">"), ordered=False)
    keyless = json.dumps({"event_id": "1", "event_type": "note", "payload": {}}).encode()

    first, second = item(incoming(key="k"), loose), item(incoming(key="k"), loose)
    assert first.lane() != second.lane()
    first, second = (
        item(incoming(keyless), registry(("a", ">"))),
        item(incoming(keyless), registry(("a", ">"))),
    )
    assert first.lane() != second.lane()
    assert first.lane() == first.lane()


# --- out of the deferred table -------------------------------------------------------------------


def record(body: bytes, handler: str = "a") -> DeferredRecord:
    return DeferredRecord(
        id=1,
        handler=handler,
        source="orders",
        event_id="orders:5:9",
        key="",
        subject="orders.sync.billing",
        stream="s",
        sequence=5,
        headers={},
        body=body,
    )


def test_a_stored_message_keeps_the_identity_of_its_row():
    """One without an id was named after its place; read again it must not get another name."""
    body = json.dumps({"event_type": "order.placed", "payload": {}}).encode()

    job = routing.job_of_deferred(record(body), registry(("a", ">")), settings(), using="other")

    assert (job.received.event_id, job.received.event and job.received.event.event_id) == ("orders:5:9",) * 2
    assert (job.handler_name, job.using, job.redriven) == ("a", "other", True)


@pytest.mark.parametrize(
    ("body", "handler"), [(b"nonsense", "a"), (b'{"event_type": "x", "payload": {}}', "gone")]
)
def test_a_stored_message_nobody_can_run_has_no_handler(body, handler):
    job = routing.job_of_deferred(record(body, handler), registry(("a", ">")), settings(), using="default")

    assert (job.handler, job.handler_name) == (None, handler)

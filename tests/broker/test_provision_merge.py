"""
Provisioning merges into what is there: it keeps what is not ours and refuses what could cost messages.

Every test runs on the installed nats-server, and on all those in the folder ``JETBRIDGE_NATS_SERVERS``.
"""

from __future__ import annotations

import pytest

from tests.broker.provisioning import (
    SECOND,
    Pair,
    actions,
    codes,
    run,
    unrepaired,
    version_of,
)

# --- merging --------------------------------------------------------------------------------------


def test_an_update_keeps_what_is_not_ours(pair: Pair) -> None:
    pair.make_stream(
        pair.stream_a,
        subjects=["legacy." + pair.a, f"{pair.a}.sync.{pair.b}"],
        description="by hand",
        max_bytes=50_000_000,
        max_msg_size=200_000,
        compression="s2",
        metadata={"team": "sales"},
        max_msgs_per_subject=99_000_000,
        discard="old",
        max_age=3600 * SECOND,
    )

    report = run(pair.of_a(SOURCES=[]))
    config = pair.stream()

    assert actions(report) == ["updated"]
    # Ours covers the narrower one, which must give way: subjects of a stream may not overlap.
    assert config["subjects"] == ["legacy." + pair.a, f"{pair.a}.sync.>"]
    assert (config["description"], config["max_bytes"], config["max_msg_size"]) == (
        "by hand",
        50_000_000,
        200_000,
    )
    assert (config["discard"], config["max_age"]) == ("new", 0)
    assert config["max_msgs_per_subject"] == 99_000_000
    assert "kept_larger" in codes(report)
    if version_of(pair.of_a()) >= (2, 10, 0):
        assert config["compression"] == "s2"
        assert config["metadata"]["team"] == "sales"
    assert actions(run(pair.of_a(SOURCES=[]))) == ["unchanged"]


def test_messages_survive_an_update(pair: Pair) -> None:
    pair.make_stream(pair.stream_a, subjects=[f"{pair.a}.sync.{pair.b}"])
    pair.publish(f"{pair.a}.sync.{pair.b}", 5)

    run(pair.of_a(SOURCES=[]))

    assert pair.waiting(pair.stream_a) == 5


def test_a_cap_below_what_waits_is_refused(pair: Pair) -> None:
    """Recent servers delete the oldest messages when such a cap is put, discard "new" or not."""
    pair.make_stream(pair.stream_a, subjects=[f"{pair.a}.sync.>"])
    pair.publish(f"{pair.a}.sync.{pair.b}", 5)
    settings = pair.of_a(SOURCES=[], MAX_MESSAGES_PER_SUBJECT=3)

    report = run(settings)

    assert (actions(report), report.is_complete) == (["refused"], False)
    assert unrepaired(report)[f"stream {pair.stream_a}: max_msgs_per_subject"] == (3, -1)
    assert "MAX_MESSAGES_PER_SUBJECT" in report.text()
    assert pair.waiting(pair.stream_a) == 5


@pytest.mark.parametrize(("key", "found"), [("retention", "limits"), ("storage", "memory")])
def test_what_a_server_cannot_change_is_refused_untouched(pair: Pair, key: str, found: str) -> None:
    pair.make_stream(pair.stream_a, subjects=[f"{pair.a}.sync.>"], **{key: found})
    before = pair.stream()

    report = run(pair.of_a(SOURCES=[]))

    assert (actions(report), report.is_complete) == (["refused"], False)
    assert unrepaired(report)[f"stream {pair.stream_a}: {key}"][1] == found
    assert "delete it" in report.text()
    assert pair.stream() == before


def test_a_durable_of_the_gem_is_repaired(pair: Pair) -> None:
    """It delivers everything five times at once: the gem writes seconds where nanoseconds belong."""
    pair.make_stream(pair.stream_b, subjects=[f"{pair.b}.sync.>"])
    name = f"{pair.a}-workers"
    gem = {"max_deliver": 6, "ack_wait": 1, "backoff": [1, 5, 15, 30, 60], "max_waiting": 77}
    pair.make_durable(pair.stream_b, name, f"{pair.b}.sync.{pair.a}", **gem)

    report = run(pair.of_a())
    config = pair.durable(pair.stream_b, name)

    assert (actions(report), report.is_complete) == (["created", "updated"], True)
    assert (config["max_deliver"], config.get("backoff"), config["ack_wait"]) == (-1, None, 10 * SECOND)
    assert config["max_waiting"] == 77


def test_a_durable_with_another_filter_is_refused(pair: Pair) -> None:
    pair.make_stream(pair.stream_b, subjects=[f"{pair.b}.sync.>"])
    pair.make_durable(pair.stream_b, f"{pair.a}-workers", f"{pair.b}.sync.elsewhere")

    report = run(pair.of_a())

    assert actions(report) == ["created", "refused"]
    assert unrepaired(report)[f"durable {pair.a}-workers in stream {pair.stream_b}: filter"] == (
        [f"{pair.b}.sync.{pair.a}"],
        [f"{pair.b}.sync.elsewhere"],
    )


def test_a_push_durable_is_refused(pair: Pair) -> None:
    pair.make_stream(pair.stream_b, subjects=[f"{pair.b}.sync.>"])
    name, subject = f"{pair.a}-workers", f"{pair.b}.sync.{pair.a}"
    pair.make_durable(pair.stream_b, name, subject, deliver_subject=f"push.{pair.a}")

    report = run(pair.of_a())

    assert actions(report) == ["created", "refused"]
    assert f"durable {name} in stream {pair.stream_b}: deliver_subject" in unrepaired(report)


def test_another_reader_of_our_subject_is_named(pair: Pair) -> None:
    pair.make_stream(pair.stream_b, subjects=[f"{pair.b}.sync.>"])
    pair.make_durable(pair.stream_b, "nosy", f"{pair.b}.sync.*")

    report = run(pair.of_a())

    (found,) = [found for what, (_, found) in unrepaired(report).items() if what.startswith("durable")]
    assert found == f"read by nosy ({pair.b}.sync.*)"
    assert (actions(report), report.is_complete) == (["created", "refused"], False)


def test_another_stream_with_our_subjects_is_named(pair: Pair) -> None:
    stream = f"GEM-{pair.a}"
    pair.make_stream(stream, subjects=[f"{pair.a}.sync.{pair.b}"])

    report = run(pair.of_a(SOURCES=[]))

    assert (actions(report), report.is_complete) == (["refused"], False)
    assert f"The subjects are in stream {stream}." in report.text()


def test_a_source_in_another_stream_is_pointed_at(pair: Pair) -> None:
    stream = f"GEM-{pair.a}"
    pair.make_stream(stream, subjects=[f"{pair.b}.sync.{pair.a}"])

    report = run(pair.of_a())

    assert actions(report) == ["created", "missing"]
    assert f"It is in stream {stream}" in report.text()

"""
Provisioning where others are: shared streams, partition counts, messages nobody reads.

Every test runs on the installed nats-server, and on all those in the folder ``JETBRIDGE_NATS_SERVERS``.
"""

from __future__ import annotations

import asyncio

import pytest

from jetbridge.jetstream.provision_report import ProvisionReport
from tests.broker.provisioning import (
    SECOND,
    Pair,
    actions,
    codes,
    run,
    settings_of,
    unrepaired,
    version_of,
)

# --- shared streams -------------------------------------------------------------------------------


def test_a_shared_stream_gets_explicit_subjects(pair: Pair) -> None:
    stream = f"SHARED-{pair.a}"
    sides = (
        pair.of_a(
            STREAM=stream, SOURCES={pair.b: {"stream": stream}}, DESTINATIONS={pair.b: {"partitions": 2}}
        ),
        pair.of_b(STREAM=stream, SOURCES={pair.a: {"stream": stream, "partitions": 2}}),
    )

    reports = [run(sides[0]), run(sides[1]), run(sides[0])]

    assert [one.is_complete for one in reports] == [False, True, True]
    assert sorted(pair.stream(stream)["subjects"]) == sorted(
        [
            f"{pair.a}.sync.{pair.b}",
            f"{pair.a}.sync.{pair.b}.*",
            f"{pair.a}.sync.dlq",
            f"{pair.b}.sync.{pair.a}",
            f"{pair.b}.sync.dlq",
        ]
    )
    assert {action for side in sides for action in actions(run(side))} == {"unchanged"}


def test_limits_of_a_shared_stream_are_somebody_elses(pair: Pair) -> None:
    stream = f"SHARED-{pair.a}"
    pair.make_stream(stream, subjects=["theirs." + pair.a], max_age=3600 * SECOND, storage="memory")

    report = run(pair.of_a(STREAM=stream, SOURCES=[]))
    config = pair.stream(stream)

    assert (actions(report), report.is_complete) == (["updated"], True)
    assert config["subjects"] == ["theirs." + pair.a, f"{pair.a}.sync.{pair.b}", f"{pair.a}.sync.dlq"]
    assert (config["max_age"], config["discard"], config["max_msgs_per_subject"]) == (
        3600 * SECOND,
        "old",
        -1,
    )
    assert codes(report) >= {"memory_storage", "discard_old", "max_age"}


@pytest.mark.parametrize("exists", [True, False], ids=["existing", "new"])
def test_services_that_join_a_shared_stream_at_once_all_get_in(pair: Pair, exists: bool) -> None:
    """An update carries all subjects, so the later of two drops what the earlier one added."""
    stream = f"SHARED-{pair.a}"
    if exists:
        pair.make_stream(stream, subjects=["first." + pair.a])
    apps = [f"app{number}-{pair.a}" for number in range(6)]

    async def join() -> list[ProvisionReport]:
        def one(app: str) -> ProvisionReport:
            return run(settings_of(app, pair.url, STREAM=stream, DESTINATIONS=["x"]))

        return await asyncio.gather(*(asyncio.to_thread(one, app) for app in apps))

    reports = asyncio.run(join())

    assert all(one.is_complete for one in reports), [one.text() for one in reports]
    assert set(pair.stream(stream)["subjects"]) == {
        *(["first." + pair.a] if exists else []),
        *(f"{app}.sync.{name}" for app in apps for name in ("x", "dlq")),
    }


# --- partitions -----------------------------------------------------------------------------------


def test_publisher_and_consumer_must_agree_on_partitions(pair: Pair) -> None:
    run(pair.of_b(DESTINATIONS={pair.a: {"partitions": 4}}))

    report = run(pair.of_a(SOURCES={pair.b: {"partitions": 2}}))

    if version_of(pair.of_a()) < (2, 10, 0):
        assert codes(report) == {"old_server", "partitions_unknown"}
        return
    assert not report.is_complete
    assert unrepaired(report) == {f"partitions of {pair.b} for {pair.a}": (2, 4)}
    assert actions(report) == ["created", "refused", "refused"]
    assert pair.api(f"STREAM.INFO.{pair.stream_b}")["state"]["consumer_count"] == 0


def test_partitions_change_only_when_nothing_waits_in_the_old_ones(pair: Pair) -> None:
    if version_of(pair.of_a()) < (2, 10, 0):
        return  # nothing is recorded there, and the report says so
    run(pair.of_a(SOURCES=[], DESTINATIONS={pair.b: {"partitions": 2}}))
    pair.publish(f"{pair.a}.sync.{pair.b}.1")
    wider = pair.of_a(SOURCES=[], DESTINATIONS={pair.b: {"partitions": 4}})

    early = run(wider)
    pair.api(f"STREAM.PURGE.{pair.stream_a}")
    late = run(wider)

    assert (actions(early), early.is_complete) == (["refused"], False)
    assert "1 messages wait in the old partitions" in early.text()
    assert (actions(late), late.is_complete) == (["updated"], True)


def test_durables_of_an_earlier_partition_count_are_pointed_at(pair: Pair) -> None:
    run(pair.of_b(DESTINATIONS={pair.a: {"partitions": 2}}))
    run(pair.of_a(SOURCES={pair.b: {"partitions": 2}}))
    run(pair.of_b())

    report = run(pair.of_a())

    stale = [one.text for one in report.notices if one.code == "stale_durable"]
    assert [text.split()[1] for text in stale] == [f"{pair.a}-workers-0", f"{pair.a}-workers-1"]


def test_a_source_that_does_not_know_us_is_told(pair: Pair) -> None:
    settings = pair.of_a()
    run(pair.of_b(DESTINATIONS=["somebody"]))

    report = run(settings)

    assert report.is_complete
    assert "not_a_destination" in codes(report) or version_of(settings) < (2, 10, 0)


# --- messages nobody reads ------------------------------------------------------------------------


def test_messages_that_no_durable_reads_are_reported(pair: Pair) -> None:
    settings = pair.of_a(SOURCES=[])
    run(settings)
    pair.publish(f"{pair.a}.sync.{pair.b}", 3)
    pair.publish(f"{pair.a}.sync.dlq")

    provisioned, checked = run(settings), run(settings, "check")
    run(pair.of_b())
    after = run(settings, "check")

    (text,) = [one.text for one in provisioned.notices if one.code == "no_durable"]
    assert text.startswith(f"3 messages wait on {pair.a}.sync.{pair.b}, ")
    assert (provisioned.is_complete, checked.is_complete, after.is_complete) == (True, False, True)

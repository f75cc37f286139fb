"""
Provisioning on real servers.

Every test runs on the installed nats-server, and on all those in the folder ``JETBRIDGE_NATS_SERVERS``.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jetbridge.conf import Settings
from jetbridge.errors import BrokerUnreachable
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.embedded import EmbeddedServer
from jetbridge.jetstream.provision import provision
from jetbridge.jetstream.provision_report import ProvisionReport
from tests.broker.provisioning import (
    actions,
    api,
    binaries,
    codes,
    connected,
    run,
    settings_of,
    version_of,
)

SECOND = 1_000_000_000


@pytest.fixture(scope="module", params=binaries(), ids=lambda path: path.name)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of each version, shared by the module: every test has app names of its own."""
    with EmbeddedServer(tmp_path_factory.mktemp("nats"), binary=request.param) as server:
        yield server.url


class Pair:
    """Two services that face each other, under names nobody else uses."""

    def __init__(self, url: str) -> None:
        tail = uuid.uuid4().hex[:8]
        self.url, self.a, self.b = url, f"orders-{tail}", f"billing-{tail}"
        self.stream_a, self.stream_b = f"jetbridge-{self.a}", f"jetbridge-{self.b}"

    def of_a(self, **keys: Any) -> Settings:
        return settings_of(self.a, self.url, **{"DESTINATIONS": [self.b], "SOURCES": [self.b], **keys})

    def of_b(self, **keys: Any) -> Settings:
        return settings_of(self.b, self.url, **{"DESTINATIONS": [self.a], "SOURCES": [self.a], **keys})

    def api(self, subject: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return api(self.of_a(), subject, body)

    def stream(self, name: str = "") -> dict[str, Any]:
        config = self.api(f"STREAM.INFO.{name or self.stream_a}")["config"]
        assert isinstance(config, dict)
        return config

    def durable(self, stream: str, name: str) -> dict[str, Any]:
        config = self.api(f"CONSUMER.INFO.{stream}.{name}")["config"]
        assert isinstance(config, dict)
        return config

    def make_stream(self, name: str, **config: Any) -> None:
        answer = self.api(f"STREAM.CREATE.{name}", {"name": name, "retention": "workqueue", **config})
        assert "error" not in answer, answer

    def make_durable(self, stream: str, name: str, subject: str, **config: Any) -> None:
        config = {"name": name, "durable_name": name, "ack_policy": "explicit", **config}
        body = {"stream_name": stream, "config": {**config, "filter_subject": subject}}
        answer = self.api(f"CONSUMER.DURABLE.CREATE.{stream}.{name}", body)
        assert "error" not in answer, answer

    def publish(self, subject: str, count: int = 1) -> None:
        async def send(connection: Connection) -> None:
            for _ in range(count):
                assert b'"seq"' in await connection.request(subject, b"{}")

        connected(self.of_a(), send)

    def waiting(self, stream: str) -> int:
        return int(self.api(f"STREAM.INFO.{stream}")["state"]["messages"])


@pytest.fixture
def pair(url: str) -> Pair:
    return Pair(url)


def unrepaired(report: ProvisionReport) -> dict[str, tuple[object, object]]:
    return {one.what: (one.wanted, one.found) for one in report.drift if not one.repair}


# --- two services ------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["a", "b"])
def test_services_that_face_each_other_come_in_either_order(pair: Pair, first: str) -> None:
    """The first lacks the other's stream and says so; its second run completes it."""
    one, other = (pair.of_a(), pair.of_b()) if first == "a" else (pair.of_b(), pair.of_a())

    early, middle, late, again = run(one), run(other), run(one), run(other)

    assert (actions(early), early.is_complete) == (["created", "missing"], False)
    assert f"stream {other.stream}" in unrepaired(early)
    assert (actions(middle), middle.is_complete) == (["created", "created"], True)
    assert (actions(late), late.is_complete) == (["unchanged", "created"], True)
    assert (actions(again), again.is_complete) == (["unchanged", "unchanged"], True)


def test_services_that_start_at_once_wait_for_each_other(pair: Pair) -> None:
    async def both() -> list[ProvisionReport]:
        def one(settings: Settings) -> ProvisionReport:
            return run(settings, wait_s=20)

        return await asyncio.gather(*(asyncio.to_thread(one, each) for each in (pair.of_a(), pair.of_b())))

    reports = asyncio.run(both())

    assert [(actions(one), one.is_complete) for one in reports] == [(["created", "created"], True)] * 2


def test_many_runs_of_one_service_at_once_agree(pair: Pair) -> None:
    """Each replica of a deployment runs it at its start."""
    run(pair.of_b())

    async def replicas() -> list[ProvisionReport]:
        return await asyncio.gather(*(asyncio.to_thread(run, pair.of_a()) for _ in range(4)))

    reports = asyncio.run(replicas())

    assert [one.drift for one in reports] == [()] * 4
    assert actions(run(pair.of_a())) == ["unchanged", "unchanged"]


def test_a_second_run_changes_nothing(pair: Pair) -> None:
    run(pair.of_b())
    run(pair.of_a())
    before = pair.stream(), pair.durable(pair.stream_b, f"{pair.a}-workers")

    report = run(pair.of_a())

    assert (actions(report), report.drift) == (["unchanged", "unchanged"], ())
    assert (pair.stream(), pair.durable(pair.stream_b, f"{pair.a}-workers")) == before


# --- what is made ------------------------------------------------------------------------------------


def test_the_stream_is_the_one_of_the_wire_contract(pair: Pair) -> None:
    settings = pair.of_a(DESTINATIONS={pair.b: {"partitions": 4}}, MAX_MESSAGES_PER_SUBJECT=500)
    version = version_of(settings)

    run(settings)
    config = pair.stream()

    assert config["subjects"] == [f"{pair.a}.sync.>"]
    assert {key: config.get(key) for key in ("retention", "storage", "discard", "max_age")} == {
        "retention": "workqueue",
        "storage": "file",
        "discard": "new",
        "max_age": 0,
    }
    assert (config["discard_new_per_subject"], config["max_msgs_per_subject"]) == (True, 500)
    assert (config["duplicate_window"], config["num_replicas"]) == (120 * SECOND, 1)
    assert not config.get("allow_rollup_hdrs")
    assert not config.get("allow_msg_schedules")
    assert bool(config.get("allow_msg_ttl")) is (version >= (2, 11, 0))
    assert bool(config.get("allow_atomic")) is (version >= (2, 12, 1))
    if version >= (2, 10, 0):
        assert config["metadata"][f"jetbridge.partitions.{pair.a}.{pair.b}"] == "4"
        assert config["metadata"]["jetbridge.app"] == pair.a


def test_a_full_subject_refuses_and_the_others_go_on(pair: Pair) -> None:
    """Why there is a cap per subject: a dead destination must not stop the living ones."""
    settings = pair.of_a(DESTINATIONS=[pair.b, "mail"], MAX_MESSAGES_PER_SUBJECT=2)
    run(settings)
    pair.publish(f"{pair.a}.sync.{pair.b}", 2)

    async def publish(connection: Connection) -> list[bytes]:
        return [await connection.request(f"{pair.a}.sync.{name}", b"{}") for name in (pair.b, "mail")]

    refused, stored = connected(settings, publish)

    assert b'"err_code":10077' in refused
    assert b'"seq":3' in stored


def test_a_durable_per_partition_reads_exactly_its_subject(pair: Pair) -> None:
    run(pair.of_b(DESTINATIONS={pair.a: {"partitions": 3}}))

    report = run(pair.of_a(SOURCES={pair.b: {"partitions": 3}}, ACK_WAIT_S=7, MAX_ACK_PENDING=300))

    assert report.is_complete
    for number in range(3):
        config = pair.durable(pair.stream_b, f"{pair.a}-workers-{number}")
        assert config["filter_subject"] == f"{pair.b}.sync.{pair.a}.{number}"
        assert (config["ack_policy"], config["deliver_policy"]) == ("explicit", "all")
        assert (config["max_deliver"], config.get("backoff")) == (-1, None)
        assert (config["ack_wait"], config["max_ack_pending"]) == (7 * SECOND, 300)


def test_two_sources_in_one_stream_share_one_durable(pair: Pair) -> None:
    """The durable's name has no source in it, so it must read both."""
    stream = f"SHARED-{pair.a}"
    pair.make_stream(stream, subjects=[f"x.sync.{pair.a}", f"y.sync.{pair.a}"])
    settings = pair.of_a(SOURCES={"x": {"stream": stream}, "y": {"stream": stream}})
    try:
        report = run(settings)

        if version_of(settings) < (2, 10, 0):
            assert not report.is_complete
            assert f"durable {pair.a}-workers in stream {stream}: filter_subjects" in unrepaired(report)
            return
        assert (actions(report), report.is_complete) == (["created", "created"], True)
        filters = pair.durable(stream, f"{pair.a}-workers")["filter_subjects"]
        assert filters == [f"x.sync.{pair.a}", f"y.sync.{pair.a}"]
        assert actions(run(settings)) == ["unchanged", "unchanged"]
    finally:
        pair.api(f"STREAM.DELETE.{stream}")


# --- looking without touching ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["plan", "check"])
def test_plan_and_check_change_nothing(pair: Pair, mode: str) -> None:
    run(pair.of_b())

    report = run(pair.of_a(), mode)  # type: ignore[arg-type]

    assert actions(report) == ["create", "create"]
    assert {one.what: one.found for one in report.drift} == {
        f"stream {pair.stream_a}": "missing",
        f"durable {pair.a}-workers in stream {pair.stream_b}": "missing",
    }
    assert report.is_complete is (mode == "plan")
    assert "error" in pair.api(f"STREAM.INFO.{pair.stream_a}")


def test_plan_shows_what_would_be_updated(pair: Pair) -> None:
    run(pair.of_b())
    run(pair.of_a())

    report = run(pair.of_a(ACK_WAIT_S=3), "plan")

    assert actions(report) == ["unchanged", "update"]
    assert report.document()["drift"] == [
        {
            "what": f"durable {pair.a}-workers in stream {pair.stream_b}: ack_wait",
            "wanted": 3 * SECOND,
            "found": 10 * SECOND,
        }
    ]


# --- merging -----------------------------------------------------------------------------------------


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


# --- shared streams ----------------------------------------------------------------------------------


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


def test_services_that_join_a_shared_stream_at_once_all_get_in(pair: Pair) -> None:
    """An update carries all subjects, so the later of two drops what the earlier one added."""
    stream = f"SHARED-{pair.a}"
    pair.make_stream(stream, subjects=["first." + pair.a])
    apps = [f"app{number}-{pair.a}" for number in range(6)]

    async def join() -> list[ProvisionReport]:
        def one(app: str) -> ProvisionReport:
            return run(settings_of(app, pair.url, STREAM=stream, DESTINATIONS=["x"]))

        return await asyncio.gather(*(asyncio.to_thread(one, app) for app in apps))

    reports = asyncio.run(join())

    assert all(one.is_complete for one in reports), [one.text() for one in reports]
    assert set(pair.stream(stream)["subjects"]) == {
        "first." + pair.a,
        *(f"{app}.sync.{name}" for app in apps for name in ("x", "dlq")),
    }


# --- partitions --------------------------------------------------------------------------------------


def test_publisher_and_consumer_must_agree_on_partitions(pair: Pair) -> None:
    run(pair.of_b(DESTINATIONS={pair.a: {"partitions": 4}}))

    report = run(pair.of_a(SOURCES={pair.b: {"partitions": 2}}))

    if version_of(pair.of_a()) < (2, 10, 0):
        assert codes(report) == {"old_server", "partitions_unknown"}
        return
    assert not report.is_complete
    assert unrepaired(report) == {f"partitions of {pair.b} for {pair.a}": (2, 4)}


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


# --- messages nobody reads ---------------------------------------------------------------------------


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


# --- no JetStream ------------------------------------------------------------------------------------


def test_an_account_without_jetstream_is_said_so(tmp_path: Path) -> None:
    with EmbeddedServer(
        tmp_path, conf_extra="accounts { A { users: [{user: u, password: pw12}] } }"
    ) as server:
        settings = settings_of("orders", server.url.replace("//", "//u:pw12@"))

        with pytest.raises(BrokerUnreachable, match=r"JetStream|STREAM\.INFO"):
            connected(settings, lambda one: provision(one, settings))

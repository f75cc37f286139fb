"""
Provisioning on real servers: either order, what is made, dry runs, clusters.

Every test runs on the installed nats-server, and on all those in the folder ``JETBRIDGE_NATS_SERVERS``.
"""

from __future__ import annotations

import asyncio
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
from testproject.processes import free_port
from tests.broker.provisioning import (
    SECOND,
    Pair,
    actions,
    codes,
    connected,
    run,
    settings_of,
    unrepaired,
    version_of,
)
from tests.waiting import eventually

# --- two services ---------------------------------------------------------------------------------


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


# --- what is made ---------------------------------------------------------------------------------


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


# --- looking without touching ---------------------------------------------------------------------


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


# --- servers --------------------------------------------------------------------------------------


def test_replicas_need_a_cluster(pair: Pair) -> None:
    report = run(pair.of_a(SOURCES=[], REPLICAS=3))

    assert (actions(report), report.is_complete) == (["refused"], False)
    assert "replicas > 1 not supported in non-clustered mode" in report.text()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[EmbeddedServer]]:
    routes = [free_port() for _ in range(3)]
    urls = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
    servers = [
        EmbeddedServer(
            tmp_path / str(port),
            conf_extra=f"server_name: s{port}\ncluster {{ name: C, listen: 127.0.0.1:{port}, routes: [{urls}] }}",
        )
        for port in routes
    ]
    try:
        yield [server.start() for server in servers]
    finally:
        for server in servers:
            server.stop()


def test_a_single_replica_on_a_cluster_is_warned_of_and_can_grow(cluster: list[EmbeddedServer]) -> None:
    url = ",".join(server.url for server in cluster)
    keys: dict[str, Any] = {"NATS_URLS": url, "DESTINATIONS": ["billing"], "SOURCES": []}
    single, triple = settings_of("orders", url, **keys), settings_of("orders", url, **keys, REPLICAS=3)

    def once_it_has_a_leader() -> ProvisionReport | None:
        try:
            return run(single)
        except BrokerUnreachable:
            return None

    first = eventually(once_it_has_a_leader, 30.0)
    grown, kept = run(triple), run(single)

    assert first is not None
    assert codes(first) == {"single_replica"}
    assert (actions(grown), grown.is_complete, codes(grown)) == (["updated"], True, set())
    assert (actions(kept), codes(kept)) == (["unchanged"], {"kept_larger"})


def test_an_account_without_jetstream_is_said_so(tmp_path: Path) -> None:
    with EmbeddedServer(
        tmp_path, conf_extra="accounts { A { users: [{user: u, password: pw12}] } }"
    ) as server:
        settings = settings_of("orders", server.url.replace("//", "//u:pw12@"))

        with pytest.raises(BrokerUnreachable, match=r"JetStream|STREAM\.INFO"):
            connected(settings, lambda one: provision(one, settings))

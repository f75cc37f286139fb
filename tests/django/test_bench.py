"""``manage.py jetbridge_bench``: what it reports is counted, and what it made is gone. No speeds are asserted."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import override_settings

import jetbridge
from jetbridge import conf
from jetbridge.jetstream.provision_api import error_of
from jetbridge.leases import store as leases
from jetbridge.management.bench import events, streams
from jetbridge.management.bench.plan import thresholds
from jetbridge.management.bench.report import Run, Sample, document, shortfalls
from jetbridge.models import Archive, DeadLetter, Inbox, Lease, Outbox, OutboxState
from jetbridge.registry import registry
from tests.servers import NatsServer

DOCUMENT = {
    "schema",
    "measure",
    "settings",
    "versions",
    "runs",
    "limit",
    "ratio",
    "median",
    "order_violations",
    "stored",
    "stream",
}
RUN = {"events_per_s", "wall_s", "cpu_s_per_10k", "statements_per_event", "p50_ms", "p95_ms", "p99_ms"}
LIMITS = {"sequential", "window", "atomic", "bare_loop"}

pytestmark = pytest.mark.django_db(transaction=True)


class Bench:
    """``jetbridge_bench`` of a project, in this process."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.settings: dict[str, Any] = {
            "APP_NAME": "orders",
            "NATS_URLS": [url],
            "DESTINATIONS": ["billing"],
            "LEASE_S": 3,
            "ACK_WAIT_S": 2,
            "PUBLISH_TIMEOUT_S": 2,
            "PAGE_SIZE": 40,
        }

    def __call__(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, document, stderr."""
        stdout, stderr = io.StringIO(), io.StringIO()
        code = 0
        with override_settings(JETBRIDGE=self.settings):
            try:
                call_command("jetbridge_bench", *arguments, "--format=json", stdout=stdout, stderr=stderr)
            except SystemExit as ended:
                code = int(ended.code or 0)
            assert django_settings.JETBRIDGE is self.settings
            assert conf.get_settings().app_name == "orders"
        return code, json.loads(stdout.getvalue()), stderr.getvalue()

    def refused(self, *arguments: str) -> CommandError:
        with override_settings(JETBRIDGE=self.settings), pytest.raises(CommandError) as raised:
            call_command("jetbridge_bench", *arguments, stdout=io.StringIO(), stderr=io.StringIO())
        return raised.value

    def publish(self) -> None:
        with override_settings(JETBRIDGE=self.settings):
            jetbridge.publish("order.placed", {"id": 1})

    def streams(self) -> list[str]:
        async def names() -> list[str]:
            async with streams.connected(conf.get_settings()) as connection:
                answer = await connection.api("STREAM.NAMES")
            assert not error_of(answer)[0], answer
            found = answer.get("streams") or []
            assert isinstance(found, list)
            return [name for name in found if name.startswith("jetbridge-bench-")]

        with override_settings(JETBRIDGE=self.settings):
            return asyncio.run(names())


@pytest.fixture
def bench(nats_server: NatsServer) -> Bench:
    return Bench(nats_server.url)


def nothing_is_left(bench: Bench) -> None:
    tables = connection.introspection.table_names()

    assert bench.streams() == []
    assert [table for table in tables if table.startswith("jetbridge_bench")] == []
    assert not Archive.objects.exists()
    assert not Inbox.objects.exists()
    assert not DeadLetter.objects.exists()
    assert not Lease.objects.filter(name__startswith="consume/").exists()
    assert registry.get("jetbridge.bench") is None


@pytest.mark.parametrize(
    ("measure", "limits"),
    [
        ("relay", {"sequential", "window"}),
        ("publish", {"bare_loop"}),
        ("publish-many", {"bare_loop"}),
        ("consume", {"bare_loop"}),
        ("latency", set()),
    ],
)
def test_a_measure_reports_what_it_counted_and_leaves_nothing(
    bench: Bench, measure: str, limits: set[str], tmp_path: Path
) -> None:
    """``stored`` is the database's count, ``stream`` the server's, both over all repetitions."""
    file = tmp_path / "bench.json"
    count = 10 if measure == "latency" else 120
    code, found, stderr = bench(
        measure, "--events", str(count), "--keys", "7", "--repeat", "2", "--output", str(file)
    )

    assert (code, found["order_violations"]) == (0, 0), stderr
    assert set(found) == DOCUMENT
    assert found == json.loads(file.read_text())
    assert found["measure"] == measure
    assert found["stored"] == 2 * count
    assert found["stream"] == (0 if measure.startswith("publish") else 2 * count)
    assert len(found["runs"]) == 2
    assert all(set(run) == RUN and run["events_per_s"] > 0 for run in found["runs"])
    assert set(found["limit"]) == set(found["ratio"]) == LIMITS
    assert {name for name, value in found["limit"].items() if value} == limits
    assert {name for name, value in found["ratio"].items() if value} == limits
    assert found["settings"]["events"] == count
    assert not Outbox.objects.exists()
    nothing_is_left(bench)


def test_several_relays_share_a_backlog(bench: Bench) -> None:
    """Processes of their own, which are gone afterwards, with their leases."""
    code, found, stderr = bench("relay", "--events", "120", "--keys", "30", "--repeat", "1", "--relays", "2")

    assert (code, found["stored"], found["stream"], found["order_violations"]) == (0, 120, 120, 0), stderr
    assert found["settings"]["relays"] == 2
    assert not Lease.objects.exclude(owner="").exists()
    nothing_is_left(bench)


def test_several_relays_are_refused_where_they_are_not_measured(bench: Bench) -> None:
    assert "--relays 2 is for the measure 'relay'" in str(bench.refused("publish", "--relays", "2"))


@pytest.mark.parametrize("handler", ["empty", "sleep"])
def test_other_handlers_write_no_row(bench: Bench, handler: str) -> None:
    code, found, stderr = bench("consume", "--events", "30", "--repeat", "1", "--handler", handler)

    assert code == 0, stderr
    assert (found["stored"], found["settings"]["handler"]) == (30, handler)


def test_the_text_form_names_limits_and_counts(bench: Bench) -> None:
    stdout = io.StringIO()
    with override_settings(JETBRIDGE=bench.settings):
        call_command(
            "jetbridge_bench", "relay", "--events=50", "--repeat=1", stdout=stdout, stderr=io.StringIO()
        )

    assert "window " in stdout.getvalue()
    assert "order violations 0, stored 50, stream 50" in stdout.getvalue()


def test_a_missed_threshold_exits_3_and_still_reports(bench: Bench) -> None:
    code, found, stderr = bench(
        "publish", "--events=20", "--repeat=1", "--fail-under=events_per_s=1e9,ratio.bare_loop=0.0001"
    )

    assert code == 3
    assert found["stored"] == 20
    assert "events_per_s is " in stderr
    assert "under 1e+09" in stderr
    assert "ratio.bare_loop" not in stderr
    nothing_is_left(bench)


@pytest.mark.parametrize("wrong", ["p50_ms=3", "ratio.window=1", "events_per_s=fast", "ratio=1"])
def test_a_threshold_that_the_measure_does_not_have_is_refused(bench: Bench, wrong: str) -> None:
    error = bench.refused("publish", "--events=20", "--fail-under", wrong)

    assert error.returncode == 2
    assert "--fail-under" in str(error)


def test_a_used_outbox_is_refused_without_yes(bench: Bench) -> None:
    bench.publish()

    error = bench.refused("relay", "--events=20", "--repeat=1")

    assert error.returncode == 2
    assert "1 rows" in str(error)
    assert "--yes" in str(error)
    assert Outbox.objects.filter(state=OutboxState.READY).count() == 1
    nothing_is_left(bench)


def test_with_yes_the_projects_rows_are_neither_sent_nor_changed(bench: Bench) -> None:
    bench.publish()
    before = Outbox.objects.values().get()

    code, found, stderr = bench("relay", "--events=60", "--repeat=1", "--yes")
    after = Outbox.objects.values().get()

    assert code == 0, stderr
    assert found["stored"] == found["stream"] == 60
    assert {**after, "state_at": None} == {**before, "state_at": None}
    nothing_is_left(bench)


def test_a_relay_at_work_is_refused(bench: Bench) -> None:
    """It would take the benchmark's events and park them; --yes does not help against that."""
    leases.ensure(["relay/00"], using="default")
    leases.acquire(["relay/00"], owner="someone:1", ttl_s=60, limit=1, using="default")

    error = bench.refused("relay", "--events=20", "--yes")

    assert error.returncode == 2
    assert "someone:1" in str(error)


def test_no_broker_exits_4_and_leaves_nothing(bench: Bench) -> None:
    bench.settings["NATS_URLS"] = ["nats://127.0.0.1:1"]
    error = bench.refused("relay", "--events=20")
    bench.settings["NATS_URLS"] = [bench.url]

    assert error.returncode == 4
    nothing_is_left(bench)


def test_keep_leaves_the_stream_and_the_rows(bench: Bench) -> None:
    code, _, stderr = bench("publish", "--events=20", "--repeat=1", "--keep")

    assert code == 0, stderr
    assert Outbox.objects.count() == 20
    with connection.schema_editor() as editor:
        for table in connection.introspection.table_names():
            if table.startswith("jetbridge_bench"):
                editor.execute(editor.sql_delete_table % {"table": editor.quote_name(table)})


def test_order_violations_are_counted_per_key() -> None:
    assert events.order_violations([("a", 0), ("b", 1), ("a", 2), ("b", 3)]) == 0
    assert events.order_violations([("a", 2), ("b", 0), ("a", 1), ("a", 0), ("a", 3)]) == 2


def test_a_repeated_event_is_no_violation() -> None:
    assert events.order_violations([("a", 1), ("a", 1), ("a", 2)]) == 0


def test_ratios_are_medians_of_each_repetitions_own_ratio() -> None:
    samples = [
        Sample(
            run=Run(events_per_s=rate, wall_s=1, cpu_s_per_10k=1, statements_per_event=1),
            limit={"window": limit},
            order_violations=1,
            stored=5,
            stream=5,
        )
        for rate, limit in [(10, 100), (20, 40), (90, 100)]
    ]
    found = document("relay", {}, {}, samples)

    assert found["median"] == 20
    assert found["ratio"] == {"sequential": None, "window": 0.5, "atomic": None, "bare_loop": None}
    assert (found["order_violations"], found["stored"], found["stream"]) == (3, 15, 15)
    assert shortfalls(found, thresholds("events_per_s=20,ratio.window=0.5", "relay")) == []
    assert shortfalls(found, thresholds("ratio.window=0.6", "relay")) == [
        "ratio.window is 0.5, which is under 0.6."
    ]

"""What provisioning has to say beyond differences: partition counts, weak settings, messages nobody reads. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from jetbridge import topology
from jetbridge.conf import Source
from jetbridge.jetstream.provision_spec import (
    Change,
    Config,
    Notice,
    StreamFound,
    StreamSpec,
    metadata_of,
    partitions_key,
)
from jetbridge.jetstream.subjects import overlap


def check_partitions(source: Source, app: str, found: Config) -> Change | Notice | None:
    """Does the publisher cut its events for us into as many partitions as we read?"""
    metadata = metadata_of(found)
    recorded = metadata.get(partitions_key(source.name, app))
    if recorded == str(source.partitions):
        return None
    if recorded is not None:
        return Change(
            what=f"partitions of {source.name} for {app}",
            wanted=source.partitions,
            found=int(recorded) if recorded.isdigit() else recorded,
            repair=False,
            advice=f'{source.name} publishes another number than JETBRIDGE["SOURCES"]["{source.name}"] says here: '
            "some events would wait for ever, or lose their order. Make both the same.",
        )
    if metadata.get("jetbridge.app") == source.name:
        return Notice(
            code="not_a_destination",
            text=f'{source.name} does not list {app!r} in its JETBRIDGE["DESTINATIONS"]: nothing will arrive.',
        )
    if source.partitions > 1:
        return Notice(
            code="partitions_unknown",
            text=f"Stream {source.stream} does not tell the partition count of {source.name}; "
            f"{source.partitions} could not be checked.",
        )
    return None


def weaknesses(name: str, found: StreamFound) -> list[Notice]:
    """What is legal, but weakens the promises for messages in this stream."""
    config = found.config
    told = (
        (
            "memory_storage",
            config.get("storage") == "memory",
            "keeps messages in memory: a restart loses them.",
        ),
        (
            "single_replica",
            found.clustered and config.get("num_replicas") == 1,
            'has one replica on a cluster: the loss of one node stops or loses it. Set JETBRIDGE["REPLICAS"] to 3.',
        ),
        (
            "discard_old",
            config.get("discard") != "new",
            "deletes unread messages behind positive acks when it is full.",
        ),
        ("max_age", bool(config.get("max_age")), "deletes unread messages by age."),
        (
            "rollup_allowed",
            bool(config.get("allow_rollup_hdrs")),
            "allows rollups: any publisher can wipe it.",
        ),
        (
            "schedules_allowed",
            bool(config.get("allow_msg_schedules")),
            "allows schedules: any publisher can send to any of its subjects.",
        ),
    )
    return [Notice(code=code, text=f"Stream {name} {text}") for code, true, text in told if true]


def kept_larger(spec: StreamSpec, found: StreamFound) -> list[Notice]:
    """Limits of the own stream that are larger than the settings say. They are never lowered."""
    if spec.shared:
        return []
    return [
        Notice(
            code="kept_larger",
            text=f"Stream {spec.name} keeps {key} {there}; the settings say {wanted}. Lowering is left to you.",
        )
        for key in ("max_msgs_per_subject", "num_replicas")
        if isinstance(there := found.config.get(key), int) and isinstance(wanted := spec.config[key], int)
        if there > wanted
    ]


def unread(spec: StreamSpec, found: StreamFound, filters: Iterable[str]) -> list[Notice]:
    """Subjects of ours that hold messages which no durable reads. Notices of dead letters are meant to lie."""
    filters = tuple(filters)
    return [
        Notice(
            code="no_durable",
            text=f"{count} messages wait on {subject}, which no durable of stream {spec.name} reads. "
            "Has its reader run jetbridge_provision?",
        )
        for subject, count in sorted(found.messages.items())
        if subject != topology.dlq_subject(spec.app) and not any(overlap(subject, one) for one in filters)
    ]


def stale(stream: str, app: str, there: Iterable[str], used: Collection[str]) -> list[Notice]:
    """Durables of an earlier partition count: nothing reads them any more, and what they hold waits for ever."""
    ours = re.compile(re.escape(topology.durable_name(app)) + r"(-\d+)?")
    return [
        Notice(
            code="stale_durable",
            text=f"Durable {name} in stream {stream} is not used by these settings any more. "
            "Delete it once nothing waits in it.",
        )
        for name in there
        if ours.fullmatch(name) and name not in used
    ]

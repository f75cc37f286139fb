"""
Compare a wish with what the server has, and say which request to send. Pure, no I/O.

Updates only merge: subjects, metadata and limits of others stay, larger limits stay, and fields that are not ours go
back as they came. What cannot be repaired without risk for messages is refused, with advice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from jetbridge.jetstream import features
from jetbridge.jetstream.features import Version
from jetbridge.jetstream.provision_spec import (
    Change,
    Config,
    ConsumerSpec,
    Plan,
    StreamFound,
    StreamSpec,
    filter_fields,
    filters_of,
    metadata_of,
    numbers,
    partitions_key,
    same,
    stream_metadata,
    waiting,
)
from jetbridge.jetstream.subjects import covered, union
from jetbridge.topology import subject

SET: Final = ("discard", "discard_new_per_subject", "max_age", "duplicate_window")
SWITCHES: Final = ("allow_msg_ttl", "allow_atomic")
FIXED_IN_A_CONSUMER: Final = ("ack_policy", "deliver_policy", "deliver_subject")
KEPT_IN_A_CONSUMER: Final = ("max_deliver", "ack_wait", "max_ack_pending", "backoff", "inactive_threshold")

RECREATE_STREAM: Final = (
    "The server cannot change this. Let the consumers drain the stream, delete it and run this again, "
    'or name another one in JETBRIDGE["STREAM"].'
)
RECREATE_DURABLE: Final = (
    "Somebody else made this durable, or it served another purpose. Stop its readers, delete it and run this again; "
    "what it had not acknowledged is delivered anew."
)


def plan_stream(spec: StreamSpec, found: StreamFound | None, version: Version) -> Plan:
    """Create, merge into, or refuse to touch the stream."""
    what = f"stream {spec.name}"
    ours = features.known({**spec.config, "metadata": stream_metadata(spec)}, features.STREAM_FIELDS, version)
    if found is None:
        request = {"name": spec.name, "subjects": list(spec.subjects), **ours}
        return Plan(step="create", request=request, changes=(_missing(what),))
    merged = _merged(spec, found, ours)
    changes = [
        *_unchangeable(what, spec, found),
        *_unsafe_cap(what, found, merged),
        *_moved_partitions(spec, found),
        *_differences(what, merged, found.config),
    ]
    return _plan(changes, {**found.config, **merged})


def plan_consumer(spec: ConsumerSpec, found: Config | None) -> Plan:
    """Create, merge into, or refuse to touch a durable; ``found`` is its configuration."""
    what = f"durable {spec.name} in stream {spec.stream}"
    if found is None:
        request = {**spec.config, **filter_fields(spec.filters)}
        return Plan(step="create", request=request, changes=(_missing(what),))
    kept = {key: spec.config.get(key) for key in KEPT_IN_A_CONSUMER}
    changes = [
        *(
            Change(
                what=f"{what}: {key}",
                wanted=spec.config.get(key),
                found=found.get(key),
                repair=False,
                advice=RECREATE_DURABLE,
            )
            for key in FIXED_IN_A_CONSUMER
            if not same(spec.config.get(key), found.get(key))
        ),
        *_other_filters(what, spec, found),
        *_differences(what, kept, found),
    ]
    untouched = {
        key: value for key, value in found.items() if key not in {"filter_subject", "filter_subjects", *kept}
    }
    repaired = {key: value for key, value in kept.items() if value is not None}
    return _plan(changes, {**untouched, **repaired, **filter_fields(spec.filters)})


def dropped(what: str, asked: Config, returned: Config) -> list[Change]:
    """Fields that the server took without complaint and did not keep."""
    advice = "The server did not keep what it accepted. Is an older server part of the cluster?"
    return [
        Change(what=f"{what}: {key}", wanted=value, found=returned.get(key), repair=False, advice=advice)
        for key, value in asked.items()
        if not (_contains(returned, value) if key == "metadata" else same(value, returned.get(key)))
    ]


def _contains(returned: Config, asked: object) -> bool:
    # "_nats.*" describes the server and is rewritten by it, for instance after an upgrade.
    there = metadata_of(returned)
    mine = metadata_of({"metadata": asked})
    return all(there.get(key) == value for key, value in mine.items() if not key.startswith("_nats."))


def _missing(what: str) -> Change:
    return Change(what=what, wanted="present", found="missing")


def _plan(changes: list[Change], request: Config) -> Plan:
    if any(not one.repair for one in changes):
        return Plan(step="refused", request={}, changes=tuple(changes))
    return Plan(step="update" if changes else "unchanged", request=request, changes=tuple(changes))


def _merged(spec: StreamSpec, found: StreamFound, ours: Config) -> dict[str, object]:
    merged: dict[str, object] = {"subjects": union(found.subjects, spec.subjects)}
    if "metadata" in ours:
        merged["metadata"] = {**metadata_of(found.config), **stream_metadata(spec)}
    merged |= {key: True for key in SWITCHES if key in ours}
    if spec.shared:
        return merged
    merged |= {key: ours[key] for key in SET}
    merged["num_replicas"] = max(_number(found.config, "num_replicas"), _number(ours, "num_replicas"))
    cap = _number(found.config, "max_msgs_per_subject")
    merged["max_msgs_per_subject"] = max(cap, _number(ours, "max_msgs_per_subject"))
    return merged


def _unchangeable(what: str, spec: StreamSpec, found: StreamFound) -> Iterable[Change]:
    for key in ("retention",) if spec.shared else ("retention", "storage"):
        if found.config.get(key) != spec.config[key]:
            yield Change(
                what=f"{what}: {key}",
                wanted=spec.config[key],
                found=found.config.get(key),
                repair=False,
                advice=RECREATE_STREAM,
            )


def _unsafe_cap(what: str, found: StreamFound, merged: Config) -> Iterable[Change]:
    # Put below what a subject holds, the cap makes recent servers delete the oldest messages at once, discard "new"
    # or not.
    cap = merged.get("max_msgs_per_subject")
    fullest = max(found.messages.values(), default=0)
    if isinstance(cap, int) and cap < fullest:
        yield Change(
            what=f"{what}: max_msgs_per_subject",
            wanted=cap,
            found=found.config.get("max_msgs_per_subject"),
            repair=False,
            advice=f"A subject holds {fullest} unread messages; a lower cap would delete some of them. "
            'Drain it first, or raise JETBRIDGE["MAX_MESSAGES_PER_SUBJECT"].',
        )


def _moved_partitions(spec: StreamSpec, found: StreamFound) -> Iterable[Change]:
    recorded = metadata_of(found.config)
    for destination, count in spec.partitions.items():
        before = recorded.get(partitions_key(spec.app, destination), str(count))
        old = [subject(spec.app, destination, one) for one in numbers(int(before) if before.isdigit() else 1)]
        if before != str(count) and (left := waiting(found, old)):
            yield Change(
                what=f"partitions of {spec.app} for {destination}",
                wanted=count,
                found=before,
                repair=False,
                advice=f"{left} messages wait in the old partitions: later ones of the same keys would overtake them. "
                f"Stop the relay, let {destination} drain them, and run this again.",
            )


def _other_filters(what: str, spec: ConsumerSpec, found: Config) -> Iterable[Change]:
    there = filters_of(found)
    if sorted(there) != sorted(spec.filters):
        known = set(there) <= set(spec.filters)
        yield Change(
            what=f"{what}: filter",
            wanted=list(spec.filters),
            found=list(there),
            repair=known,
            advice="" if known else RECREATE_DURABLE,
        )


def _differences(what: str, wanted: Mapping[str, object], found: Config) -> Iterable[Change]:
    for key, value in wanted.items():
        if key == "metadata":
            yield from _metadata_differences(what, value, found)
        elif not same(value, found.get(key)):
            yield Change(what=f"{what}: {key}", wanted=value, found=found.get(key))


def _metadata_differences(what: str, wanted: object, found: Config) -> Iterable[Change]:
    there = metadata_of(found)
    for key, value in metadata_of({"metadata": wanted}).items():
        if there.get(key) != value:
            yield Change(what=f"{what}: metadata {key}", wanted=value, found=there.get(key))


def _number(config: Config, key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else 0


def covers(found: StreamFound, filters: Iterable[str]) -> bool:
    """Whether the stream takes everything that the filters ask for."""
    return all(any(covered(one, by) for by in found.subjects) for one in filters)

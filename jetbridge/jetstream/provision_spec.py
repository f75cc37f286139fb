"""
The words of provisioning: what is wanted, what was found, what differs.

``wanted()`` turns settings into one stream and the durables in the sources' streams. Pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from jetbridge import topology
from jetbridge.conf import Settings

Config = Mapping[str, object]
Step = Literal["create", "update", "unchanged", "refused"]
NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference. ``repair`` is false where provisioning keeps its hands off; ``advice`` then says what to do."""

    what: str
    wanted: object
    found: object
    repair: bool = True
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that works, but that an operator should know. ``code`` is stable."""

    code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """The stream an app publishes to. In a shared one only subjects, metadata and switches are ours."""

    name: str
    app: str
    shared: bool
    subjects: tuple[str, ...]
    config: Config
    partitions: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSpec:
    """A durable of this app in a source's stream. More than one filter only where two sources share a stream."""

    stream: str
    name: str
    filters: tuple[str, ...]
    config: Config


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFound:
    """What STREAM.INFO told. ``messages`` counts the unread ones per subject of this app."""

    config: Config
    messages: Mapping[str, int] = field(default_factory=dict)
    clustered: bool = False

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects the stream takes."""
        found = self.config.get("subjects")
        return tuple(str(one) for one in found) if isinstance(found, list) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The next step and the configuration to send for it. Of a refused plan nothing is sent."""

    step: Step
    request: Config
    changes: tuple[Change, ...] = ()


def wanted(settings: Settings) -> tuple[StreamSpec, tuple[ConsumerSpec, ...]]:
    """The own stream, and the durables in the order of ``SOURCES``."""
    return _stream(settings), _consumers(settings)


def partitions_key(source: str, destination: str) -> str:
    """Where a publisher records its partition count for a destination. Named by both: a stream may be shared."""
    return f"jetbridge.partitions.{source}.{destination}"


def numbers(partitions: int) -> tuple[int | None, ...]:
    """The partition tokens of a subject: none for one partition, else 0 to n - 1."""
    return (None,) if partitions == 1 else tuple(range(partitions))


def stream_metadata(spec: StreamSpec) -> dict[str, str]:
    """What we write into the metadata of the stream."""
    own = {} if spec.shared else {"jetbridge.app": spec.app}
    return own | {partitions_key(spec.app, name): str(count) for name, count in spec.partitions.items()}


def metadata_of(config: Config) -> dict[str, str]:
    """The metadata of a configuration, empty where there is none."""
    found = config.get("metadata")
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, Mapping) else {}


def filters_of(consumer: Config) -> tuple[str, ...]:
    """Both spellings of a consumer's filter; none means everything (``>``)."""
    many = consumer.get("filter_subjects")
    if isinstance(many, list) and many:
        return tuple(str(one) for one in many)
    return (str(consumer.get("filter_subject") or ">"),)


def filter_fields(filters: tuple[str, ...]) -> dict[str, object]:
    """A single filter in the old spelling: every server knows it, and permissions can name it."""
    return {"filter_subject": filters[0]} if len(filters) == 1 else {"filter_subjects": list(filters)}


def same(a: object, b: object) -> bool:
    """Equal, where absent, zero, false and empty are one: servers leave such fields out or in as they like."""
    if isinstance(a, list) and isinstance(b, list):
        return sorted(map(str, a)) == sorted(map(str, b))
    return (a or None) == (b or None)


def _stream(settings: Settings) -> StreamSpec:
    app = settings.app_name
    shared = settings.stream != topology.stream_name(app)
    return StreamSpec(
        name=settings.stream,
        app=app,
        shared=shared,
        subjects=_shared_subjects(settings) if shared else topology.own_subjects(app),
        partitions={name: one.partitions for name, one in settings.destinations.items()},
        config={
            "retention": "workqueue",
            "storage": "file",
            # The server's default, "old", deletes unread messages behind positive acks when the stream is full.
            "discard": "new",
            # A dead destination fills only its own subject; the server demands a cap with it.
            "discard_new_per_subject": True,
            "max_msgs_per_subject": settings.max_messages_per_subject,
            "max_age": 0,
            "duplicate_window": round(settings.duplicate_window_s * NS),
            "num_replicas": settings.replicas,
            "allow_msg_ttl": True,
            "allow_atomic": True,
        },
    )


def _shared_subjects(settings: Settings) -> tuple[str, ...]:
    """Every subject by name. Both forms of a partitioned one: what was sent before the count changed is still there."""
    app = settings.app_name
    names: list[str] = []
    for name, destination in settings.destinations.items():
        names.append(topology.subject(app, name))
        if destination.partitions > 1:
            names.append(f"{topology.subject(app, name)}.*")
    return (*names, topology.dlq_subject(app))


def _consumers(settings: Settings) -> tuple[ConsumerSpec, ...]:
    app = settings.app_name
    filters: dict[tuple[str, str], list[str]] = {}
    for source in settings.sources.values():
        for number in numbers(source.partitions):
            place = (source.stream, topology.durable_name(app, number))
            # Two sources in one stream have one durable: its name does not tell them apart.
            filters.setdefault(place, []).append(topology.filter_subject(source.name, app, number))
    return tuple(
        ConsumerSpec(stream=stream, name=name, filters=tuple(found), config=_consumer_config(settings, name))
        for (stream, name), found in filters.items()
    )


def _consumer_config(settings: Settings, name: str) -> Config:
    return {
        "name": name,
        "durable_name": name,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        # Attempts live in the inbox. With a finite number here, a message whose worker dies at the last delivery
        # is stuck in the stream for good.
        "max_deliver": -1,
        "ack_wait": round(settings.ack_wait_s * NS),
        "max_ack_pending": settings.max_ack_pending,
    }


def waiting(found: StreamFound, subjects: Iterable[str]) -> int:
    """Unread messages on any of ``subjects``."""
    return sum(found.messages.get(one, 0) for one in subjects)

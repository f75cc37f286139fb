"""Which durables this app reads, and which of them a key belongs to. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from jetbridge import partition
from jetbridge.conf import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Durable:
    """One durable of this app. Sources that share a stream share it: a work queue allows no second reader."""

    stream: str
    partition: int | None
    sources: tuple[str, ...]

    @property
    def lease(self) -> str:
        """The lease under which it is pulled."""
        return (
            f"consume/{self.stream}" if self.partition is None else f"consume/{self.stream}/{self.partition}"
        )


def lease_of(source: str, key: str, event_id: str, settings: Settings) -> str:
    """
    The lease of the durable that brings the events of a key; a stored message runs under it, too.

    By the key, and not by the subject it came on: after a change of the partitions nobody may read that any more.
    """
    of = settings.sources[source]
    number = None if of.partitions == 1 else partition.partition(key or event_id, of.partitions)
    return Durable(stream=of.stream, partition=number, sources=(source,)).lease


def durables(settings: Settings) -> list[Durable]:
    """Every durable that this app reads, in the order of ``SOURCES``."""
    sources: dict[tuple[str, int | None], list[str]] = {}
    for source in settings.sources.values():
        numbers = [None] if source.partitions == 1 else list(range(source.partitions))
        for number in numbers:
            sources.setdefault((source.stream, number), []).append(source.name)
    return [
        Durable(stream=stream, partition=number, sources=tuple(names))
        for (stream, number), names in sources.items()
    ]

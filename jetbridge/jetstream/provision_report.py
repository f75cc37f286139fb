"""What provisioning did or would do: for people, and as the document of ``--format json``. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jetbridge.jetstream.provision_spec import Change, Notice

Action = Literal["created", "updated", "unchanged", "create", "update", "refused", "missing"]
# A run that only looks must not end green on messages that wait for nobody. A run that provisions may: its
# counterpart comes next.
PROBLEMS_OF_A_CHECK = frozenset({"no_durable"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamResult:
    """``create`` and ``update`` in a dry run, ``created`` and ``updated`` when done."""

    name: str
    action: str
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerResult:
    """As :class:`StreamResult`; ``missing``: the source's stream is not there yet."""

    stream: str
    name: str
    action: str
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisionReport:
    """One run. ``drift`` holds what differs: after ``apply`` only what was not repaired."""

    mode: str
    stream: StreamResult
    consumers: tuple[ConsumerResult, ...]
    drift: tuple[Change, ...]
    notices: tuple[Notice, ...]

    @property
    def is_complete(self) -> bool:
        """
        Nothing is left to do. For a plan: nothing that provisioning could not do.
        """
        if self.mode == "plan":
            return all(one.repair for one in self.drift)
        if self.mode == "check" and any(one.code in PROBLEMS_OF_A_CHECK for one in self.notices):
            return False
        return not self.drift

    def document(self) -> dict[str, object]:
        """The JSON document, without ``schema``."""
        return {
            "stream": {"name": self.stream.name, "action": self.stream.action},
            "consumers": [
                {"stream": one.stream, "name": one.name, "action": one.action} for one in self.consumers
            ],
            "drift": [{"what": one.what, "wanted": one.wanted, "found": one.found} for one in self.drift],
            "warnings": [{"code": one.code, "text": one.text} for one in self.notices],
        }

    def text(self) -> str:
        """Lines for people."""
        lines = [f"stream {self.stream.name}: {self.stream.action}", *_details(self.stream.changes)]
        for one in self.consumers:
            lines += [f"durable {one.name} in stream {one.stream}: {one.action}", *_details(one.changes)]
        for change in self.drift:
            if not change.repair:
                lines += [
                    f"PROBLEM {change.what}: {_difference(change)}.",
                    f"        {change.advice}",
                ]
        lines += [f"WARNING {one.text}" for one in self.notices]
        return "\n".join(lines)


def _difference(change: Change) -> str:
    if change.found == "missing":
        return "it is missing" if change.wanted == "present" else f"the one that {change.wanted} is missing"
    return f"expected: {change.wanted}; found: {change.found}"


def _details(changes: tuple[Change, ...]) -> list[str]:
    return [
        f"  {one.what.rpartition(': ')[2]}: {one.found} -> {one.wanted}"
        for one in changes
        if one.repair and one.found != "missing"
    ]

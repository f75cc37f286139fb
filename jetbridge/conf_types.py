"""
What a value of ``JETBRIDGE`` may be: one small parser per kind.

A parser takes the raw value and returns the parsed one, or raises ``ValueError`` with a text that
continues the sentence ``JETBRIDGE["KEY"] …``: what was expected, then what was found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from jetbridge import topology

_T = TypeVar("_T")
PATTERN: Final = re.compile(r"(\*|[^\s.*>]+)(\.(\*|[^\s.*>]+))*(\.>)?|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """An app this one publishes to. ``message_id=False`` leaves ``Nats-Msg-Id`` out."""

    name: str
    partitions: int = 1
    message_id: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An app this one reads from: the stream that holds its events and the partitions it publishes."""

    name: str
    stream: str
    partitions: int = 1


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be True or False, got {value!r}.")
    return value


def integer(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be an integer from {low} to {high}, got {value!r}.")
        return value

    return parse


def number(low: float, high: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}, got {value!r}.")
        return float(value)

    return parse


def choice(*names: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(map(repr, names))}, got {value!r}.")
        return str(value)

    return parse


def token(what: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        checked = _token(value)
        if what == "app" and checked == topology.DEAD_LETTERS:
            raise ValueError(f"must not be {checked!r}: that name is reserved for dead letters.")
        return checked

    return parse


def _token(value: object) -> str:
    try:
        return topology.check_token(value, "")
    except ValueError as fault:
        raise ValueError(str(fault).strip()) from None


def identifier(value: object) -> str:
    if not isinstance(value, str) or not all(part.isidentifier() for part in value.split(".")):
        raise ValueError(f"must be the name of a module, got {value!r}.")
    return value


def path(value: object) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError(f"must be a path, got {value!r}.")
    return Path(value)


def inbox_prefix(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a string, got {value!r}.")
    try:
        example = value.format(app="app", role="role")
    except (KeyError, IndexError, ValueError):
        raise ValueError(f"may contain only the fields {{app}} and {{role}}, got {value!r}.") from None
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", example):
        raise ValueError(f"must be a subject prefix without wildcards, got {value!r}.")
    return value


def urls(value: object) -> tuple[str, ...]:
    try:
        items = strings(value.split(",") if isinstance(value, str) else value)
    except ValueError:
        shown = _without_credentials(repr(value))
        raise ValueError(f"must be a list of addresses or one comma-separated string, got {shown}.") from None
    cleaned = tuple(item.strip() for item in items if item.strip())
    if cleaned == ("embedded",):
        return cleaned
    for item in cleaned:
        if not re.match(r"(nats|tls|ws|wss)://[^\s/]+", item):
            shown = _without_credentials(item)
            raise ValueError(f"must hold addresses such as nats://host:4222, got {shown!r}.")
    if not cleaned:
        raise ValueError(f"must name at least one server, got {value!r}.")
    return cleaned


def _without_credentials(shown: str) -> str:
    """In an address with a fault nobody knows where a password begins: everything before the last ``@`` goes."""
    return re.sub(r".*@", "***@", shown, flags=re.DOTALL)


def strings(value: object) -> tuple[str, ...]:
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(v, str) for v in value)
    ):
        raise ValueError(f"must be a list of strings, got {value!r}.")
    return tuple(value)


def aliases(value: object) -> tuple[str, ...]:
    found = strings(value)
    if not found or len(set(found)) != len(found):
        raise ValueError(f"must be a list of different database aliases, got {value!r}.")
    return found


def patterns(value: object) -> tuple[str, ...]:
    found = strings(value)
    for item in found:
        if PATTERN.fullmatch(item) is None:
            raise ValueError(f"must hold patterns such as 'order.*' or 'audit.>', got {item!r}.")
    return found


def durations(value: object) -> tuple[float, ...]:
    parse = number(0, 10**9)
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or not value:
        raise ValueError(f"must be a list of seconds, got {value!r}.")
    return tuple(parse(item) for item in value)


def destinations(value: object) -> Mapping[str, Destination]:
    parsed = {}
    for name, options in _named(value, {"partitions", "message_id"}):
        parsed[name] = Destination(
            name=name,
            partitions=_part(name, "partitions", integer(1, 1_024), options.get("partitions", 1)),
            message_id=_part(name, "message_id", boolean, options.get("message_id", True)),
        )
    return parsed


def sources(value: object) -> Mapping[str, Source]:
    parsed = {}
    for name, options in _named(value, {"partitions", "stream"}):
        parsed[name] = Source(
            name=name,
            stream=_part(name, "stream", _token, options.get("stream", topology.stream_name(name))),
            partitions=_part(name, "partitions", integer(1, 1_024), options.get("partitions", 1)),
        )
    return parsed


def _named(value: object, known: set[str]) -> list[tuple[str, Mapping[str, object]]]:
    """Both spellings of DESTINATIONS and SOURCES as (name, options) pairs."""
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        pairs = [(name, {}) for name in value]
    else:
        raise ValueError(f"must be a list of app names or a dict, got {value!r}.")
    for name, options in pairs:
        token("app")(name)
        if not isinstance(options, Mapping) or set(options) - known:
            raise ValueError(f"of {name!r} must be a dict with keys from {sorted(known)}, got {options!r}.")
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError(f"must not name an app twice, got {value!r}.")
    return pairs


def _part(name: str, key: str, parse: Callable[[object], _T], value: object) -> _T:
    try:
        return parse(value)
    except ValueError as fault:
        raise ValueError(f"of {name!r}: {key} {fault}") from None

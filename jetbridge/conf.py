"""
The one setting ``JETBRIDGE``: every key with its default, unit, range and reason.

``get_settings()`` returns a frozen :class:`Settings`; ``read(raw)`` is the pure function behind it and
returns every fault at once, which is what the system checks show. Nothing here does I/O.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Final, cast

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from jetbridge import topology
from jetbridge.conf_options import OPTIONS, Option
from jetbridge.conf_types import Destination, Source

__all__ = ["OPTIONS", "Destination", "Option", "Settings", "Source", "get_settings", "read"]

EMBEDDED: Final = "embedded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The parsed setting. Attributes are the keys of ``JETBRIDGE`` in lower case; durations are seconds."""

    app_name: str
    nats_urls: tuple[str, ...]
    embedded_dir: Path
    inbox_prefix: str
    destinations: Mapping[str, Destination]
    sources: Mapping[str, Source]
    stream: str
    replicas: int
    duplicate_window_s: float
    max_messages_per_subject: int
    databases: tuple[str, ...]
    database_timeout_s: float
    require_atomic: bool
    max_payload_bytes: int
    poll_interval_s: float
    page_size: int
    window: int
    publish_timeout_s: float
    lease_s: float
    on_refused: str
    park_retry_s: float
    read_stream_info: bool
    handlers_module: str
    concurrency: int
    max_in_flight: int
    max_ack_pending: int
    ack_wait_s: float
    lock_timeout_s: float
    handler_timeout_s: float
    max_attempts: int
    max_starts: int
    backoff: tuple[float, ...]
    unknown_events: str
    ignored_events: tuple[str, ...]
    dlq_ttl_s: float
    shutdown_timeout_s: float

    @property
    def embedded(self) -> bool:
        """Whether the server is the one that ``jetbridge_dev`` starts."""
        return self.nats_urls == (EMBEDDED,)

    def inbox_prefix_for(self, role: str) -> str:
        """The reply inbox of a role: ``relay``, ``worker``, ``admin``. One per role: no user reads another's."""
        return self.inbox_prefix.format(app=self.app_name, role=role)


_WITHIN_A_LEASE: Final = {
    "ack_wait_s": "a new owner would start before the old one's messages come back",
    "publish_timeout_s": "a page would outlive the lease it was read under",
}


def read(
    raw: object, *, databases: Mapping[str, object], base_dir: Path
) -> tuple[Settings | None, list[str]]:
    """
    Parse the value of ``JETBRIDGE``.

    Args:
        raw: What stands in the settings.
        databases: The project's ``DATABASES``; only its keys are looked at.
        base_dir: Folder for ``EMBEDDED_DIR``'s default.

    Returns:
        The settings, or ``None`` together with every fault found, one sentence each.
    """
    if not isinstance(raw, Mapping):
        return None, [f'JETBRIDGE must be a dict with at least "APP_NAME", got {raw!r}.']
    faults = _unknown_keys(raw)
    values: dict[str, object] = {}
    for option in OPTIONS:
        value = raw.get(option.key, option.default)
        if value is None and option.key == "APP_NAME":
            faults.append(
                'JETBRIDGE["APP_NAME"] is required: the name of this service on the wire, e.g. "orders".'
            )
            continue
        if option.default is None and option.key not in raw:
            continue
        try:
            values[option.key.lower()] = option.parse(value)
        except ValueError as fault:
            faults.append(f'JETBRIDGE["{option.key}"] {fault}')
    faults += _impossible(values, databases)
    if faults:
        return None, faults
    values.setdefault("embedded_dir", base_dir / ".jetbridge")
    values.setdefault("stream", topology.stream_name(cast(str, values["app_name"])))
    return Settings(**values), []  # type: ignore[arg-type]


def _unknown_keys(raw: Mapping[object, object]) -> list[str]:
    known = [option.key for option in OPTIONS]
    faults = []
    for key in raw:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f" Did you mean {close[0]!r}?" if close else f" Known keys: {', '.join(known)}."
            faults.append(f"JETBRIDGE has the unknown key {key!r}.{hint}")
    return faults


def _impossible(values: Mapping[str, object], databases: Mapping[str, object]) -> list[str]:
    """Values that are fine alone and impossible together; those with a fault of their own are left out."""
    aliases = cast("tuple[str, ...]", values.get("databases", ()))
    faults = [
        f'JETBRIDGE["DATABASES"] names {alias!r}, which is not in DATABASES ({", ".join(databases)}).'
        for alias in aliases
        if alias not in databases
    ]
    numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
    lease_s = numbers.get("lease_s", float("inf"))
    for key, reason in _WITHIN_A_LEASE.items():
        value = numbers.get(key, 0)
        if value > lease_s * 2 / 3 + 1e-9:
            faults.append(
                f'JETBRIDGE["{key.upper()}"] must be at most two thirds of LEASE_S ({lease_s:g} s), got {value:g}: '
                f"{reason}."
            )
    pending, in_flight = numbers.get("max_ack_pending"), numbers.get("max_in_flight")
    if pending is not None and in_flight is not None and pending < in_flight:
        faults.append(
            f'JETBRIDGE["MAX_ACK_PENDING"] must be at least MAX_IN_FLIGHT ({in_flight}), got {pending}: '
            f"held messages would stop the durable."
        )
    return faults


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """
    The parsed ``JETBRIDGE``, cached until a setting changes.

    Raises:
        ImproperlyConfigured: With every fault, one a line.
    """
    parsed, faults = read_django_settings()
    if parsed is None:
        raise ImproperlyConfigured("\n".join(faults))
    return parsed


def read_django_settings() -> tuple[Settings | None, list[str]]:
    """:func:`read` of the project's settings."""
    raw = getattr(django_settings, "JETBRIDGE", None)
    base_dir = Path(getattr(django_settings, "BASE_DIR", None) or Path.cwd())
    return read(raw, databases=django_settings.DATABASES, base_dir=base_dir)


def _reset(*, setting: str, **_: object) -> None:
    if setting in {"JETBRIDGE", "DATABASES", "BASE_DIR"}:
        get_settings.cache_clear()


setting_changed.connect(_reset, dispatch_uid="jetbridge.conf")

if {option.key.lower() for option in OPTIONS} != {
    field.name for field in fields(Settings)
}:  # pragma: no cover
    raise AssertionError("OPTIONS and Settings list different keys.")

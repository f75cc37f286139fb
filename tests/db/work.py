"""A message in a handler's hands, without a broker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jetbridge
from jetbridge import received
from jetbridge.conf import Settings, get_settings
from jetbridge.envelope import Position
from jetbridge.inbox.unit_of_work import Work
from jetbridge.received import Received
from jetbridge.registry import registry
from tests.worlds import body


def message(
    event_id: str = "e-1",
    *,
    source: str = "billing",
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    sequence: int = 1,
) -> Received:
    """A received message of another app."""
    place = Position(
        subject=f"{source}.sync.shop",
        stream=f"jetbridge-{source}",
        sequence=sequence,
        stored_ns=1_700_000_000_000_000_000,
    )
    return received.read(body(event_id) if data is None else data, headers or {}, place, app="shop")


def work_for(
    function: Callable[..., Any], *, received: Received | None = None, name: str = "t.handler", **options: Any
) -> tuple[Work, Settings]:
    """What ``unit_of_work.attempt()`` takes, for a handler declared on the spot."""
    registry.remove(name)
    jetbridge.handler(">", name=name, **options)(function)
    handler = registry.get(name)
    assert handler is not None
    using = handler.using or "default"
    return Work(received=received or message(), handler=handler, using=using), get_settings()

"""Which event is being handled in this thread or task: what a handler publishes inherits from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from jetbridge.event import Delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class Handling:
    """The delivery and the database alias of its inbox; ``atomic``: there is a transaction to join."""

    delivery: Delivery
    using: str
    atomic: bool = True


_current: ContextVar[Handling | None] = ContextVar("jetbridge_handling", default=None)


def current() -> Handling | None:
    """What is being handled here, or ``None`` outside a handler."""
    return _current.get()


@contextmanager
def handling(delivery: Delivery, using: str, *, atomic: bool = True) -> Iterator[None]:
    """Mark the block as the handling of ``delivery``; always undone, or the next event would inherit from it."""
    token = _current.set(Handling(delivery=delivery, using=using, atomic=atomic))
    try:
        yield
    finally:
        _current.reset(token)

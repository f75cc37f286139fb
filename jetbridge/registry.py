"""
The handlers of this process: what ``@jetbridge.handler`` declares.

A handler's name is the key of its inbox rows, so two handlers may not share one, and a handler that
moves to another module keeps its effects single only if it keeps its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from django.apps import apps

from jetbridge import conf, patterns, topology
from jetbridge.errors import DuplicateHandler
from jetbridge.event import Delivery
from jetbridge.retry import RetryPolicy

Function: TypeAlias = Callable[[Delivery], Awaitable[None] | None]
_F = TypeVar("_F", bound=Function)
MAX_NAME_CHARS: Final = 190


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """One declaration. ``None`` means the setting's default."""

    name: str
    function: Function
    patterns: tuple[str, ...]
    source: str | None
    atomic: bool
    ordered: bool
    using: str | None
    timeout_s: float | None
    max_attempts: int | None
    backoff: tuple[float, ...] | None
    permanent: tuple[type[BaseException], ...]
    transient: tuple[type[BaseException], ...]

    def policy(self, settings: conf.Settings) -> RetryPolicy:
        """The retry policy with the settings' defaults filled in."""
        return RetryPolicy(
            max_attempts=self.max_attempts or settings.max_attempts,
            backoff=self.backoff or settings.backoff,
            permanent=self.permanent,
            transient=self.transient,
        )

    def wants(self, event_type: str, source: str) -> bool:
        """Whether an event of this type from this app is for this handler."""
        return self.source in (None, source) and any(patterns.matches(p, event_type) for p in self.patterns)

    @property
    def place(self) -> str:
        """``file:line`` of the function, for messages."""
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(self.function)


class Registry:
    """Handlers by name, in the order of their declaration."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def add(self, handler: Handler) -> None:
        """
        Raises:
            DuplicateHandler: The name is taken by another function. The same function again (a module
                imported twice by a reloader) replaces its declaration.
        """
        known = self._handlers.get(handler.name)
        if known is not None and known.place != handler.place:
            raise DuplicateHandler(
                f"Handler {handler.name!r} in {handler.place} is already registered in {known.place}. "
                f"The name is the key of the inbox: give one of them another name=."
            )
        self._handlers[handler.name] = handler

    def remove(self, name: str) -> None:
        """Forget a handler; used by tests."""
        self._handlers.pop(name, None)

    def get(self, name: str) -> Handler | None:
        return self._handlers.get(name)

    def all(self) -> tuple[Handler, ...]:
        return tuple(self._handlers.values())

    def matching(self, event_type: str, source: str) -> tuple[Handler, ...]:
        """The handlers that want an event."""
        return tuple(handler for handler in self._handlers.values() if handler.wants(event_type, source))


registry: Final = Registry()


def handler(
    *event_patterns: str,
    source: str | None = None,
    name: str | None = None,
    atomic: bool = True,
    max_attempts: int | None = None,
    backoff: float | Sequence[float] | None = None,
    timeout: float | None = None,
    ordered: bool = True,
    permanent: Sequence[type[BaseException]] = (),
    transient: Sequence[type[BaseException]] = (),
    using: str | None = None,
) -> Callable[[_F], _F]:
    """
    Declare a handler of events. The function gets one :class:`jetbridge.Delivery` and is returned unchanged.

    Args:
        event_patterns: ``order.placed``, ``order.*`` (one token), ``order.>`` (the rest).
        source: Only events of this app.
        name: Key of the inbox, at most 190 characters; default ``<app_label>.<function>``.
        atomic: Run in one transaction with the inbox row: exactly one committed effect. ``False``
            runs outside any transaction, at least once.
        max_attempts: Default: the setting ``MAX_ATTEMPTS``.
        backoff: Seconds before each further attempt; default: the setting ``BACKOFF``.
        timeout: Seconds until ``delivery.cancelled``; default: the setting ``HANDLER_TIMEOUT_S``.
        ordered: One event of a key at a time, in order. ``False`` runs them as they come.
        permanent: Exceptions that dead-letter at once.
        transient: Exceptions that are retried without spending an attempt.
        using: Database alias of the inbox, the transaction and what the handler publishes.

    Raises:
        ValueError, TypeError: An argument is impossible; the text says which.
        DuplicateHandler: The name is taken.
    """
    if not event_patterns or callable(event_patterns[0]):
        raise TypeError(
            '@jetbridge.handler needs at least one event pattern, e.g. @jetbridge.handler("order.placed").'
        )
    checked = tuple(patterns.check_pattern(pattern) for pattern in event_patterns)
    if source is not None:
        topology.check_token(source, "source")
    if max_attempts is not None and (type(max_attempts) is not int or max_attempts < 1):
        raise ValueError(f"max_attempts must be a whole number from 1, got {max_attempts!r}.")
    if timeout is not None and not (_is_number(timeout) and timeout > 0):
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}.")
    delays = _delays(backoff)
    errors = _classes("permanent", permanent), _classes("transient", transient)

    def declare(function: _F) -> _F:
        _check_signature(function)
        registry.add(
            Handler(
                name=_name(name, function),
                function=function,
                patterns=checked,
                source=source,
                atomic=atomic,
                ordered=ordered,
                using=using,
                timeout_s=timeout,
                max_attempts=max_attempts,
                backoff=delays,
                permanent=errors[0],
                transient=errors[1],
            )
        )
        return function

    return declare


def _name(name: str | None, function: Function) -> str:
    if name is None:
        config = apps.get_containing_app_config(function.__module__) if apps.apps_ready else None
        label = config.label if config else function.__module__.split(".", 1)[0]
        name = f"{label}.{function.__name__}"
    if not name or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise ValueError(
            f"A handler's name must have 1 to {MAX_NAME_CHARS} printable characters, got {name!r}."
        )
    return name


def _check_signature(function: Function) -> None:
    """A handler that cannot take an event would fail on each of them; say it at import."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # a callable without one: the first event will tell
    try:
        signature.bind(None)
    except TypeError as error:
        raise TypeError(
            f"A handler is called with one argument, the event; {function!r} takes {signature} ({error})."
        ) from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _delays(backoff: object) -> tuple[float, ...] | None:
    if backoff is None:
        return None
    delays = tuple(backoff) if isinstance(backoff, Sequence) else (backoff,)
    if not delays or not all(isinstance(delay, (int, float)) and delay >= 0 for delay in delays):
        raise ValueError(f"backoff must be seconds or a list of seconds, got {backoff!r}.")
    return delays


def _classes(what: str, classes: Sequence[object]) -> tuple[type[BaseException], ...]:
    checked: list[type[BaseException]] = []
    if not isinstance(classes, Sequence):
        raise TypeError(f"{what} must be a list of exception classes, got {classes!r}.")
    for item in classes:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise TypeError(f"{what} must list exception classes, got {item!r}.")
        checked.append(item)
    return tuple(checked)

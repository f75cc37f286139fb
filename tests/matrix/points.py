"""
Where a fault can strike: words for exact points in the code of the product.

A point is a public signal, a function just before or after it is called, or the commit that follows one of these
in the same thread. The functions really run; they are only watched.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from django.db.backends.base.base import BaseDatabaseWrapper

from jetbridge import signals

Side: TypeAlias = Literal["before", "after"]
Strike: TypeAlias = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """
    A call, and what came of it.

    Attributes:
        result: ``None`` before the call.
    """

    args: tuple[Any, ...]
    keywords: dict[str, Any]
    result: Any = None


def _always(call: Call) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """When a signal of :mod:`jetbridge.signals` is sent."""

    signal: str

    @property
    def exists(self) -> bool:
        """Whether the product still has this signal."""
        return hasattr(signals, self.signal)

    def watch(self, strike: Strike) -> None:
        def receiver(**facts: object) -> None:
            strike()

        getattr(signals, self.signal).connect(receiver, weak=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """
    Before or after a function is called.

    Attributes:
        target: ``package.module:function`` or ``package.module:Class.method``.
        when: Which calls count.
    """

    target: str
    side: Side
    when: Callable[[Call], bool] = _always

    @property
    def exists(self) -> bool:
        """Whether the product still has this function."""
        owner, name = find(self.target)
        return callable(getattr(owner, name, None))

    def watch(self, strike: Strike) -> None:
        owner, name = find(self.target)
        setattr(owner, name, _watched(getattr(owner, name), self, strike))


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """
    Before or after the commit of the transaction in which something happened.

    Attributes:
        of: The function (as in :class:`Called`) or the signal that happened in it.
    """

    of: str
    side: Side

    @property
    def exists(self) -> bool:
        """Whether the product still has what happens in the transaction."""
        return self._happened.exists

    @property
    def _happened(self) -> Sent | Called:
        return Called(target=self.of, side="after") if ":" in self.of else Sent(signal=self.of)

    def watch(self, strike: Strike) -> None:
        marked = threading.local()

        def mark() -> None:
            marked.here = True

        def unmark() -> bool:
            here, marked.here = getattr(marked, "here", False), False
            return bool(here)

        commit, rollback = BaseDatabaseWrapper.commit, BaseDatabaseWrapper.rollback

        @functools.wraps(commit)
        def watched_commit(connection: BaseDatabaseWrapper) -> None:
            strikes = unmark()
            if strikes and self.side == "before":
                strike()
            commit(connection)
            if strikes and self.side == "after":
                strike()

        @functools.wraps(rollback)
        def watched_rollback(connection: BaseDatabaseWrapper) -> None:
            unmark()
            rollback(connection)

        BaseDatabaseWrapper.commit = watched_commit  # type: ignore[method-assign, assignment]
        BaseDatabaseWrapper.rollback = watched_rollback  # type: ignore[method-assign, assignment]
        self._happened.watch(mark)


Point: TypeAlias = Sent | Called | Committed


def find(target: str) -> tuple[Any, str]:
    """Who has the function of a :class:`Called`, and its name there."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    found: Any = importlib.import_module(module)
    for owner in owners:
        found = getattr(found, owner)
    return found, name


def _watched(function: Callable[..., Any], point: Called, strike: Strike) -> Callable[..., Any]:
    def before(args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if point.side == "before" and point.when(Call(args=args, keywords=keywords)):
            strike()

    def after(args: tuple[Any, ...], keywords: dict[str, Any], result: Any) -> None:
        if point.side == "after" and point.when(Call(args=args, keywords=keywords, result=result)):
            strike()

    @functools.wraps(function)
    async def watched_coroutine(*args: Any, **keywords: Any) -> Any:
        before(args, keywords)
        result = await function(*args, **keywords)
        after(args, keywords, result)
        return result

    @functools.wraps(function)
    def watched(*args: Any, **keywords: Any) -> Any:
        before(args, keywords)
        result = function(*args, **keywords)
        after(args, keywords, result)
        return result

    return watched_coroutine if inspect.iscoroutinefunction(function) else watched

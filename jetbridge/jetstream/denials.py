"""
Permission violations: the server reports them beside the connection, not as an answer to the call.

Without this a denied publish is a time-out, and a denied reply inbox is worse: the message is stored and
its sender believes it failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from jetbridge.errors import JetbridgeError
from jetbridge.jetstream.logs import logger

_VIOLATION: Final = re.compile(
    r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE
)


class PermissionDenied(JetbridgeError):
    """
    The server's permissions do not allow this user what a call needs.

    Attributes:
        subject: The subject as the server named it; nats-py lower-cases it.
    """

    def __init__(self, subject: str, verb: str = "publish to") -> None:
        super().__init__(
            f"This NATS user may not {verb} {subject!r}. "
            "Allow it in the server's permissions; jetbridge_provision --print-permissions shows what a role needs."
        )
        self.subject = subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """What was refused: ``subject`` is lower case."""

    subject: str
    is_subscription: bool


def read_denial(text: str) -> Denial | None:
    """The denial in the text of a server error, ``None`` if it is another error."""
    found = _VIOLATION.search(text)
    if found is None:
        return None
    return Denial(subject=found[2].lower(), is_subscription=found[1].lower() == "subscription")


class Denials:
    """Who wants to hear of denials."""

    def __init__(self) -> None:
        self._listeners: dict[int, Callable[[Denial], None]] = {}
        self._expected: set[str] = set()
        self._counter = 0

    def listen(self, listener: Callable[[Denial], None]) -> Callable[[], None]:
        """Call ``listener`` for each denial until the returned function is called."""
        self._counter += 1
        key = self._counter
        self._listeners[key] = listener
        return lambda: self._listeners.pop(key, None) and None

    def expect(self, subject: str) -> None:
        """Somebody asks for ``subject``, can do without it, and says so himself."""
        self._expected.add(subject.lower())

    def is_expected(self, subject: str) -> bool:
        """Whether :meth:`expect` was called for it."""
        return subject.lower() in self._expected

    def tell(self, denial: Denial) -> None:
        """Tell everybody. Who raises keeps nobody else from hearing it, and does not end the loop that reads."""
        for listener in list(self._listeners.values()):
            try:
                listener(denial)
            except Exception:
                logger.exception("Somebody who was told of a denied subject failed.")

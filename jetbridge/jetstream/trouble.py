"""What is wrong with a connection, in words for people: kept, logged once, and never with credentials."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from jetbridge.jetstream.logs import Hush, redact, secrets_of

SAID_S: Final = 5.0


class Trouble:
    """
    Args:
        urls: Of the servers; empty for the embedded one. What is secret in them is taken out of every text.

    Attributes:
        last_error: The latest trouble, ``""`` when all is well.
        denied: Why the user's permissions make work impossible, ``""`` if they do not.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.last_error = ""
        self.denied = ""
        self._urls = urls
        self._secrets = secrets_of(urls)
        self._say = Hush()
        self._said_at = -SAID_S

    def is_over(self) -> None:
        """Connected again."""
        self.last_error = self.denied = ""

    def note(self, error: BaseException, *, is_connected: bool) -> None:
        """An attempt failed, or a connection was lost. What happens beside a living one is logged only."""
        text = self.explain(str(error) or type(error).__name__)
        if not is_connected and self._tells_more(text):
            self.last_error = text
        self._say(logging.WARNING, f"NATS ({self._where()}): {text}")

    def deny(self, text: str) -> None:
        """The user may not do what is needed."""
        self.denied = self.last_error = self.explain(text)
        self._say(logging.ERROR, f"Cannot work with these NATS permissions: {self.denied}")

    def why_unreachable(self) -> str:
        """A sentence for whoever gives up waiting: which address, what happened, what to do."""
        if self.denied:
            return self.denied
        reason = self.last_error or "no answer"
        if 'JETBRIDGE["NATS_URLS"]' in reason:
            return f"NATS cannot be reached: {reason}"  # the embedded server's own remedy
        is_refusal = reason.startswith("nats: '")  # it answered, so starting it would change nothing
        remedy = "Check" if is_refusal else "Start it, or set"
        return (
            f'NATS cannot be reached: {self._where()}: {reason.rstrip(".")}. {remedy} JETBRIDGE["NATS_URLS"].'
        )

    def explain(self, text: str) -> str:
        """``text`` without credentials."""
        return redact(text, self._secrets)

    def _tells_more(self, text: str) -> bool:
        """Whether to replace ``last_error``: the server's own words outlive the broken pipe that follows them."""
        now = time.monotonic()
        if text.startswith("nats: '"):
            self._said_at = now
        return now - self._said_at > SAID_S or text.startswith("nats: '")

    def _where(self) -> str:
        return self.explain(", ".join(self._urls) or "embedded server")

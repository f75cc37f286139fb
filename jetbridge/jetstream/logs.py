"""Log lines of the adapter: never with credentials, never four a second."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote, urlsplit

logger: Final = logging.getLogger("jetbridge.jetstream")

REPEAT_S: Final = 30.0
_USER_INFO: Final = re.compile(r"(?<=://)[^\s,'\"]*@")


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` without the user part of any URL in it and without the given secrets."""
    text = _USER_INFO.sub("***@", text)
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def secrets_of(urls: Iterable[str]) -> tuple[str, ...]:
    """Passwords and tokens in the URLs, as they stand and decoded, longest first."""
    found: set[str] = set()
    for url in urls:
        info = urlsplit(url).netloc.rpartition("@")[0]
        user, colon, password = info.partition(":")
        secret = password if colon else user
        found.update(text for text in (secret, unquote(secret)) if len(text) > 2)
    return tuple(sorted(found, key=len, reverse=True))


class Hush:
    """
    Says the same line at most once in ``REPEAT_S`` seconds, and then how often it was held back.

    A server that is away for an hour would otherwise fill a disk: each attempt to connect fails with an
    error of its own.
    """

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, int]] = {}

    def __call__(self, level: int, line: str) -> None:
        now = time.monotonic()
        at, held = self._said.get(line, (-REPEAT_S, 0))
        if now - at < REPEAT_S:
            self._said[line] = (at, held + 1)
            return
        if len(self._said) > 100:
            self._said.clear()
        self._said[line] = (now, 0)
        if held:
            logger.log(level, "%s (and %d more like it)", line, held)
        else:
            logger.log(level, "%s", line)

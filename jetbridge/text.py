"""
Making any text storable: foreign messages and error texts hold what a database refuses.

PostgreSQL takes neither NUL in text and JSON nor lone surrogates anywhere; a dead letter must not
fail because of what it reports.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
MAX_NAME_CHARS: Final = 255


def is_storable(value: str) -> bool:
    """Whether every database takes ``value`` as it stands."""
    return _UNSTORABLE.search(value) is None


def storable(value: str, max_chars: int | None = None) -> str:
    """``value`` with NUL and lone surrogates written as ``\\x00`` and ``\\udXXX``, cut to ``max_chars``."""
    clean = _UNSTORABLE.sub(lambda m: m.group().encode("unicode_escape").decode("ascii"), value)
    if max_chars is not None and len(clean) > max_chars:
        return clean[: max_chars - 1] + "…"
    return clean


def of_error(error: BaseException) -> str:
    """``str(error)``, which a handler's own class may be unable to make: no reason to try again for ever."""
    try:
        return str(error)
    except Exception as fault:
        return f"(its text cannot be made: {type(fault).__name__})"


def storable_key(value: str) -> str:
    """
    A key as it is stored and ordered by: escaped, and longer than 255 characters cut with a digest.

    Equal keys stay equal and different ones different, so order per key is kept.
    """
    clean = storable(value)
    if len(clean) <= MAX_NAME_CHARS:
        return clean
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{clean[: MAX_NAME_CHARS - 65]}~{digest}"


def storable_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers for a JSON column."""
    return {storable(name): storable(value) for name, value in headers.items()}

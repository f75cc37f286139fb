"""
Making any text storable: foreign messages and error texts hold what a database refuses.

PostgreSQL takes neither NUL in text and JSON nor lone surrogates anywhere; a dead letter must not
fail because of what it reports.
"""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Callable, Mapping
from typing import Final

_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
MAX_NAME_CHARS: Final = 255
MAX_ERROR_CHARS: Final = 10_000


def is_storable(value: str) -> bool:
    """Whether every database takes ``value`` as it stands."""
    return _UNSTORABLE.search(value) is None


def storable(value: str, max_chars: int | None = None) -> str:
    """``value`` with NUL and lone surrogates written as ``\\x00`` and ``\\udXXX``, cut to ``max_chars``."""
    # Escaping only lengthens: of a text of a gigabyte nothing behind the limit is looked at.
    start = value if max_chars is None else value[: max_chars + 1]
    clean = _UNSTORABLE.sub(lambda m: m.group().encode("unicode_escape").decode("ascii"), start)
    if max_chars is not None and len(clean) > max_chars:
        return clean[: max_chars - 1] + "…"
    return clean


def of_error(error: BaseException) -> str:
    """``str(error)``, which a handler's own class may be unable to make: no reason to try again for ever."""
    return _made(lambda: str(error), "its text")


def class_of(error: BaseException) -> str:
    """The name of its class."""
    return _made(lambda: type(error).__qualname__, "the name of its class")


def has_traceback(error: BaseException) -> bool:
    """Whether there is one, and the standard library can show it."""
    try:
        return error.__traceback__ is not None and bool(traceback.format_exception(error))
    except BaseException:
        return False


def traceback_of(error: BaseException, max_chars: int) -> str:
    """Its traceback, storable; of a long one the middle is left out, because the fault stands at the end."""
    whole = _made(lambda: "".join(traceback.format_exception(error)), "its traceback")
    if len(whole) > max_chars:
        head, tail = max_chars // 4, max_chars // 2
        whole = f"{whole[:head]}\n  … {len(whole) - head - tail} characters are left out …\n{whole[-tail:]}"
    return storable(whole, max_chars)


def _made(make: Callable[[], str], what: str) -> str:
    """
    What foreign code makes of itself, or that it cannot.

    Its ``__str__`` may raise anything, ``SystemExit`` as well, and may give a subclass of ``str`` that lies.
    """
    try:
        made = make()
        return str.__str__(made)
    except BaseException as fault:
        return f"({what} cannot be made: {type(fault).__name__})"


def storable_key(value: str, max_chars: int = MAX_NAME_CHARS) -> str:
    """
    A key as it is stored and ordered by: escaped, and one that is too long cut with a digest.

    Equal keys stay equal and different ones different, so order per key is kept.
    """
    clean = storable(value)
    if len(clean) <= max_chars:
        return clean
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[: max_chars - 1]
    return f"{clean[: max_chars - 1 - len(digest)]}~{digest}"


def storable_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers for a JSON column."""
    return {storable(name): storable(value) for name, value in headers.items()}

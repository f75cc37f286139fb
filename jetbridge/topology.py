"""
Names on the wire: subjects, streams and durables of an app.

Pure functions over checked tokens. The names are a contract with other languages
(the Ruby gem jetstream_bridge uses the same), so they change only with a new major version.
"""

from __future__ import annotations

import re
from typing import Final

TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_SUBJECT_CHARS: Final = 255
DEAD_LETTERS: Final = "dlq"


def check_token(value: object, what: str) -> str:
    """
    Return ``value`` if it can be one token of a subject.

    The client accepts ``a..b`` and even stores ``W.*`` as it stands, so nothing behind this
    function would notice a bad token.

    Raises:
        ValueError: Names ``what``, the value found and the allowed characters.
    """
    if not isinstance(value, str) or TOKEN.fullmatch(value) is None:
        raise ValueError(f"{what} must be 1 to 64 of the characters A-Z a-z 0-9 _ -, got {value!r}.")
    return value


def check_subject(subject: object, app: str) -> str:
    """Return ``subject`` if it lies under ``<app>.sync.`` and is made of valid tokens."""
    prefix = f"{app}.sync."
    if not isinstance(subject, str) or not subject.startswith(prefix):
        raise ValueError(f"subject must start with {prefix!r} (the app's own stream), got {subject!r}.")
    if len(subject) > MAX_SUBJECT_CHARS:
        raise ValueError(f"subject must have at most {MAX_SUBJECT_CHARS} characters, got {len(subject)}.")
    for token in subject.split("."):
        check_token(token, f"Each token of the subject {subject!r}")
    return subject


def subject(app: str, destination: str, partition: int | None = None) -> str:
    """``<app>.sync.<destination>``, with ``.<n>`` for a partitioned destination."""
    base = f"{app}.sync.{destination}"
    return base if partition is None else f"{base}.{partition}"


def dlq_subject(app: str) -> str:
    """Where the notices about an app's dead letters go."""
    return subject(app, DEAD_LETTERS)


def own_subjects(app: str) -> tuple[str, ...]:
    """The subjects of an app's own stream."""
    return (f"{app}.sync.>",)


def stream_name(app: str) -> str:
    """The default name of an app's own stream."""
    return f"jetbridge-{app}"


def durable_name(app: str, partition: int | None = None) -> str:
    """``<app>-workers``, with ``-<n>`` for a partitioned source."""
    base = f"{app}-workers"
    return base if partition is None else f"{base}-{partition}"


def durable_of(subject_: str) -> str:
    """
    The durable that delivers a subject, the reverse of :func:`filter_subject`; ``""`` where none of ours would.

    A durable that somebody else made may deliver anything.
    """
    _source, _sync, app, *number = [*subject_.split("."), "", ""]
    if not app:
        return ""
    return durable_name(app, int(number[0]) if number and number[0].isdigit() else None)


def filter_subject(source: str, app: str, partition: int | None = None) -> str:
    """What the durable of ``app`` reads from the stream of ``source``."""
    return subject(source, app, partition)


def source_of(subject_: str) -> str:
    """The app that published a subject. Only its owner may write it, so this is proof, unlike the body."""
    return subject_.split(".", 1)[0]

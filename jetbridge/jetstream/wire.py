"""
Bytes of the NATS client protocol: frames, header blocks, status lines. Pure functions.

nats-py builds a header block with a regular expression and three copies per header; these build it with
one join. Everything a row of the outbox can contain is checked here, because one bad frame would
make the server close the connection for all the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

VERSION_LINE: Final = b"NATS/1.0"
MAX_SUBJECT_BYTES: Final = 1_024

_TOKENS: Final = re.compile(r"[^\s.*>\x00]+(\.[^\s.*>\x00]+)*")
_HEADER_NAME: Final = re.compile(r"[!-9;-~]+")


@lru_cache(maxsize=4_096)
def subject_bytes(subject: str) -> bytes:
    """
    The subject as it goes on the wire.

    Raises:
        ValueError: Empty tokens, white space or wildcards. The server would store ``W.*`` under
            just that name, and a line break would inject a protocol command.
    """
    if not _TOKENS.fullmatch(subject) or not subject.isascii() or len(subject) > MAX_SUBJECT_BYTES:
        raise ValueError(
            f"subject {subject[:80]!r} is not 1 to {MAX_SUBJECT_BYTES} ASCII characters of dotted tokens."
        )
    return subject.encode()


@lru_cache(maxsize=1_024)
def _is_header_name(name: str) -> bool:
    return _HEADER_NAME.fullmatch(name) is not None


def header_block(headers: Mapping[str, str]) -> bytes:
    """
    ``NATS/1.0`` and one line per header, in the mapping's order.

    Raises:
        ValueError: A name with a colon, space or control character, or a value with a line break
            or a lone surrogate. Nothing was sent.
    """
    lines = [f"{name}: {value}" for name, value in headers.items()]
    text = "\r\n".join(lines)
    breaks = len(lines) - 1 if lines else 0
    if text.count("\n") != breaks or text.count("\r") != breaks:
        raise ValueError("a header contains a line break; header values must be one line.")
    for name in headers:
        if not _is_header_name(name):
            raise ValueError(f"header name {name[:80]!r} must be visible ASCII without a colon.")
    return b"NATS/1.0\r\n%b\r\n\r\n" % text.encode() if lines else b"NATS/1.0\r\n\r\n"


def publish_frame(subject: bytes, reply: bytes, body: bytes) -> bytes:
    """A message without headers; ``reply`` may be empty."""
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(body), body)


def publish_frame_with_headers(subject: bytes, reply: bytes, block: bytes, body: bytes) -> bytes:
    """A message with a block made by :func:`header_block`; ``reply`` may be empty."""
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, len(block), len(block) + len(body), block, body)


def read_headers(block: bytes) -> dict[str, str]:
    """
    Headers of a received block, names in their original case, the last of equal names wins.

    Undecodable bytes become U+FFFD: a foreign producer's header must never stop the consumer.
    """
    headers: dict[str, str] = {}
    for line in block.decode("utf-8", "replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon and name.strip():
            headers[name.strip()] = value.strip()
    return headers


def read_status(block: bytes) -> tuple[int, str]:
    """Code and text of ``NATS/1.0 408 Request Timeout``; ``(0, "")`` where there is no status."""
    line = block.split(b"\r\n", 1)[0][len(VERSION_LINE) :].decode("utf-8", "replace").strip()
    code, _, text = line.partition(" ")
    return (int(code), text.strip()) if code.isascii() and code.isdigit() else (0, "")

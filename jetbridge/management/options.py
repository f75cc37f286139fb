"""Command line options that several commands share."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError, Namespace
from datetime import UTC, datetime, timedelta

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandParser
from django.utils import timezone

from jetbridge.conf import Settings


def add_database(parser: CommandParser) -> None:
    """``--database ALIAS``."""
    parser.add_argument(
        "--database", metavar="ALIAS", help='Database alias; default: the first of JETBRIDGE["DATABASES"].'
    )


def database(settings: Settings, options: Namespace) -> str:
    """
    The chosen alias.

    Raises:
        ImproperlyConfigured: It has no jetbridge tables (exit code 2).
    """
    alias = options.database or settings.databases[0]
    if alias not in settings.databases:
        known = ", ".join(map(repr, settings.databases))
        raise ImproperlyConfigured(f'--database {alias!r} is not one of JETBRIDGE["DATABASES"]: {known}.')
    return str(alias)


def add_until_empty(parser: CommandParser, when: str) -> None:
    """``--until-empty [--timeout S]``."""
    parser.add_argument("--until-empty", action="store_true", help=f"End as soon as {when}.")
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="S",
        help="With --until-empty: give up after so many seconds (exit code 6).",
    )


def refuse_lasting_timeout(options: Namespace) -> None:
    """
    Raises:
        ImproperlyConfigured: ``--timeout`` alone (exit code 2): a run without end would just ignore it.
    """
    if options.timeout is not None and not options.until_empty:
        raise ImproperlyConfigured(
            f"--timeout {options.timeout:g} needs --until-empty: without it this command runs until SIGTERM. "
            "Add --until-empty, or leave --timeout out."
        )


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0:
        raise ArgumentTypeError(f"a positive number of seconds is expected, got {text!r}")
    return value


def count(text: str) -> int:
    """A positive whole number: an id, or how many."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**63:
        raise ArgumentTypeError(f"a positive whole number is expected, got {text!r}")
    return int(text)


def since(text: str) -> datetime:
    """An instant in UTC: a span before now (``30m``, ``2h``, ``7d``) or ISO 8601 (no offset: local time)."""
    span = re.fullmatch(r"(\d{1,5})([smhd])", text)
    if span is not None:
        unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[span[2]]
        return datetime.now(UTC) - timedelta(**{unit: int(span[1])})
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(
            f"a span such as 30m, 2h, 7d or a time such as 2026-11-22T14:00Z is expected, got {text!r}"
        ) from None
    return (instant if instant.tzinfo else timezone.make_aware(instant)).astimezone(UTC)

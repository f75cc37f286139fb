"""Command line options that several commands share."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandParser

from jetbridge.conf import Settings


def add_database(parser: CommandParser) -> None:
    """``--database ALIAS``."""
    parser.add_argument(
        "--database", metavar="ALIAS", help="Database alias; default: the first of DATABASES."
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


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0:
        raise ArgumentTypeError(f"a positive number of seconds is expected, got {text!r}")
    return value

"""Importing ``handlers`` from every installed app."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from django.apps import apps

from jetbridge import conf

logger = logging.getLogger("jetbridge")

# What was wrong with a module while the apps were loaded, if one of our own commands runs: it can say so in the
# format that was asked for. Every other process fails at once.
held_back: Exception | None = None


def discover() -> None:
    """Import every app's handlers; an error in one is fatal. For consumers, which must know all of them."""
    for module in _modules(conf.get_settings().handlers_module):
        import_module(module)


def discover_tolerantly() -> None:
    """
    The same for every other process.

    A broken module is an error only if it speaks of jetbridge: many projects have a ``handlers.py``
    that is nobody's business here, and a web process must not fail over it.
    """
    settings, _faults = conf.read_django_settings()
    if settings is None:
        return  # the system checks say why
    for module in _modules(settings.handlers_module):
        try:
            import_module(module)
        except Exception:
            if _mentions_jetbridge(module):
                raise
            logger.warning("Could not import %s; it does not mention jetbridge, so this is ignored.", module)


def discover_at_start(arguments: Sequence[str]) -> None:
    """:func:`discover_tolerantly` while the apps are loaded; ``arguments`` are those of the process."""
    global held_back
    try:
        discover_tolerantly()
    except Exception as fault:
        if not any(word.startswith("jetbridge_") for word in arguments[1:2]):
            raise
        held_back = fault


def _modules(name: str) -> list[str]:
    found = []
    for config in apps.get_app_configs():
        module = f"{config.name}.{name}"
        try:
            spec = find_spec(module)
        except ModuleNotFoundError:
            continue
        if spec is not None:
            found.append(module)
    return found


def _mentions_jetbridge(module: str) -> bool:
    spec = find_spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return False
    return "jetbridge" in Path(spec.origin).read_text(encoding="utf-8", errors="replace")

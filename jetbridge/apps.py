"""Registers the checks and finds the handlers. No query, no connection, no thread."""

from __future__ import annotations

import sys

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class JetbridgeConfig(AppConfig):
    """``"jetbridge"`` in ``INSTALLED_APPS``."""

    name = "jetbridge"
    label = "jetbridge"
    verbose_name = _("jetbridge")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from jetbridge import autodiscovery, checks  # noqa: F401

        autodiscovery.discover_at_start(sys.argv)

"""What a relay process of the benchmark runs. It is imported before Django is set up, so it imports nothing of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import django
from django.conf import settings as django_settings


def run(settings: Mapping[str, object], databases: Mapping[str, object], using: str) -> None:
    """The project's settings with ``JETBRIDGE`` and ``DATABASES`` as given, and a relay until SIGTERM."""
    django_settings.DATABASES = dict(databases)
    django_settings.JETBRIDGE = dict(settings)
    django.setup()
    from jetbridge import conf
    from jetbridge.relay.process import run_relay
    from jetbridge.runtime import supervisor

    logging.getLogger("jetbridge").setLevel(os.environ.get("LOG_LEVEL", "WARNING"))
    read = conf.get_settings()
    supervisor.run(lambda stop: run_relay(read, using=using, stop=stop))

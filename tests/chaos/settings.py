"""
Settings of every process of a run. One service that publishes to itself: one database tells the whole story.

``CHAOS_DB`` is the URL of a PostgreSQL database or the path of a SQLite file, ``CHAOS_NATS`` the servers,
``CHAOS_REPLICAS`` how often the stream is kept.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from testproject.settings.base import LOGGING as LOGGING
from testproject.settings.base import postgres, sqlite
from tests.chaos.terms import TERMS

SECRET_KEY = "only for the chaos runner"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["jetbridge", "tests.chaos"]

_database = os.environ["CHAOS_DB"]
DATABASES = {
    "default": postgres(_database, urlsplit(_database).path.lstrip("/"))
    if _database.startswith("postgresql://")
    else sqlite(Path(_database))
}
JETBRIDGE = {
    "APP_NAME": TERMS.app,
    "DESTINATIONS": {TERMS.app: {"partitions": TERMS.partitions}},
    "SOURCES": {TERMS.app: {"partitions": TERMS.partitions}},
    "NATS_URLS": os.environ["CHAOS_NATS"],
    "REPLICAS": int(os.environ["CHAOS_REPLICAS"]),
    "LEASE_S": TERMS.lease_s,
    "ACK_WAIT_S": TERMS.ack_wait_s,
    "PUBLISH_TIMEOUT_S": TERMS.publish_timeout_s,
    "MAX_ATTEMPTS": TERMS.max_attempts,
    "MAX_STARTS": TERMS.max_starts,
    "BACKOFF": [0.1, 0.3],
    "CONCURRENCY": 4,
    "MAX_IN_FLIGHT": 128,
    "LOCK_TIMEOUT_S": 1,
    "HANDLER_TIMEOUT_S": 10,
    "PARK_RETRY_S": 1,
    "SHUTDOWN_TIMEOUT_S": 6,
}

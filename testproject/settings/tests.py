"""
Both services in one process, as app "orders", for tests and type checks.

``JETBRIDGE_TEST_DB``: ``sqlite`` (default) or ``postgres``. Where that database is, a folder or a port, is
filled in by a fixture of ``tests/conftest.py``, which starts the server when the first test needs it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from testproject.settings.base import *  # noqa: F403
from testproject.settings.base import INSTALLED_APPS, postgres, sqlite

INSTALLED_APPS = [*INSTALLED_APPS, "testproject.orders", "testproject.billing"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


def _database(alias: str) -> dict[str, Any]:
    if os.environ.get("JETBRIDGE_TEST_DB", "sqlite") == "postgres":
        return postgres("postgresql://postgres@127.0.0.1:5432", f"jetbridge_{alias}")
    return {**sqlite(Path(":memory:")), "TEST": {}}


# "other" is for the rules about a second database; jetbridge's tables are there too.
DATABASES = {"default": _database("default"), "other": _database("other")}
JETBRIDGE = {"APP_NAME": "orders", "DESTINATIONS": ["billing"], "SOURCES": ["billing"]}
LOGGING_CONFIG = None

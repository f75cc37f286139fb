"""Django for the matrix: one service that sends events to itself. Its database is chosen by each run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from testproject.settings.base import DEFAULT_AUTO_FIELD as DEFAULT_AUTO_FIELD
from testproject.settings.base import sqlite

SECRET_KEY = "only for the matrix"
USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = ["jetbridge", "testproject.orders", "testproject.billing", "tests.matrix"]
DATABASES: dict[str, Any] = {"default": sqlite(Path("nowhere.sqlite3"))}
JETBRIDGE: dict[str, Any] = {"APP_NAME": "matrix"}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "format": "%(asctime)s.%(msecs)03d %(levelname)s %(name)s %(message)s",
            "datefmt": "%H:%M:%S",
        }
    },
    # The file is that of the process, whoever forked it: see tests.matrix.actors.
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": os.environ.get("LOG_LEVEL") or "INFO"},
}

"""
What both services share. Only infrastructure comes from the environment:

``TESTPROJECT_DIR``  folder of the SQLite files and the embedded server (default ``.testproject``)
``TESTPROJECT_DB``   ``sqlite`` (default) or the URL of a PostgreSQL server, ``postgresql://user@host:port``;
                     each service uses the database of its own name there, and a path in the URL stands
                     before that name (``.../run7_`` -> ``run7_orders``)
``NATS_URL``         addresses of the broker, or ``embedded`` (default)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

BASE_DIR = Path(__file__).resolve().parent.parent.parent
STATE_DIR = Path(os.environ.get("TESTPROJECT_DIR") or BASE_DIR / ".testproject").absolute()
NATS_URL = os.environ.get("NATS_URL") or "embedded"

SECRET_KEY = "only for the test project"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "testproject.urls"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "jetbridge",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# WAL lets readers and the one writer work side by side; IMMEDIATE takes the write lock at BEGIN, where
# SQLite waits `timeout` for it. A lock taken later, at the first write, fails at once with "locked".
SQLITE_OPTIONS: dict[str, Any] = {
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
    "init_command": "PRAGMA journal_mode=WAL;",
}


def sqlite(path: Path) -> dict[str, Any]:
    """A ``DATABASES`` entry for the SQLite file ``path``."""
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path), "OPTIONS": dict(SQLITE_OPTIONS)}


def postgres(url: str, name: str) -> dict[str, Any]:
    """A ``DATABASES`` entry for database ``name`` of the server at ``url``."""
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": unquote(parts.username or "postgres"),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "127.0.0.1",
        "PORT": str(parts.port or 5432),
    }


def database(service: str) -> dict[str, Any]:
    """The database of one service, as ``TESTPROJECT_DB`` says."""
    chosen = os.environ.get("TESTPROJECT_DB") or "sqlite"
    if chosen == "sqlite":
        STATE_DIR.mkdir(parents=True, exist_ok=True)
        return sqlite(STATE_DIR / f"{service}.sqlite3")
    if chosen.startswith(("postgresql://", "postgres://")):
        return postgres(chosen, urlsplit(chosen).path.lstrip("/") + service)
    raise ValueError(
        f"TESTPROJECT_DB must be 'sqlite' or the URL of a PostgreSQL server "
        f"such as postgresql://postgres@127.0.0.1:5432, got {chosen!r}."
    )


# Short, so that a demo shows a takeover within seconds.
JETBRIDGE_BASE: dict[str, Any] = {
    "NATS_URLS": NATS_URL,
    "EMBEDDED_DIR": str(STATE_DIR / "nats"),
    "LEASE_S": 6,
    "ACK_WAIT_S": 4,
    "PUBLISH_TIMEOUT_S": 3,
    "MAX_ATTEMPTS": 3,
    "BACKOFF": [0.2, 0.5],
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": os.environ.get("LOG_LEVEL") or "INFO"},
}

"""Real servers for tests, and the environment of the test project's processes."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from testproject.nats_server import NatsServer, nats_binary
from testproject.postgres import Postgres

__all__ = ["NatsServer", "Postgres", "nats_binary", "service_environment"]


def service_environment(folder: Path, *, nats_url: str, postgres: Postgres | None) -> dict[str, str]:
    """
    The environment for processes of both services: ``manage.py ... --settings testproject.settings.billing``.

    Args:
        folder: SQLite files go here.
        nats_url: ``embedded`` or the broker's address.
        postgres: Two new databases are made there; None means SQLite.
    """
    environment = {
        **os.environ,
        "TESTPROJECT_DIR": str(folder),
        "TESTPROJECT_DB": "sqlite",
        "NATS_URL": nats_url,
    }
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    if postgres is not None:
        prefix = f"t{uuid.uuid4().hex[:12]}_"
        for service in ("orders", "billing"):
            postgres.create_database(prefix + service)
        environment["TESTPROJECT_DB"] = f"{postgres.url}/{prefix}"
    return environment

"""
Fixtures that every test may use: the chosen database, a real nats-server, a real PostgreSQL.

``JETBRIDGE_TEST_DB=sqlite|postgres`` chooses the database of a run. Servers start when the first test needs
them, and end with this process whatever ends it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from testproject.postgres import Postgres
from tests.servers import NatsServer, service_environment

VENDOR = os.environ.get("JETBRIDGE_TEST_DB") or "sqlite"

_COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
hypothesis_settings.register_profile("local", **_COMMON)  # type: ignore[arg-type]
# The same examples on each run: a red build must be one that a push made red.
hypothesis_settings.register_profile("ci", derandomize=True, database=None, **_COMMON)  # type: ignore[arg-type]
hypothesis_settings.load_profile("ci" if os.environ.get("CI") else "local")


class MakeNatsServer(Protocol):
    def __call__(self, extra: str = "", *, binary: str | None = None) -> NatsServer: ...


def pytest_configure(config: pytest.Config) -> None:
    if VENDOR not in ("sqlite", "postgres"):
        raise pytest.UsageError(f"JETBRIDGE_TEST_DB must be 'sqlite' or 'postgres', got {VENDOR!r}.")


def pytest_report_header(config: pytest.Config) -> str:
    return f"database: {VENDOR}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for vendor in ("sqlite", "postgres"):
            if vendor != VENDOR and item.get_closest_marker(vendor):
                item.add_marker(pytest.mark.skip(reason=f"needs JETBRIDGE_TEST_DB={vendor}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """What hostile messages leave in a log may hold lone surrogates, and xdist sends reports as UTF-8."""
    report = yield
    report.sections = [(title, _sendable(text)) for title, text in report.sections]
    if report.failed and _sendable(report.longreprtext) != report.longreprtext:
        report.longrepr = _sendable(report.longreprtext)
    return report


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@pytest.fixture(scope="session")
def server_dir() -> Iterator[Path]:
    """A folder for servers. Not pytest's own: those are closed to the user PostgreSQL runs as."""
    folder = Path(tempfile.mkdtemp(prefix="jetbridge-tests-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(server_dir: Path) -> Iterator[Postgres]:
    """A running PostgreSQL, shared by the run. Do not stop it: make your own for that."""
    with Postgres(server_dir / "postgres", fsync=False) as server:
        yield server


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    django_db_modify_db_settings: None, server_dir: Path, request: pytest.FixtureRequest
) -> None:
    """pytest-django's hook before it makes the test databases: says where they are."""
    from django.conf import settings

    for alias, database in settings.DATABASES.items():
        # In place: django.db.connections holds these very dicts.
        if VENDOR == "postgres":
            server: Postgres = request.getfixturevalue("postgres_server")
            database.update(HOST="127.0.0.1", PORT=str(server.port), USER="postgres")
        else:
            # Files: worker threads have connections of their own, and a database in memory, Django's
            # default for tests, would be another one for each of them.
            database["NAME"] = str(server_dir / f"{alias}.sqlite3")
            database["TEST"]["NAME"] = str(server_dir / f"test_{alias}.sqlite3")


@pytest.fixture(scope="session")
def nats_server(server_dir: Path) -> Iterator[NatsServer]:
    """A running nats-server, shared by the run: use names of your own, and do not stop it."""
    with NatsServer(server_dir / "nats") as server:
        yield server


@pytest.fixture
def make_nats_server(tmp_path: Path) -> Iterator[MakeNatsServer]:
    """``make_nats_server(extra)`` starts a server of the test's own, to stop, kill, freeze and restart."""
    made: list[NatsServer] = []

    def make(extra: str = "", *, binary: str | None = None) -> NatsServer:
        server = NatsServer(tmp_path / f"nats-{len(made)}", extra=extra, binary=binary)
        made.append(server)
        return server.start()

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def make_services(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], dict[str, str]]:
    """
    ``make_services(nats_url)`` gives the environment for processes of orders and billing.

    Their databases are new and empty (run ``migrate``), of the vendor of this run.
    """

    def make(nats_url: str) -> dict[str, str]:
        server: Postgres | None = request.getfixturevalue("postgres_server") if VENDOR == "postgres" else None
        return service_environment(tmp_path / "services", nats_url=nats_url, postgres=server)

    return make

"""What all runs share: one nats-server, one migrated template of each database, and a copy of it for every run."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from django.db import connections

from testproject.nats_server import NatsServer
from testproject.postgres import Postgres
from testproject.settings.base import postgres, sqlite
from tests.matrix import tables
from tests.matrix.actors import Actor, command

DATABASES: Final = ("sqlite", "postgres")
# Nobody pulls the plug of the machine here: what the system has taken is not lost by a kill.
FAST: Final = {"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"}
CONNECTIONS: Final = "600"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """
    Attributes:
        postgres_url: ``""`` where it is not needed.
        prefix: Of the names of databases and apps, so that two matrices share servers without meeting.
    """

    folder: Path
    nats_url: str
    postgres_url: str
    prefix: str

    def database(self, db: str, name: str) -> dict[str, Any]:
        """A ``DATABASES`` entry."""
        if db == "postgres":
            return postgres(self.postgres_url, f"{self.prefix}_{name}")
        entry = sqlite(self.folder / f"{name}.sqlite3")
        entry["OPTIONS"] |= FAST
        return entry

    def prepare(self, db: str) -> None:
        """Make and migrate the template, in a process of its own: this one must not open a session."""
        database = self.database(db, "template")
        if db == "postgres":
            self._create(database["NAME"])

        def migrate() -> int:
            tables.use(database)
            code = command("migrate", "--verbosity", "0")
            connections.close_all()  # what SQLite keeps beside the file goes into it
            return code

        actor = Actor(f"migrate-{db}", migrate, self.folder)
        _, status = os.waitpid(actor.pid, 0)
        if status:
            raise RuntimeError((self.folder / f"migrate-{db}.log").read_text())

    @contextmanager
    def copy(self, db: str, name: str) -> Iterator[dict[str, Any]]:
        """A new database like the template, gone after the block. Called in the process of a run."""
        database = self.database(db, name)
        if db == "sqlite":
            shutil.copyfile(self.database(db, "template")["NAME"], database["NAME"])
            try:
                yield database
            finally:
                for file in self.folder.glob(f"{name}.sqlite3*"):
                    file.unlink()
            return
        self._create(database["NAME"], self.database(db, "template")["NAME"])
        try:
            yield database
        finally:
            self._execute(f'DROP DATABASE "{database["NAME"]}" WITH (FORCE)')

    def clear(self, dbs: Sequence[str]) -> None:
        """Remove the templates from a server that goes on."""
        if "postgres" in dbs:
            self._execute(f'DROP DATABASE IF EXISTS "{self.database("postgres", "template")["NAME"]}"')

    def _create(self, name: str, template: str = "template1") -> None:
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')

    def _execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(f"{self.postgres_url}/postgres", autocommit=True) as session:
            session.execute(statement.encode())


@contextmanager
def ground(
    folder: Path, dbs: Sequence[str], *, nats_url: str = "", postgres_url: str = ""
) -> Iterator[Ground]:
    """Start what is not given, and make the templates."""
    with ExitStack() as stack:
        if not nats_url:
            nats_url = stack.enter_context(NatsServer(folder / "nats")).url
        if "postgres" in dbs and not postgres_url:
            settings = {"max_connections": CONNECTIONS}
            server = Postgres(folder / "postgres", fsync=False, settings=settings)
            postgres_url = stack.enter_context(server).url
        made = Ground(
            folder=folder,
            nats_url=nats_url,
            postgres_url=postgres_url,
            prefix=f"matrix{uuid.uuid4().hex[:8]}",
        )
        for db in dbs:
            made.prepare(db)
        try:
            yield made
        finally:
            made.clear(dbs)

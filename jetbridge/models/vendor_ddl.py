"""DDL for one database vendor, as a migration operation that does nothing elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from django.db import router
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState


class VendorDDL(Operation):
    """
    Statements by ``connection.vendor``, with the ones that undo them.

    Args:
        forwards: Vendor name (``postgresql``, ``mysql``, ``sqlite``) to its statements.
        backwards: The same for the way back.
    """

    reduces_to_sql = True
    reversible = True

    def __init__(self, forwards: Mapping[str, Sequence[str]], backwards: Mapping[str, Sequence[str]]) -> None:
        self.forwards = forwards
        self.backwards = backwards

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """No model changes."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._run(self.forwards, app_label, schema_editor)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._run(self.backwards, app_label, schema_editor)

    def _run(
        self, statements: Mapping[str, Sequence[str]], app_label: str, schema_editor: BaseDatabaseSchemaEditor
    ) -> None:
        connection = schema_editor.connection
        if not router.allow_migrate(connection.alias, app_label):
            return  # the tables are not there
        for statement in statements.get(connection.vendor, ()):
            schema_editor.execute(statement)

    def describe(self) -> str:
        return f"Storage options for {', '.join(sorted(self.forwards))}"

"""The tables as they are really made: forwards, backwards, and with the declared indexes and no others."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection

pytestmark = pytest.mark.django_db(transaction=True)
MODELS = list(apps.get_app_config("jetbridge").get_models())


def tables() -> set[str]:
    return {name for name in connection.introspection.table_names() if name.startswith("jetbridge_")}


def indexes(table: str) -> set[str]:
    """Names of everything but the primary key."""
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, table)
    return {
        name
        for name, facts in found.items()
        if (facts["index"] or facts["unique"]) and not facts["primary_key"]
    }


def declared(model) -> set[str]:
    names = {index.name for index in model._meta.indexes}
    return names | {constraint.name for constraint in model._meta.constraints}


def test_the_models_have_no_changes_without_a_migration():
    call_command("makemigrations", "--check", "--dry-run", "jetbridge", verbosity=0)


def test_everything_can_be_undone_and_done_again():
    """Also the storage options, which Django knows nothing of. An operator may have to go back."""
    wanted = {model._meta.db_table for model in MODELS}
    assert tables() == wanted
    before = {table: indexes(table) for table in wanted}
    try:
        call_command("migrate", "jetbridge", "0001", verbosity=0)
        assert tables() == wanted
        call_command("migrate", "jetbridge", "zero", verbosity=0)
        assert tables() == set()
    finally:
        call_command("migrate", "jetbridge", verbosity=0)
    assert tables() == wanted
    assert {table: indexes(table) for table in wanted} == before


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_there_are_the_declared_indexes_and_no_others(model):
    """
    Each index costs every write. Red with ``unique=True`` or ``db_index=True`` on text: PostgreSQL adds a
    second one whose name ends in ``_like``.
    """
    more = {"jb_archive_sent"} if connection.vendor == "postgresql" and model.__name__ == "Archive" else set()
    names = indexes(model._meta.db_table)
    if connection.vendor == "sqlite":
        names = {name for name in names if not name.startswith(("sqlite_autoindex", "__unnamed"))}

    assert names == declared(model) | more


def test_names_are_ours_and_short():
    for model in MODELS:
        assert model._meta.db_table.startswith("jetbridge_")
        assert all(name.startswith("jb_") and len(name) <= 30 for name in declared(model))


@pytest.mark.postgres
def test_the_hot_tables_are_stored_for_their_work():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname, reloptions FROM pg_class WHERE relname LIKE 'jetbridge_%%' AND reloptions IS NOT NULL"
        )

        options = {name: set(found) for name, found in cursor.fetchall()}
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'jb_archive_sent'")
        (brin,) = cursor.fetchone()

    assert {"autovacuum_vacuum_scale_factor=0", "autovacuum_vacuum_threshold=1000"} <= options[
        "jetbridge_outbox"
    ]
    assert {"fillfactor=50", "autovacuum_vacuum_scale_factor=0"} <= options["jetbridge_lease"]
    assert options["jetbridge_inbox"] == {"fillfactor=90"}
    assert "USING brin (sent_at)" in brin

"""How the hot tables are stored: nothing here changes what they hold."""

from django.db import migrations

from jetbridge.models.vendor_ddl import VendorDDL

# A queue's table is small and rewritten all day: vacuum it by count, not by share, or its dead
# tuples grow until a fifth of a table that was once large has changed.
_EAGER = (
    "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, "
    "autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000, autovacuum_vacuum_cost_delay = 0"
)
_EAGER_NAMES = (
    "autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, "
    "autovacuum_analyze_scale_factor, autovacuum_analyze_threshold, autovacuum_vacuum_cost_delay"
)
# Django's second index for prefixes of a text key, which nobody looks for here.
_LIKE = {
    "jetbridge_lease_name_2bcf4e73_like": ("jetbridge_lease", "name"),
    "jetbridge_worker_id_2ce6e061_like": ("jetbridge_worker", "id"),
}
# Identity is compared byte for byte; the default collations of MySQL ignore case and accents.
_BINARY = "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL"


class Migration(migrations.Migration):
    dependencies = [("jetbridge", "0001_initial")]

    operations = [
        VendorDDL(
            forwards={
                "postgresql": [
                    f"ALTER TABLE jetbridge_outbox SET ({_EAGER})",
                    f"ALTER TABLE jetbridge_lease SET (fillfactor = 50, {_EAGER})",
                    "ALTER TABLE jetbridge_inbox SET (fillfactor = 90)",
                    "CREATE INDEX jb_archive_sent ON jetbridge_archive USING brin (sent_at)",
                    *(f"DROP INDEX IF EXISTS {name}" for name in _LIKE),
                ],
                "mysql": [
                    f"ALTER TABLE {table} MODIFY handler varchar(190) {_BINARY}, "
                    f"MODIFY source varchar(64) {_BINARY}, MODIFY event_id varchar(255) {_BINARY}"
                    for table in ("jetbridge_inbox", "jetbridge_deferred")
                ],
            },
            backwards={
                "postgresql": [
                    *(
                        f"CREATE INDEX {name} ON {table} ({column} varchar_pattern_ops)"
                        for name, (table, column) in _LIKE.items()
                    ),
                    "DROP INDEX jb_archive_sent",
                    "ALTER TABLE jetbridge_inbox RESET (fillfactor)",
                    f"ALTER TABLE jetbridge_lease RESET (fillfactor, {_EAGER_NAMES})",
                    f"ALTER TABLE jetbridge_outbox RESET ({_EAGER_NAMES})",
                ],
            },
        ),
    ]

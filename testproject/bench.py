"""
``make bench``: ``jetbridge_bench`` on servers of its own, which are gone afterwards.

    python -m testproject.bench [--db postgres|sqlite] [--dir FOLDER] relay [--events 50000 ...]

PostgreSQL runs with fsync, because a number without it says nothing. What follows the measure goes to
``manage.py jetbridge_bench`` as it stands, and so does its exit code to the caller.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from testproject.nats_server import NatsServer
from testproject.postgres import Postgres

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m testproject.bench", description=__doc__, add_help=True)
    parser.add_argument("--db", choices=("postgres", "sqlite"), default="postgres")
    parser.add_argument(
        "--dir", type=Path, help="on the disk to be measured; by default the temporary folder"
    )
    parser.add_argument("bench", nargs=argparse.REMAINDER, help="arguments of jetbridge_bench")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as cleanup:
        folder = Path(
            cleanup.enter_context(tempfile.TemporaryDirectory(prefix="jetbridge-bench-", dir=options.dir))
        )
        folder.chmod(0o755)
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "testproject.settings.orders",
            "TESTPROJECT_DIR": str(folder),
            "TESTPROJECT_DB": "sqlite",
            "NATS_URL": cleanup.enter_context(NatsServer(folder / "nats")).url,
            "LOG_LEVEL": os.environ.get("LOG_LEVEL", "WARNING"),
        }
        if options.db == "postgres":
            server = cleanup.enter_context(Postgres(folder / "postgres"))
            server.create_database("orders")
            environment["TESTPROJECT_DB"] = server.url
        _manage(environment, "migrate", "--verbosity", "0", check=True)
        return _manage(environment, "jetbridge_bench", *options.bench, check=False)


def _manage(environment: dict[str, str], *command: str, check: bool) -> int:
    return subprocess.run(
        [sys.executable, ROOT / "manage.py", *command], env=environment, check=check
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""
A server goes away for minutes while writers keep writing; afterwards the databases are counted.

    python -m tests.outage --of nats|postgres --minutes 10 [--db sqlite|postgres] [--json FILE]

Exit codes: 0 every promise held · 1 one was broken · 2 usage.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.outage.run import Plan, run
from tests.outage.verdict import FIRST_EVENT_S, table


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    database = options.db or ("postgres" if options.of == "postgres" else "sqlite")
    if options.of == "postgres" and database != "postgres":
        print("--of postgres needs --db postgres: an SQLite file has no server to go away.", file=sys.stderr)
        return 2
    keys = {}
    if options.lease is not None:
        half = options.lease / 2
        keys = {"LEASE_S": options.lease, "ACK_WAIT_S": half, "PUBLISH_TIMEOUT_S": half}
    plan = Plan(
        of=options.of,
        db=database,
        minutes=options.minutes,
        how=options.how,
        first_event_s=options.first_event,
        keys=keys,
    )
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:7.1f} s] {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="jetbridge-outage-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL, when root starts it, runs as a user who must be able to pass
        verdict = run(plan, folder, say)
    text = json.dumps(verdict, indent=2)
    if options.json:
        options.json.write_text(text + "\n")
    print(table(verdict))
    print(text)
    return 0 if verdict["ok"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.outage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--of", choices=("nats", "postgres"), required=True, help="which server goes away")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--db", choices=("sqlite", "postgres"), help="of both services")
    parser.add_argument("--how", choices=("stop", "kill"), default="stop")
    parser.add_argument("--lease", type=float, metavar="S", help="LEASE_S; default: the product's")
    parser.add_argument(
        "--first-event",
        type=float,
        default=FIRST_EVENT_S,
        metavar="S",
        help="longest time to the first event after the end; the promise is %(default)g, on a machine that has time",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdict there")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

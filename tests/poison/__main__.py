"""
A few poison messages among thousands: handlers that kill their process, which is started again each time.

    python -m tests.poison [--events 10000] [--poisons exit,SIGSEGV] [--seed 1] [--db postgres] [--consumers 1]

Only the poison may end as a dead letter; every other event has one effect, by its first attempt.
Exit codes: 0 so it was · 1 it was not · 2 usage.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.poison.run import Plan, run
from tests.poison.verdict import table

KINDS = ("exit", "SIGSEGV", "SIGKILL", "SIGABRT")


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    plan = Plan(
        db=options.db,
        events=options.events,
        keys=options.keys,
        poisons=options.poisons,
        seed=options.seed,
        consumers=options.consumers,
        concurrency=options.concurrency,
        lease_s=options.lease,
        slow_neighbours=options.slow_neighbours,
        timeout_s=options.timeout,
    )
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:7.1f} s] {text}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="jetbridge-poison-", ignore_cleanup_errors=True) as name:
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
        prog="python -m tests.poison",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=500)
    parser.add_argument(
        "--poisons", type=_kinds, default=("exit",), help=f"how they kill: {', '.join(KINDS)}"
    )
    parser.add_argument("--seed", type=int, default=1, help="chooses which events are poison")
    parser.add_argument("--db", choices=("sqlite", "postgres"), default="postgres", help="of both services")
    parser.add_argument("--consumers", type=int, default=1, help="processes; one works, the others stand by")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--lease", type=float, default=3.0, metavar="S", help="LEASE_S")
    parser.add_argument(
        "--slow-neighbours", action="store_true", help="events beside a poison take their time"
    )
    parser.add_argument("--timeout", type=float, default=900.0, metavar="S")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdict there")
    return parser


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(KINDS)}")
    return kinds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

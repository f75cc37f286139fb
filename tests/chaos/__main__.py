"""
Writers, relays and consumers under random faults, and a verdict counted from the database and the stream.

Exit codes: 0 every promise held · 1 one was broken · 2 usage · 4 a server did not start.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from testproject.postgres import PostgresError
from testproject.postgres_files import FilesError
from tests.chaos.broker import BrokerTrouble
from tests.chaos.report import Reporter
from tests.chaos.run import Options, Run


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    options = Options(
        events=given.events,
        faults=given.faults,
        seed=given.seed,
        db=given.db,
        cluster=given.cluster,
        keys=given.keys,
        relays=given.relays,
        consumers=given.consumers,
        pace_s=given.pace,
        strict_order=given.strict_order,
    )
    # So that everything that was started is stopped on the way out.
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, is_ours = _folder(given.dir)
    reporter = Reporter()
    try:
        with Run(folder, options, reporter.say) as run:
            result = run.run()
    except (BrokerTrouble, PostgresError, FilesError) as trouble:
        print(f"The run could not be made: {trouble}. Its folder: {folder}", file=sys.stderr)
        return 4
    finally:
        reporter.end()
    if given.json:
        given.json.write_text(json.dumps(result.document, indent=2) + "\n")
    reporter.verdict(result.document, result.breaches, strict_order=options.strict_order)
    if result.ok and is_ours and not given.keep:
        _remove(folder)
    else:
        print(f"Databases, stream store, logs, journal and faults.jsonl: {folder}")
    if not result.ok:
        print(f"The same plan again: {options.command}")
    return 0 if result.ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--events", type=int, default=2_000, metavar="N", help="to be committed; others are rolled back"
    )
    parser.add_argument("--faults", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the events and of the faults")
    parser.add_argument("--db", choices=("postgres", "sqlite"), default="postgres")
    parser.add_argument(
        "--cluster", type=int, choices=(1, 3), default=1, help="nats-servers; 3 keep the stream thrice"
    )
    parser.add_argument("--keys", type=int, default=200, metavar="N")
    parser.add_argument("--relays", type=int, default=3, metavar="N")
    parser.add_argument("--consumers", type=int, default=3, metavar="N")
    parser.add_argument(
        "--pace", type=float, default=1.5, metavar="S", help="seconds from fault to fault, on average"
    )
    parser.add_argument(
        "--strict-order", action="store_true", help="handlers out of order break the run, too"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdict there")
    parser.add_argument("--dir", type=Path, metavar="D", help="new folder for everything, which stays")
    parser.add_argument("--keep", action="store_true", help="the folder stays also if every promise held")
    return parser


def _folder(wanted: Path | None) -> tuple[Path, bool]:
    if wanted is not None:
        wanted.mkdir(parents=True)
        return wanted.absolute(), False
    folder = Path(tempfile.mkdtemp(prefix="jetbridge-chaos-"))
    # PostgreSQL, when root starts it, runs as a user who must be able to pass.
    folder.chmod(0o755)
    return folder, True


def _remove(folder: Path) -> None:
    """PostgreSQL's data may lie elsewhere, behind a link."""
    data = (folder / "postgres").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    if not data.is_relative_to(folder.resolve()):
        shutil.rmtree(data, ignore_errors=True)


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

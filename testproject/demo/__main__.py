"""
Two services, real servers, crashes in the middle, a verdict.

Exit codes: 0 every promise held · 1 one was broken · 2 usage · 4 a server did not start · 6 timed out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from testproject.demo.ending import Ending
from testproject.demo.orders import MIN_ORDERS
from testproject.demo.report import Reporter

if TYPE_CHECKING:
    from testproject.demo.run import Result

OK: Final = 0
BROKEN: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 4
TIMED_OUT: Final = 6


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: one of those above, or 128 + the signal that ended it."""
    ending = Ending()
    try:
        code = _demo(arguments, ending)
    except BaseException:
        if ending.signal is None:
            raise
    if ending.signal is None:
        return code
    word = "Interrupted" if ending.signal is signal.SIGINT else "Terminated"
    print(f"{word}; everything is stopped.", file=sys.stderr)
    return 128 + ending.signal


def _demo(arguments: Sequence[str], ending: Ending) -> int:
    started_at = time.monotonic()
    options = _parser().parse_args(arguments)
    reporter = Reporter(started_at)
    folder = _folder(options.dir)
    # Before the first line: who has read it may interrupt.
    ending.listen()
    reporter.say(f"jetbridge demo: {options.orders} orders, {options.db}, seed {options.seed}, in {folder}")
    # Imported now: Django and the broker's client take a second, and the first line is already out.
    from testproject.demo.run import ServerTrouble, Unprepared, run
    from testproject.demo.story import TimedOut

    try:
        result = run(
            folder,
            vendor=options.db,
            orders=options.orders,
            seed=options.seed,
            timeout_s=options.timeout,
            started_at=started_at,
            reporter=reporter,
            check=ending.check,
        )
    except ServerTrouble as trouble:
        print(f"The demo cannot run: {trouble}", file=sys.stderr)
        return UNREACHABLE
    except Unprepared as trouble:
        print(f"The demo could not begin: {trouble}", file=sys.stderr)
        return BROKEN
    except TimedOut as late:
        print(f"Timed out waiting for {late}.", file=sys.stderr)
        return TIMED_OUT
    finally:
        reporter.end()
    if options.json:
        options.json.write_text(json.dumps(result.document, indent=2) + "\n")
    reporter.verdict(result.checks, result.facts, ok=result.ok)
    return _code(result)


def _code(result: Result) -> int:
    if result.timed_out:
        return TIMED_OUT
    return OK if result.ok else BROKEN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m testproject.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--db", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--orders", type=_number(MIN_ORDERS, 100_000), default=300, metavar="N")
    parser.add_argument("--seed", type=_number(0, 10**9), default=1, metavar="S", help="what is placed")
    parser.add_argument("--json", type=_new_file, metavar="PATH", help="write the verdict there")
    parser.add_argument(
        "--dir", type=Path, metavar="DIR", help="for databases, store and logs, which stay; empty or new"
    )
    parser.add_argument("--timeout", type=_number(1, 86_400), default=120, metavar="S", help="seconds")
    return parser


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, got {text!r}")
        return int(text)

    return parse


def _new_file(text: str) -> Path:
    """Found out now, not after a minute of work."""
    path = Path(text).absolute()
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"expected a file in an existing folder, got {text!r}")
    return path


def _folder(wanted: Path | None) -> Path:
    if wanted is None:
        folder = Path(tempfile.mkdtemp(prefix="jetbridge-demo-"))
        # PostgreSQL, when root starts it, runs as a user who must be able to pass.
        folder.chmod(0o755)
        return folder
    folder = wanted.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            _usage(
                f"--dir {folder} is not empty. The verdict is counted from what is in it: name a new or empty folder."
            )
    except OSError as fault:
        _usage(f"--dir {folder} cannot be used: {fault.strerror}.")
    return folder


def _usage(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    sys.exit(USAGE)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # before we listened: nothing runs that must be stopped
        print("Interrupted.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)

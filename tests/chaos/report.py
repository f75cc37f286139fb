"""What people see: one line that moves, then a table. With rich where it is installed and a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from tests.chaos.verdict import ORDER, PROMISED

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from tests.chaos.verdict import Breach

PLAIN_EVERY_S: Final = 10.0
MOST_OF_A_KIND: Final = 8


class Reporter:
    """Texts that begin with ``~`` are progress: they replace one another on a terminal, and are rare elsewhere."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._console = _console()
        self._status: Status | None = None
        self._next_plain = 0.0

    def say(self, text: str) -> None:
        line = f"{time.monotonic() - self._began:6.1f} s  {text.removeprefix('~')}"
        if not text.startswith("~"):
            self._print(line)
        elif self._console is not None:
            if self._status is None:
                self._status = self._console.status(line)
                self._status.start()
            self._status.update(line)
        elif time.monotonic() >= self._next_plain:
            self._next_plain = time.monotonic() + PLAIN_EVERY_S
            self._print(line)

    def end(self) -> None:
        """Take the moving line away; safe to repeat."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def verdict(self, document: dict[str, Any], breaches: Sequence[Breach], *, strict_order: bool) -> None:
        self.end()
        for group in ("events", "faults", "deaths"):
            counted = ", ".join(f"{name} {value}" for name, value in document[group].items())
            self._print(f"{group}: {counted or 'none'}")
        self._print(f"duplicates suppressed: {document['duplicates_suppressed']}")
        promised = (*PROMISED, ORDER) if strict_order else PROMISED
        rows = [(name, document[name], "0" if name in promised else "-") for name in (*PROMISED, ORDER)]
        self._table(rows)
        for name in promised:
            told = [breach.what for breach in breaches if breach.of == name]
            for what in told[:MOST_OF_A_KIND]:
                self._print(f"{name}: {what}")
            if len(told) > MOST_OF_A_KIND:
                self._print(f"{name}: {len(told) - MOST_OF_A_KIND} more, see breaches.txt")
        self._print(
            f"{'Every promise held' if document['ok'] else 'A PROMISE WAS BROKEN'}, {document['duration_s']} s."
        )

    def _table(self, rows: Sequence[tuple[str, int, str]]) -> None:
        if self._console is None:
            for name, seen, expected in rows:
                held = expected == "-" or not seen
                self._print(f"  {name:<24}{seen:>8}  {'' if held else 'BROKEN'}".rstrip())
            return
        from rich import box
        from rich.table import Table

        table = Table("promise", "seen", "promised", box=box.SIMPLE_HEAD, pad_edge=False)
        for name, seen, expected in rows:
            held = expected == "-" or not seen
            table.add_row(name.replace("_", " "), str(seen), expected, style="" if held else "bold red")
        self._console.print(table)

    def _print(self, line: str) -> None:
        if self._console is not None:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(line, flush=True)


def _console() -> Console | None:
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console()

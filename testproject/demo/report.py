"""What people see: progress while the demo runs, then the verdict. With rich where it is installed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from testproject.demo.verdict import Check

PLAIN_EVERY_S: Final = 2.0
BARS: Final = ("placed", "invoiced", "answered")


class Reporter:
    """
    Lines and bars on stdout; plain lines where that is no terminal or rich is missing.

    Args:
        started_at: Monotonic time of the demo's start; each line begins with the seconds since.
    """

    def __init__(self, started_at: float) -> None:
        self._started_at = started_at
        self._console = _console()
        self._progress: Progress | None = None
        self._tasks: list[TaskID] = []
        self._total = 0
        self._next_plain = 0.0

    def say(self, text: str) -> None:
        """One line; it stays above the bars."""
        line = f"{time.monotonic() - self._started_at:5.1f} s  {text}"
        if self._progress is not None:
            self._progress.console.print(line, highlight=False, markup=False)
        elif self._console is not None:
            self._console.print(line, highlight=False, markup=False)
        else:
            print(line, flush=True)

    def begin(self, total: int) -> None:
        """Show bars from now on; ``total`` is the number of orders that will be committed."""
        self._total = total
        if self._console is None:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("        {task.description:<9}"), BarColumn(40), MofNCompleteColumn())
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._tasks = [self._progress.add_task(name, total=total) for name in BARS]
        self._progress.start()

    def show(self, *, placed: int, invoiced: int, answered: int) -> None:
        """Where the events are."""
        if self._progress is not None:
            for task, value in zip(self._tasks, (placed, invoiced, answered), strict=True):
                self._progress.update(task, completed=value)
        elif self._console is None and (now := time.monotonic()) >= self._next_plain:
            self._next_plain = now + PLAIN_EVERY_S
            self.say(f"  placed {placed}/{self._total}, invoiced {invoiced}, answered {answered}")

    def end(self) -> None:
        """Take the bars away; safe to repeat."""
        progress, self._progress = self._progress, None
        if progress is not None:
            progress.stop()

    def verdict(self, checks: Sequence[Check], facts: Sequence[str], *, ok: bool) -> None:
        """The table, the facts below it, and one last line."""
        self.end()
        rows = [(_sentence(check.id), str(check.seen), str(check.expected), check.ok) for check in checks]
        last = "Every promise held." if ok else "NOT EVERY PROMISE HELD: see above."
        if self._console is None:
            _plain_table(rows)
            print("\n".join([*facts, last]), flush=True)
            return
        from rich import box
        from rich.table import Table

        table = Table("promise", "seen", "expected", "", box=box.SIMPLE_HEAD, pad_edge=False)
        for name, seen, expected, held in rows:
            table.add_row(name, seen, expected, "[green]✓[/]" if held else "[bold red]✗[/]")
        self._console.print(table)
        for fact in facts:
            self._console.print(fact, highlight=False, markup=False, soft_wrap=True)
        self._console.print(last, style="bold green" if ok else "bold red")


def _console() -> Console | None:
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console()


def _sentence(identifier: str) -> str:
    return identifier.replace("_", " ")


def _plain_table(rows: Sequence[tuple[str, str, str, bool]]) -> None:
    table = [
        ("promise", "seen", "expected", ""),
        *((n, s, e, "ok" if held else "BROKEN") for n, s, e, held in rows),
    ]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    print()
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[3]]).rstrip())
    print()

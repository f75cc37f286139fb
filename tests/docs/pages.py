"""
The documentation as data: pages, their fenced code blocks, headings and links.

A block whose first line is a comment with a path (``# shop/models.py``) is a file, or an addition to the end
of one; the tests that carry a page out write it there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)[ \t]*\n(?P<text>.*?)^(?P=indent)```[ \t]*$", re.M | re.S
)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.M)
_PATH = re.compile(r"^# ((?:[\w-]+/)+[\w.-]+\.\w+)\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block. ``line`` is the line of its fence, from 1; ``section`` the heading above it."""

    page: Path
    line: int
    section: str
    language: str
    text: str

    @property
    def path(self) -> str | None:
        """The file that the block belongs into, relative to the project."""
        found = _PATH.match(self.text)
        return found.group(1) if found else None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """README, the other pages of the root, and everything below ``docs/``."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def text_of(page: str) -> str:
    """A page by its path from the root."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in order; all, or those in some languages."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        headings = _HEADING.findall(_without_blocks(text[: match.start()]))
        block = Block(
            page=page,
            line=text.count("\n", 0, match.start()) + 1,
            section=headings[-1] if headings else "",
            language=match["language"],
            text=match["text"],
        )
        if not languages or block.language in languages:
            found.append(block)
    return found


def all_blocks(*languages: str) -> list[Block]:
    """The blocks of every page."""
    return [block for page in pages() for block in blocks(page, *languages)]


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a shell block, which may go over several lines; comments are dropped."""
    pending = ""
    for line in block.text.splitlines():
        pending += line + "\n"
        if pending.endswith("\\\n"):
            pending = pending[:-2]
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:
            continue  # within quotes
        pending = ""
        if words:
            yield words
    assert not pending, f"{block}: the last command does not end: {pending!r}"


def links(page: Path) -> list[str]:
    """Targets of the links of a page, outside code."""
    text = re.sub(r"`[^`\n]*`", "", _without_blocks(page.read_text(encoding="utf-8")))
    return _LINK.findall(text)


def anchors(page: Path) -> set[str]:
    """What may follow ``#`` in a link to the page: its headings as GitHub spells them."""
    headings = _HEADING.findall(_without_blocks(page.read_text(encoding="utf-8")))
    return {_slug(heading) for heading in headings}


def sections(page: str, level: int = 2) -> dict[str, str]:
    """The text below each heading of a level, up to the next one of that level or above."""
    pattern = re.compile(rf"^{'#' * level} +(.+?) *\n(.*?)(?=^#{{1,{level}}} |\Z)", re.M | re.S)
    return {title.strip("`"): body for title, body in pattern.findall(text_of(page))}


def _slug(heading: str) -> str:
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def _without_blocks(text: str) -> str:
    return _FENCE.sub("", text)

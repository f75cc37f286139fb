"""Dead letters as ``jetbridge_dlq`` prints them: JSON documents, and text for people. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from jetbridge.dead_letters.redrive import Skipped
from jetbridge.dead_letters.store import DeadLetterRecord, DeadLetterSummary

MAX_ERROR_CHARS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """
    What redrive or discard did, or with ``is_rehearsal`` would do to ``ids``.

    ``stopped`` is why it did nothing at all.
    """

    verb: str
    matched: int
    ids: Sequence[int]
    skipped: Sequence[Skipped]
    is_rehearsal: bool = False
    stopped: str = ""

    def document(self) -> dict[str, object]:
        return {
            "matched": self.matched,
            "done": 0 if self.is_rehearsal else len(self.ids),
            "skipped": [{"id": one.id, "why": one.why} for one in self.skipped],
            "ids": list(self.ids),
        }

    def text(self) -> str:
        if self.stopped:
            return self.stopped
        word = f"Would be {self.verb}" if self.is_rehearsal else self.verb.capitalize()
        first = f"{word}: {len(self.ids)} of {self.matched}"
        ids = f" ({', '.join(map(str, self.ids[:20]))}{', …' if len(self.ids) > 20 else ''})"
        skipped = [f"Skipped {one.id}: {one.why}" for one in self.skipped]
        return "\n".join([first + (ids if self.ids else ""), *skipped])


def summary(letter: DeadLetterSummary) -> dict[str, object]:
    """One entry of ``list``."""
    return {
        "id": letter.id,
        "event_id": letter.event_id,
        "source": letter.source,
        "handler": letter.handler,
        "event_type": letter.event_type,
        "key": letter.key,
        "reason": letter.reason,
        "error_class": letter.error_class,
        "error_message": letter.error,
        "attempts": letter.attempts,
        "state": letter.state,
        "created_at": letter.created_at.isoformat(),
        "stream": letter.stream,
        "sequence": letter.sequence,
        "subject": letter.subject,
    }


def details(letter: DeadLetterRecord) -> dict[str, object]:
    """The document of ``show``. ``body`` is text, or base64 where it is not UTF-8; ``body_encoding`` says which."""
    body, encoding = body_text(letter.body)
    return {
        **summary(letter),
        "redrives": letter.redrives,
        "headers": dict(letter.headers),
        "body": body,
        "body_encoding": encoding,
        "traceback": letter.traceback,
        "history": history(letter),
    }


def body_text(body: bytes) -> tuple[str, str]:
    """Bytes as a JSON string, and how they were made one."""
    try:
        return body.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(body).decode("ascii"), "base64"


def history(letter: DeadLetterRecord) -> list[dict[str, object]]:
    """What has happened to it, as far as its row tells: the last redrive or end, not each of them."""
    found = [_entry(letter.created_at, "dead_lettered", note=letter.reason)]
    if letter.is_edited:
        found.append(_entry(None, "edited"))
    if letter.redrives:
        by = letter.resolved_by if letter.state in ("redriving", "redriven") else ""
        found.append(_entry(None, "redrive", by=by, note=f"{letter.redrives} in all"))
    if letter.state == "open" and letter.redrives:
        found.append(_entry(None, "failed_again", note=letter.error_class))
    if letter.resolved_at is not None:
        found.append(_entry(letter.resolved_at, letter.state, by=letter.resolved_by, note=letter.note))
    return found


def _entry(at: datetime | None, what: str, *, by: str = "", note: str = "") -> dict[str, object]:
    return {"at": at and at.isoformat(), "what": what, "by": by, "note": note}


def table(letters: Sequence[DeadLetterSummary], total: int) -> str:
    """The list for people."""
    if not letters:
        return "No dead letters match."
    rows = [("ID", "STATE", "HANDLER", "TYPE", "SOURCE", "KEY", "REASON", "TRIES", "SINCE", "ERROR")]
    rows += [
        (
            str(one.id),
            one.state,
            one.handler or "-",
            one.event_type or "-",
            one.source,
            one.key or "-",
            one.reason,
            str(one.attempts),
            f"{one.created_at:%Y-%m-%d %H:%M}",
            _short(f"{one.error_class}: {one.error}"),
        )
        for one in letters
    ]
    widths = [min(40, max(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    lines = ["  ".join(_fit(cell, width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    hidden = total - len(letters)
    more = [f"… and {hidden:,} more; --limit N shows more, --format json all."] if hidden > 0 else []
    return "\n".join([*(line.rstrip() for line in lines), *more])


def _fit(cell: str, width: int) -> str:
    return cell.ljust(width) if len(cell) <= width else f"{cell[: width - 1]}…"


def _short(error: str) -> str:
    line = " ".join(error.split())
    return line if len(line) <= MAX_ERROR_CHARS else f"{line[: MAX_ERROR_CHARS - 1]}…"


def page(letter: DeadLetterRecord) -> str:
    """One dead letter for people."""
    facts: list[tuple[str, object]] = [
        ("state", letter.state),
        ("event", f"{letter.event_type or '-'} {letter.event_id}"),
        ("handler", letter.handler or "-"),
        ("source", letter.source),
        ("key", letter.key or "-"),
        ("place", f"{letter.subject}, {letter.stream} #{letter.sequence}"),
        (
            "reason",
            f"{letter.reason} after {_times(letter.attempts, 'attempt')}, {_times(letter.redrives, 'redrive')}",
        ),
        ("since", f"{letter.created_at:%Y-%m-%d %H:%M:%S %Z}".rstrip()),
        ("error", f"{letter.error_class}: {letter.error}"),
    ]
    if letter.resolved_by or letter.note:
        facts.append(("by", f"{letter.resolved_by or '-'}: {letter.note or '-'}"))
    lines = [f"Dead letter {letter.id}", *(f"  {name:<9}{value}" for name, value in facts)]
    lines += ["Headers", *(f"  {name}: {value}" for name, value in letter.headers.items())]
    lines += ["Body (edited)" if letter.is_edited else "Body", pretty(letter.body)]
    if letter.traceback:
        lines += ["Traceback", letter.traceback.rstrip()]
    return "\n".join(lines)


def _times(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def pretty(body: bytes) -> str:
    """A body for people: indented where it is JSON, else as it is with escapes."""
    try:
        return json.dumps(json.loads(body), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "backslashreplace")

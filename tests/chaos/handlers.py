"""What the consumers do with the events: each run that commits leaves a row, and each run leaves lines in a journal."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from django.db import connection

import jetbridge
from tests.chaos.plan import Fate
from tests.chaos.terms import TERMS

EXIT_OF_DEADLY = 86
_JOURNAL = Path(os.environ["CHAOS_DIR"]) / "journal"
_MENDED = Path(os.environ["CHAOS_DIR"]) / "mended"
_INSERT = """\
INSERT INTO chaos_effect (handler, event_id, key, n, answer_id, pid, attempt)
VALUES (%s, %s, %s, %s, %s, %s, %s)"""


def note(word: str, event: jetbridge.Delivery) -> None:
    """One line, written at once: it must be there when the process is not any more."""
    payload = event.payload
    line = (
        f"{time.time():.3f} {os.getpid()} {word} {event.event_id} {event.attempt} "
        f"{payload.get('key') or '-'} {payload.get('n')} {payload.get('fate')} {event.sequence}\n"
    )
    with (_JOURNAL / str(os.getpid())).open("a") as file:
        file.write(line)


@jetbridge.handler("chaos.made", source=TERMS.app, name="chaos.effect")
def effect(event: jetbridge.Delivery) -> None:
    note("start", event)
    try:
        answer_id = ""
        if event.payload["fate"] == Fate.ANSWERED:
            answer_id = jetbridge.publish("chaos.answer", {"of": event.event_id}, to=TERMS.app)
        _write("chaos.effect", event, answer_id)
        _meet(event)
    except BaseException:
        note("fails", event)
        raise
    note("end", event)


@jetbridge.handler("chaos.answer", source=TERMS.app, name="chaos.answer")
def answer(event: jetbridge.Delivery) -> None:
    _write("chaos.answer", event, "")


def _write(handler: str, event: jetbridge.Delivery, answer_id: str) -> None:
    payload = event.payload
    row = [
        handler,
        event.event_id,
        payload.get("key") or "",
        payload.get("n"),
        answer_id,
        os.getpid(),
        event.attempt,
    ]
    with connection.cursor() as cursor:
        cursor.execute(_INSERT, row)


def _meet(event: jetbridge.Delivery) -> None:
    """The effect is written, not committed: whatever happens now must take it away."""
    match event.payload["fate"]:
        case Fate.SLOW:
            # SQLite lets nobody else write meanwhile.
            threading.Event().wait(0.3 if connection.vendor == "postgresql" else 0.02)
        case Fate.FLAKY if event.attempt <= event.payload["times"]:
            raise RuntimeError("It fails some times.")
        case Fate.DOOMED:
            raise RuntimeError("It fails for ever.")
        case Fate.REJECTED if not _MENDED.exists():
            raise jetbridge.Reject("It is not wanted.")
        case Fate.DEADLY:
            note("dies", event)
            if event.payload["number"] % 2:
                os._exit(EXIT_OF_DEADLY)
            os.kill(os.getpid(), signal.SIGKILL)

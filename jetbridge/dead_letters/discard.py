"""Discard: an operator's word that a dead letter is not to be run."""

from __future__ import annotations

from collections.abc import Sequence

from jetbridge.dead_letters import store
from jetbridge.dead_letters.redrive import Acted, Skipped
from jetbridge.dead_letters.store import DeadLetterSummary


def discard(letters: Sequence[DeadLetterSummary], *, by: str, note: str, using: str) -> Acted:
    """
    Close dead letters for good; the rows stay, with who did it and why.

    Args:
        letters: What to discard; those not open any more are skipped.
        by: Who asked.
        note: Why; not empty.
    """
    if not note.strip():
        raise ValueError("A discard needs a note that says why.")
    done: list[int] = []
    skipped: list[Skipped] = []
    for letter in letters:
        if store.discard(letter.id, by=by, note=note, using=using):
            done.append(letter.id)
        else:
            skipped.append(Skipped(id=letter.id, why="it is not open any more"))
    return Acted(ids=done, skipped=skipped)

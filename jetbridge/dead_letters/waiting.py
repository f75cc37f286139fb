"""Waiting for redriven dead letters to have run: a consumer does that, in another process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from jetbridge.dead_letters import store
from jetbridge.dead_letters.redrive import Acted, Skipped
from jetbridge.dead_letters.store import DeadLetterSummary, Selection
from jetbridge.deferred import store as deferred
from jetbridge.models import DeadLetterState

EVERY_S: Final = 0.25
AT_ONCE: Final = 500  # databases limit the parameters of a statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited:
    """``acted`` with those that failed again or have not run moved to ``skipped``."""

    acted: Acted
    finished: bool


def wait_until_run(acted: Acted, *, timeout_s: float, using: str) -> Waited:
    """Look at the dead letters that were redriven until each has run, at most for ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    pending = list(acted.ids)
    skipped = list(acted.skipped)
    while pending:
        # In this order: one that fails between the two looks is still running in the first, and not a success.
        still = set(_running(pending, using))
        failed = [Skipped(id=one.id, why=why) for one, why in _failed(pending, using)]
        skipped += failed
        still -= {one.id for one in failed}
        pending = [id for id in pending if id in still]
        if not pending or time.monotonic() >= deadline:
            break
        time.sleep(min(EVERY_S, max(0.0, deadline - time.monotonic())))
    skipped += [Skipped(id=id, why=f"it has not run within {timeout_s:g} s; it still will") for id in pending]
    left_out = {one.id for one in skipped}
    return Waited(
        acted=Acted(ids=[id for id in acted.ids if id not in left_out], skipped=skipped),
        finished=not pending,
    )


def _letters(ids: Sequence[int], using: str) -> Iterator[DeadLetterSummary]:
    for start in range(0, len(ids), AT_ONCE):
        yield from store.select(Selection(ids=ids[start : start + AT_ONCE]), states=None, using=using)


def _failed(ids: Sequence[int], using: str) -> Iterator[tuple[DeadLetterSummary, str]]:
    for letter in _letters(ids, using):
        verdict = letter if letter.handler else _of_its_handlers(letter, using)
        if verdict is not None and verdict.state == DeadLetterState.OPEN:
            yield letter, f"it failed again ({verdict.handler}): {verdict.error_class}: {verdict.error}"


def _of_its_handlers(letter: DeadLetterSummary, using: str) -> DeadLetterSummary | None:
    """The dead letter of a handler that got a message which had reached none before."""
    return store.open_of_event(letter.source, letter.event_id, using=using)


def _running(ids: Sequence[int], using: str) -> Iterator[int]:
    for letter in _letters(ids, using):
        if letter.state == DeadLetterState.REDRIVING or (
            # One without a handler is redriven at once; its handlers have yet to run.
            not letter.handler and deferred.waits(source=letter.source, event_id=letter.event_id, using=using)
        ):
            yield letter.id

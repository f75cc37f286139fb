"""
Subjects in trouble: no stream takes them, or no room. They wait by themselves and are tried from time to time.

Parked rows go out as they are, oldest first, and leave for the archive: a subject that stays full costs no writes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from jetbridge.conf import Settings
from jetbridge.models import OutboxState
from jetbridge.outbox import store
from jetbridge.outbox.records import OutboxRecord
from jetbridge.relay import sorting
from jetbridge.relay.knowledge import Knowledge, Trial
from jetbridge.relay.sender import HELD, Sender
from jetbridge.runtime.threads import Threads

logger = logging.getLogger("jetbridge.relay")

DRAIN_PAGES = 2
AGAIN_S = 2.0


class Trials:
    """Tries the parked subjects of the buckets in hand when they are due."""

    def __init__(
        self, settings: Settings, *, using: str, threads: Threads, known: Knowledge, sender: Sender
    ) -> None:
        self._settings = settings
        self._using = using
        self._threads = threads
        self._known = known
        self._sender = sender

    async def run(self) -> None:
        """Some rows of the parked subjects that are due, the longest waiting first; then it is the others' turn."""
        parked = self._known.parked
        now, room = time.monotonic(), DRAIN_PAGES * self._settings.page_size
        due = [subject for subject, trial in parked.items() if trial.due <= now]
        for subject in sorted(due, key=lambda subject: parked[subject].due):
            room -= await self._try(subject)
            # A broker that does not answer makes each of them wait for its deadline, and everybody behind them.
            if room <= 0 or not self._sender.is_heard:
                return

    async def _try(self, subject: str) -> int:
        """Send the oldest parked rows of a subject; returns how many were tried."""
        trial, tried = self._known.parked[subject], 0
        for _ in range(DRAIN_PAGES):
            limit = trial.size
            records = await self._threads.run(
                store.parked_page, subject, self._known.buckets, limit=limit, using=self._using
            )
            if not records:
                # Forgotten only when none is left: until then its new rows park behind them.
                del self._known.parked[subject]
                logger.info("%s works again; nothing of it is parked any more.", subject)
                return tried
            tried += len(records)
            if not await self._passes(trial, records):
                return tried
            trial.due = time.monotonic()
            trial.size = min(max(self._settings.window, 2 * limit), DRAIN_PAGES * self._settings.page_size)
            if len(records) == limit:
                return tried
            # Those were the last, or a page full of large ones: a look now, before newer rows park behind them.
        return tried

    async def _passes(self, trial: Trial, records: Sequence[OutboxRecord]) -> bool:
        """Whether a parked subject took everything of it that can be taken; if not, when to try it next."""
        page = sorting.sort(records, parked=(), refused=self._known.refused)
        await self._sender.set_aside(page.hold, OutboxState.HELD, *HELD, origin=OutboxState.PARKED)
        if not page.send:
            return True
        verdicts = await self._sender.send(page.send, origin=OutboxState.PARKED)
        if verdicts is None:
            return False
        if verdicts.parked:
            trial.due, trial.size = time.monotonic() + self._settings.park_retry_s, 1
        elif verdicts.outage:
            trial.due = time.monotonic() + min(AGAIN_S, self._settings.park_retry_s)
        return not (verdicts.parked or verdicts.outage)

"""The view of one database."""

from __future__ import annotations

from typing import Final

from jetbridge.models import DeadLetterState, InboxState, OutboxState
from jetbridge.monitor import store
from jetbridge.monitor.views import DatabaseView, DeadLettersView, DeferredView, InboxView, OutboxView

CAP: Final = 10_000


def look(alias: str, *, cap: int | None = CAP) -> DatabaseView:
    """
    Look at jetbridge's tables.

    Args:
        alias: Of the database.
        cap: No number is counted further than this; ``None`` counts exactly, however long it takes.
    """
    count = store.Counter(alias, cap)
    return DatabaseView(
        alias=alias,
        outbox=OutboxView(
            ready=count.outbox(OutboxState.READY),
            held=count.outbox(OutboxState.HELD),
            parked=count.outbox(OutboxState.PARKED),
            refused=count.outbox(OutboxState.REFUSED),
            scheduled=count.scheduled(),
            due=count.due(),
            oldest_ready_s=store.oldest_ready_s(using=alias, cap=cap),
        ),
        archived=count.archived(),
        inbox=InboxView(
            processed=count.inbox(InboxState.PROCESSED),
            retrying=count.inbox(InboxState.RETRYING),
            dead=count.inbox(InboxState.DEAD),
        ),
        deferred=DeferredView(due=count.deferred_due(), waiting=count.deferred_waiting()),
        dead_letters=DeadLettersView(
            open=count.dead_letters(DeadLetterState.OPEN),
            redriving=count.dead_letters(DeadLetterState.REDRIVING),
        ),
        leases=store.held_leases(using=alias),
        workers=store.workers(using=alias),
        capped=tuple(count.capped),
    )

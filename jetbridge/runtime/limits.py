"""How long things may take: deadlines of queries, and after which time a loop counts as stuck. From the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jetbridge.conf import Settings
from jetbridge.runtime import sessions

LEASE_SHARE: Final = 2 / 3  # a renewal that took longer is worth nothing: nobody may act on it any more
REQUEST_S: Final = 5.0  # the deadline of a request to the broker


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """
    Seconds.

    The first query that gets no answer ends a tick, with an error. So a tick that succeeds may hold several
    that are merely slow; twice the deadline is far beyond any that works.

    Attributes:
        query_s: Deadline of a query of the relay, or of the consumer's bookkeeping.
        lease_query_s: Deadline of what is said and asked about leases and processes.
        relay_s: Of a relay's tick: queries, and pages on their way to the broker.
        dispatch_s: Of a look at the deferred table: all aliases take turns on one thread.
        stranded_s: Of a look at what durables have given up: some queries, some requests to the broker.
        upkeep_s: Of leases and of the process's row, which take turns on one thread.
    """

    query_s: float
    lease_query_s: float
    relay_s: float
    dispatch_s: float
    stranded_s: float
    upkeep_s: float


def limits_of(settings: Settings, aliases: Sequence[str]) -> Limits:
    """The limits of a process that uses ``aliases``."""
    query_s = sessions.deadline_s(settings.database_timeout_s, aliases)
    lease_query_s = sessions.deadline_s(settings.lease_s * LEASE_SHARE, aliases)
    return Limits(
        query_s=query_s,
        lease_query_s=lease_query_s,
        relay_s=2 * (query_s + settings.publish_timeout_s),
        dispatch_s=(len(aliases) + 1) * query_s,
        stranded_s=2 * (query_s + REQUEST_S),
        upkeep_s=3 * lease_query_s,
    )

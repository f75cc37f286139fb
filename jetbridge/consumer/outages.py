"""
Which databases are away, as the handlers' attempts have found. Lives on the loop.

Hundreds of events may be in hand when a database goes. If each asked every second, a server that is just
coming back would meet all of them at once, and the log would hold a line for each.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

logger = logging.getLogger("jetbridge.consumer")


@dataclass(slots=True)
class _Outage:
    asker: object
    since: float = field(default_factory=time.monotonic)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Outages:
    """One asks whether the database is back, the others wait for its answer."""

    def __init__(self) -> None:
        self._away: dict[str, _Outage] = {}

    def over(self, asker: object, alias: str) -> asyncio.Event | None:
        """What to wait for before asking ``alias`` anything; ``None`` if ``asker`` may go on."""
        outage = self._away.get(alias)
        return None if outage is None or outage.asker is asker else outage.over

    def met(self, asker: object, alias: str, why: str) -> bool:
        """An attempt has met the outage; ``True`` for the first, which is the one to ask from now on."""
        if alias in self._away:
            return False
        self._away[alias] = _Outage(asker)
        logger.warning("Handlers wait: the database %r does not answer (%s).", alias, why)
        return True

    def answered(self, alias: str) -> None:
        """An attempt got through."""
        outage = self._away.pop(alias, None)
        if outage is not None:
            outage.over.set()
            logger.info(
                "The database %r answers again, after %.1f s.", alias, time.monotonic() - outage.since
            )

    def leave(self, asker: object | None = None) -> None:
        """``asker``, or everybody, asks no more; who waits for its answer may find out."""
        for alias, outage in list(self._away.items()):
            if asker is None or outage.asker is asker:
                del self._away[alias]
                outage.over.set()

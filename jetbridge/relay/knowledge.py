"""What a relay knows of its buckets beyond the page in its hands: what must not be sent now, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from jetbridge.relay.sorting import Lane


@dataclass(slots=True, kw_only=True)
class Trial:
    """
    A parked subject. While it is known here its new rows park too, so that nothing overtakes.

    Attributes:
        due: When to try it next, monotonic seconds.
        size: How many of its rows at once: one to see, and more and more while they pass.
    """

    due: float = 0.0
    size: int = 1


@dataclass(slots=True, kw_only=True)
class Knowledge:
    """
    Attributes:
        buckets: Those this is about: the ones in hand.
        parked: Subjects without room or stream.
        refused: (subject, key) pairs with a refused row that their followers wait for.
    """

    buckets: frozenset[int] = frozenset()
    parked: dict[str, Trial] = field(default_factory=dict)
    refused: set[Lane] = field(default_factory=set)

    def learn_parked(self, subjects: Iterable[str]) -> None:
        """These have parked rows; a trial that is planned stays planned."""
        self.parked |= {subject: Trial() for subject in subjects if subject not in self.parked}

    def draining(self, now: float = float("inf")) -> bool:
        """Whether rows of a parked subject pass, so that more of them may follow, at ``now`` if given."""
        return any(trial.size > 1 and trial.due <= now for trial in self.parked.values())

    def any_untried(self) -> bool:
        """Whether a parked subject is known of which nothing has been tried yet."""
        return any(trial.due == 0.0 for trial in self.parked.values())

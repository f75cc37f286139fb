"""The numbers that the services run by and the verdict judges by. Short, so that a run sees many takeovers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    app: str = "chaos"
    partitions: int = 3
    lease_s: float = 4.5
    ack_wait_s: float = 2.5
    publish_timeout_s: float = 3.0
    max_attempts: int = 4
    max_starts: int = 3

    @property
    def stream(self) -> str:
        return f"jetbridge-{self.app}"

    @property
    def durables(self) -> list[str]:
        return [f"{self.app}-workers-{number}" for number in range(self.partitions)]

    @property
    def quiet_s(self) -> float:
        """Nothing moved for so long: nothing will. A takeover, a redelivery and a restart fit in several times."""
        return 5 * (self.lease_s + self.ack_wait_s) + 15


TERMS: Final = Terms()

"""Where a run has its files: logs, and the flags by which the driver talks to processes it has forked."""

from __future__ import annotations

import os
from pathlib import Path

# From now on poison is harmless.
CURED = "cured"
# A slow handler has begun; it ends when the other flag is there.
BEGUN = "begun"
GO = "go"
# From now on the saboteur counts.
ARMED = "armed"


def folder() -> Path:
    """The folder of the run this process belongs to."""
    return Path(os.environ["MATRIX_FOLDER"])


def enter(path: Path) -> None:
    """Make ``path`` the folder of this process and of all it forks."""
    path.mkdir(parents=True, exist_ok=True)
    os.environ["MATRIX_FOLDER"] = str(path)

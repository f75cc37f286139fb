"""A Django project in a temporary folder, made from the blocks of a page as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.pages import Block

TIMEOUT_S = 60.0


@dataclass(slots=True, kw_only=True)
class Shell:
    """
    Runs the commands of a page one after another, in the folder and the environment that ``cd`` and ``export`` made.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=lambda: clean_environment())

    def run(self, words: list[str], *, timeout_s: float = TIMEOUT_S, check: bool = True) -> str:
        """
        One command; returns its stdout.

        Raises:
            AssertionError: It ended with another code than 0; the text has what it printed.
        """
        match words:
            case ["cd", where]:
                self.folder = (self.folder / where).resolve()
                return ""
            case ["export", assignment]:
                name, _, value = assignment.partition("=")
                self.environment[name] = value
                return ""
        done = subprocess.run(
            program(words),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check:
            assert done.returncode == 0, (
                f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def start(self, words: list[str], log: Path) -> subprocess.Popen[bytes]:
        """A command that goes on running; its output goes to ``log``."""
        with log.open("wb") as output:
            return subprocess.Popen(
                program(words),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def write(self, block: Block) -> None:
        """Put a block where its first line says: a new file, or the end of an existing one."""
        assert block.path is not None, f"{block} names no file in its first line"
        file = self.folder / block.path
        assert file.parent.is_dir(), f"{block}: no folder {file.parent}"
        with file.open("a", encoding="utf-8") as target:
            target.write("\n\n" + block.text)


def program(words: list[str]) -> list[str]:
    """``python`` and ``django-admin`` of this environment."""
    if words[0] == "python":
        return [sys.executable, *words[1:]]
    if words[0] == "django-admin":
        return [sys.executable, "-m", "django", *words[1:]]
    return words


def clean_environment() -> dict[str, str]:
    """Ours without what would choose other settings or another broker."""
    unwanted = ("DJANGO_SETTINGS_MODULE", "NATS_URLS", "NATS_URL", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name not in unwanted}

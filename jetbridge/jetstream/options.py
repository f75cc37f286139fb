"""Where, as whom and how patiently to connect."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jetbridge.conf import Settings
from jetbridge.jetstream import embedded


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """
    Where and as whom to connect.

    Args:
        urls: Servers of one cluster, tried in random order. A user part may be percent-encoded.
        name: Shown by the server's monitoring.
        inbox_prefix: Of every reply subject; the user needs ``subscribe: <inbox_prefix>.>``.
        tcp_timeout_s: The kernel gives a silent peer up after this.
        ping_interval_s: Two unanswered pings in a row and the connection is lost.
        find_urls: Asked before each attempt where the address may change (embedded server).
        tls: Own certificate authority or client certificate.
        credentials: Path of a ``.creds`` file.
    """

    urls: tuple[str, ...]
    name: str
    inbox_prefix: str
    connect_timeout_s: float = 5.0
    tcp_timeout_s: float = 10.0
    ping_interval_s: float = 10.0
    find_urls: Callable[[], tuple[str, ...]] | None = None
    tls: ssl.SSLContext | None = None
    credentials: Path | None = None


def options_for(settings: Settings, role: str) -> ConnectionOptions:
    """
    Options of a role (``relay``, ``worker``, ``admin``).

    With ``NATS_URLS="embedded"`` the port file is read at each attempt: a server that is not there yet, or came
    back on another port, is found; until then ``Connection.last_error`` holds the remedy.
    """
    name = f"jetbridge/{settings.app_name}/{role}/{socket.gethostname()}/{os.getpid()}"
    prefix = settings.inbox_prefix_for(role)
    if not settings.embedded:
        return ConnectionOptions(urls=settings.nats_urls, name=name, inbox_prefix=prefix)
    directory = settings.embedded_dir
    return ConnectionOptions(
        urls=(), name=name, inbox_prefix=prefix, find_urls=lambda: (embedded.read_url(directory),)
    )

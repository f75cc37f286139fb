"""A TCP proxy between a process and a server, to slow a link down, stall it or cut it while the server lives."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65_536
END_S = 5.0


class Proxy:
    """
    Forwards ``port`` to ``(host, to_port)`` until the end of the ``with`` block.

    Attributes:
        delay_s: How long each chunk is held, in either direction.
    """

    def __init__(self, to_port: int, *, host: str = "127.0.0.1") -> None:
        self.delay_s = 0.0
        self._address = (host, to_port)
        self._flows, self._ended = threading.Event(), threading.Event()
        self._flows.set()
        self._stranded: list[threading.Event] = []
        self._links = set[socket.socket]()
        self._lock = threading.Lock()
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for flows in (*self._stranded, self._flows):
            flows.set()
        self._accepting.join(END_S)

    def stall(self) -> None:
        """Nothing arrives any more and nobody is told, as with a dead router. New connections meet the same."""
        self._flows.clear()

    def strand(self) -> None:
        """Whoever is connected now hears nothing any more, for ever, and is not told. New connections work."""
        stranded, self._flows = self._flows, threading.Event()
        stranded.clear()
        self._stranded.append(stranded)
        self._flows.set()

    def resume(self) -> None:
        """What was held arrives now."""
        self._flows.set()

    def cut(self) -> None:
        """Close every connection; new ones work."""
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._address, END_S)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for link in (near, far):
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._links |= {near, far}
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, target, self._flows), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, flows: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                self._ended.wait(self.delay_s)
                flows.wait()
                target.sendall(data)
        for link in (source, target):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

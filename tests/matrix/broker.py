"""
A few calls to nats-server over one plain socket, without a thread or an event loop.

The driver of a run forks between two of them, and asks often: a client library would cost more than the run.
"""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlsplit

TIMEOUT_S = 10.0


class Broker:
    """
    Args:
        url: ``nats://host:port`` of the server.
        app: Whose stream and durable this is about.
    """

    def __init__(self, url: str, app: str) -> None:
        parts = urlsplit(url)
        self.stream = f"jetbridge-{app}"
        self.durable = f"{app}-workers"
        self._subject = f"{app}.sync.{app}"
        self._socket = socket.create_connection(
            (parts.hostname or "127.0.0.1", parts.port or 4222), TIMEOUT_S
        )
        self._file = self._socket.makefile("rb")
        self._numbers = itertools.count(1)
        self._line()  # INFO
        self._write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}')
        self._inbox = f"_INBOX_matrix_{app}"
        self._write(f"SUB {self._inbox}.* 1".encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    # --- questions -------------------------------------------------------------------------------

    def is_provisioned(self) -> bool:
        return "error" not in self.api(f"CONSUMER.INFO.{self.stream}.{self.durable}")

    def unsettled(self) -> tuple[int, int]:
        """Messages of the durable that were never delivered, and those that wait for their ack."""
        info = self.api(f"CONSUMER.INFO.{self.stream}.{self.durable}")
        return int(info.get("num_pending", 0)), int(info.get("num_ack_pending", 0))

    def left(self) -> int:
        """Messages in the stream that are no notices of dead letters."""
        answer = self.api(f"STREAM.INFO.{self.stream}", {"subjects_filter": self._subject})
        subjects = answer.get("state", {}).get("subjects") or {}
        return int(sum(subjects.values()))

    # --- acts ------------------------------------------------------------------------------------

    def limit_message_size(self, size: int) -> None:
        """-1 for no limit."""
        config = self.api(f"STREAM.INFO.{self.stream}")["config"]
        answer = self.api(f"STREAM.UPDATE.{self.stream}", {**config, "max_msg_size": size})
        assert "error" not in answer, answer

    def take_unacknowledged(self, count: int) -> int:
        """What a consumer does that takes messages and is powered off; returns how many it got."""
        reply = self._reply()
        body = json.dumps({"batch": count, "no_wait": True}).encode()
        self._publish(f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.durable}", reply, body)
        for got in range(count):
            if not self._answer(reply)[0]:
                return got  # a status: nothing more is there
        return count

    def delete(self) -> None:
        self.api(f"STREAM.DELETE.{self.stream}")

    def api(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One call of the JetStream API; an ``error`` in the answer is the caller's to look at."""
        reply = self._reply()
        self._publish(f"$JS.API.{subject}", reply, json.dumps(body).encode() if body is not None else b"")
        answer: dict[str, Any] = json.loads(self._answer(reply)[1])
        return answer

    # --- the protocol ----------------------------------------------------------------------------

    def _reply(self) -> str:
        return f"{self._inbox}.{next(self._numbers)}"

    def _write(self, line: bytes) -> None:
        self._socket.sendall(line + b"\r\n")

    def _publish(self, subject: str, reply: str, body: bytes) -> None:
        self._write(f"PUB {subject} {reply} {len(body)}\r\n".encode() + body)

    def _line(self) -> bytes:
        line = self._file.readline()
        if not line:
            raise ConnectionError("nats-server has closed the connection.")
        return line

    def _answer(self, reply: str) -> tuple[bool, bytes]:
        """Of the next message to ``reply``: whether it is a stored one or an answer (a status is not), and its body."""
        while True:
            verb, *rest = self._line().split()
            if verb == b"PING":
                self._write(b"PONG")
            if verb not in (b"MSG", b"HMSG"):
                continue
            data = self._file.read(int(rest[-1]) + 2)[:-2]
            head = int(rest[-2]) if verb == b"HMSG" else 0
            status = data[:head].startswith(b"NATS/1.0 ")
            # A delivery has the stream's subject, and was still sent to our inbox: it counts for what is waited for.
            if rest[0].decode() == reply or not rest[0].startswith(self._inbox.encode()):
                return not status, data[head:]

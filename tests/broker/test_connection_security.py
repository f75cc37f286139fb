"""Permissions, credentials and TLS of the connection."""

from __future__ import annotations

import asyncio
import time

import pytest

from jetbridge.jetstream.connection import Connection, PermissionDenied
from jetbridge.jetstream.logs import redact, secrets_of
from jetbridge.jetstream.publisher import Stored, WindowPublisher
from tests.broker.lab import connected, make_stream, message, options, stored
from tests.waiting import aeventually

# --- permissions -----------------------------------------------------------------------------------

USERS = """
authorization { users: [
  { user: admin, password: pw }
  { user: relay, password: pw, permissions: { publish: ["s.>"], subscribe: ["%s.>"] } }
] }
"""


def test_a_wrong_inbox_permission_is_found_before_anything_is_sent(make_nats_server, caplog):
    """
    Otherwise every message is stored while its sender sees a time-out, and sends it again for ever. Each attempt has
    another inbox, and is no line of its own for that.
    """

    async def scenario() -> None:
        server = make_nats_server(USERS % "_INBOX_other")
        relay_url = server.url.replace("//", "//relay:pw@")
        async with connected(server.url.replace("//", "//admin:pw@")) as admin:
            await make_stream(admin, "s")
            connection = Connection(options(relay_url))
            await connection.start()
            started = time.monotonic()
            assert not await connection.ready(30)
            assert time.monotonic() - started < 3
            assert "_INBOX_t_relay.>" in connection.denied
            assert connection.last_error == connection.denied
            assert not connection.is_connected
            results = await WindowPublisher(connection).publish([message("s.a")], deadline_s=1)
            assert [type(result).__name__ for result in results] == ["NotSent"]
            assert await stored(admin, "s") == 0
            await aeventually(lambda: server.log.count("Subscription Violation") >= 3, timeout_s=10)
            assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 0
            assert caplog.text.count("Cannot work with these NATS permissions") == 1

            server.reload(USERS % "_INBOX_t_relay")
            await aeventually(lambda: connection.is_connected, timeout_s=10)
            assert (connection.denied, await connection.ready(1)) == ("", True)
            results = await WindowPublisher(connection).publish([message("s.a")], deadline_s=5)
            assert isinstance(results[0], Stored)
            await connection.close()

    asyncio.run(scenario())


def test_a_denied_call_fails_at_once_with_its_subject(make_nats_server):
    """The server reports it beside the call; nats-py lets the call time out."""

    async def scenario() -> None:
        server = make_nats_server(USERS % "_INBOX_t_relay")
        async with connected(server.url.replace("//", "//relay:pw@")) as connection:
            started = time.monotonic()
            with pytest.raises(PermissionDenied, match=r"\$JS.API.STREAM.INFO.Orders") as caught:
                await connection.api("STREAM.INFO.Orders", timeout_s=10)
            assert time.monotonic() - started < 1
            assert caught.value.subject == "$JS.API.STREAM.INFO.Orders"
            assert connection.is_connected

    asyncio.run(scenario())


# --- secrets and TLS -------------------------------------------------------------------------------


def test_tls_is_never_spoken_in_clear(nats_server):
    """nats-py connects in clear when the server, or someone between, does not ask for TLS, and sends the password."""
    received: list[bytes] = []

    async def scenario() -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(
                b'INFO {"server_id":"x","version":"2.15.1","headers":true,"max_payload":1048576}\r\n'
            )
            received.append(await reader.read(1000))
            writer.close()

        listener = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        connection = Connection(options(f"tls://user:topsecret@127.0.0.1:{port}"))
        await connection.start()
        assert not await connection.ready(0.5)
        assert "unencrypted" in connection.last_error
        await connection.close()
        listener.close()

    asyncio.run(scenario())
    assert received
    assert set(received) == {b""}


def test_a_percent_encoded_password_works(make_nats_server):
    async def scenario() -> None:
        server = make_nats_server('authorization { users: [ { user: relay, password: "p@ss/w:rd" } ] }')
        async with connected(server.url.replace("//", "//relay:p%40ss%2Fw%3Ard@")) as connection:
            assert connection.is_connected

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("nats://u:p@h:1", "nats://***@h:1"),
        ("cannot reach nats://u:p@ss@h:1, tls://t@h:2.", "cannot reach nats://***@h:1, tls://***@h:2."),
        ("nats://h:1 is fine", "nats://h:1 is fine"),
    ],
)
def test_credentials_never_leave_in_a_text(text, clean):
    assert redact(text) == clean


def test_a_bare_password_is_hidden_as_well():
    secrets = secrets_of(["nats://u:to%40psecret@h:1", "nats://tokentoken@h:2", "nats://h:3"])
    assert redact("said to@psecret and to%40psecret and tokentoken", secrets) == "said *** and *** and ***"

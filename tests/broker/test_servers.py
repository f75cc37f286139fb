"""The nats-server fixture itself: same port and store over restarts, and no server without a parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import nats

from tests.servers import NatsServer
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]


async def put(url: str, body: bytes) -> int:
    client = await nats.connect(url)
    try:
        await client.jetstream().add_stream(name="kept", subjects=["kept.>"])
        return (await client.jetstream().publish("kept.one", body)).seq
    finally:
        await client.close()


async def read(url: str, sequence: int) -> bytes | None:
    client = await nats.connect(url)
    try:
        return (await client.jetstream().get_msg("kept", sequence)).data
    finally:
        await client.close()


def test_a_restart_keeps_port_and_store(make_nats_server):
    server = make_nats_server()
    url = server.url
    sequence = asyncio.run(put(url, b"stays"))

    server.restart()
    assert asyncio.run(read(server.url, sequence)) == b"stays"
    server.restart(hard=True)

    assert server.url == url
    assert asyncio.run(read(url, sequence)) == b"stays"


def test_a_frozen_server_can_be_woken_and_stopped(make_nats_server):
    server = make_nats_server()
    server.sigstop()
    server.sigcont()
    asyncio.run(put(server.url, b"x"))
    server.sigstop()

    server.stop()

    assert not server.running


def test_extra_configuration_reaches_the_server(make_nats_server):
    server = make_nats_server("debug: true\nmax_payload: 2048")

    async def limit() -> int:
        client = await nats.connect(server.url)
        try:
            return client.max_payload
        finally:
            await client.close()

    assert asyncio.run(limit()) == 2048
    assert "[DBG]" in server.log


def test_the_shared_server_runs(nats_server):
    assert isinstance(nats_server, NatsServer)
    assert nats_server.running


def test_the_server_dies_with_a_killed_parent(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from tests.servers import NatsServer;"
        "print(NatsServer(Path(sys.argv[1])).start().pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "nats")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)

    parent.send_signal(signal.SIGKILL)
    parent.communicate()

    eventually(lambda: not alive(child), what="nats-server has ended")


def alive(pid: int) -> bool:
    """A zombie nobody has waited for yet does not live."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")

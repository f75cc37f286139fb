"""Fixtures of the tests in which an event goes the whole way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import Processes
from tests.servers import NatsServer
from tests.worlds import World, no_handlers


@pytest.fixture
def handlers() -> Iterator[None]:
    """No handlers but the test's own."""
    with no_handlers():
        yield


@pytest.fixture
def world(transactional_db: None, nats_server: NatsServer, handlers: None) -> World:
    """A shop and a billing service on the shared server, provisioned."""
    return World(nats_server.url).provision()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts real relays and consumers, and ends those that are left."""
    made = Processes(tmp_path / "processes")
    yield made
    made.end()

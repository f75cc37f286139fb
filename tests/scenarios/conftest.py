"""Fixtures of the tests in which an event goes the whole way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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

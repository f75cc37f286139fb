"""Fixtures of the tests that talk to a broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jetbridge.jetstream.embedded import EmbeddedServer
from tests.broker.provisioning import Pair, binaries


@pytest.fixture(scope="session", params=binaries(), ids=lambda path: path.name)
def any_nats_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of each version at hand, shared by the run: use names of your own."""
    with EmbeddedServer(tmp_path_factory.mktemp("nats"), binary=request.param) as server:
        yield server.url


@pytest.fixture
def pair(any_nats_url: str) -> Pair:
    """Two services that face each other, on a server of each version."""
    return Pair(any_nats_url)

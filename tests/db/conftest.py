"""Fixtures of the tests that need a database and no broker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.worlds import no_handlers

SHOP: dict[str, Any] = {"APP_NAME": "shop", "DESTINATIONS": ["billing"], "SOURCES": ["billing"]}


@pytest.fixture
def shop(settings: Any) -> Any:
    """This process is the app ``shop``, which publishes to ``billing`` alone."""
    settings.JETBRIDGE = dict(SHOP)
    return settings


@pytest.fixture
def handlers() -> Iterator[None]:
    """No handlers but the test's own."""
    with no_handlers():
        yield

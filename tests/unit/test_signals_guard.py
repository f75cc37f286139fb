"""Receivers cannot stop whoever tells them."""

from __future__ import annotations

import asyncio

import pytest

from jetbridge import signals


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, asyncio.CancelledError])
def test_what_a_receiver_raises_goes_no_further(kind, caplog):
    """``send_robust`` alone lets a ``sys.exit()`` through, and it would end a relay in the middle of a page."""

    def receiver(**_: object) -> None:
        raise kind("out of order")

    signals.outbox_settled.connect(receiver)
    try:
        signals.send(signals.outbox_settled, using="default", ids=[1])
    finally:
        signals.outbox_settled.disconnect(receiver)

    assert "A signal receiver" in caplog.text

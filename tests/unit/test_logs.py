"""A log handler of the project cannot stop anything of ours."""

from __future__ import annotations

import logging

import pytest

from jetbridge.runtime.logs import guard_loggers


class Broken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("the log server is away")


@pytest.fixture
def broken():
    handler = Broken()
    root = logging.getLogger()
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)


def test_a_handler_that_raises_is_heard_of_on_stderr_only(broken, capsys):
    """As logging does with the faults of its own handlers. Red without guard_loggers()."""
    ours = logging.getLogger("jetbridge.consumer")
    guard_loggers()
    guard_loggers()

    ours.error("a line")

    assert "the log server is away" in capsys.readouterr().err


def test_other_loggers_are_left_alone(broken):
    guard_loggers()

    with pytest.raises(RuntimeError):
        logging.getLogger("shop").error("a line")

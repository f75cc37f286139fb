"""Finding handlers: whose errors are fatal, and where."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.test import override_settings

from jetbridge import autodiscovery
from jetbridge.registry import registry
from tests.worlds import no_handlers


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``app(name, source)`` installs an app; with ``source=None`` it has no handlers module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    installed: list[str] = []
    overrides: list[override_settings] = []

    def install(name: str, source: str | None, module: str = "handlers") -> None:
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").touch()
        if source is not None:
            (package / f"{module}.py").write_text(source)
        installed.append(name)
        override = override_settings(INSTALLED_APPS=["jetbridge", *installed])
        # ready() of the new set of apps discovers too; here we look at our own calls.
        with monkeypatch.context() as quiet:
            quiet.setattr(autodiscovery, "discover_tolerantly", lambda: None)
            override.enable()
        overrides.append(override)

    with no_handlers():
        yield install
        for override in reversed(overrides):
            override.disable()
    for name in [name for name in sys.modules if name.split(".")[0] in installed]:
        del sys.modules[name]


HANDLER = "import jetbridge\n\n@jetbridge.handler('a.b')\ndef work(event): ...\n"


def names() -> list[str]:
    return [handler.name for handler in registry.all()]


def test_handlers_of_every_app_are_found_under_their_label(app):
    app("found_one", HANDLER)
    app("found_none", None)
    app("found_two", HANDLER)

    autodiscovery.discover()

    assert names() == ["found_one.work", "found_two.work"]


def test_the_module_can_have_another_name(app):
    app("renamed", HANDLER, module="events")

    with override_settings(JETBRIDGE={"APP_NAME": "orders", "HANDLERS_MODULE": "events"}):
        autodiscovery.discover()

    assert names() == ["renamed.work"]


@pytest.mark.parametrize("source", ["import jetbridge\n1 / 0\n", "1 / 0\n"])
def test_a_consumer_tolerates_no_broken_module(app, source):
    """An event whose handler is missing would die as unknown."""
    app("broken_for_consumer", source)

    with pytest.raises(ZeroDivisionError):
        autodiscovery.discover()


def test_a_web_process_tolerates_modules_that_are_nobodys_business(app, caplog):
    app("foreign", "1 / 0\n")
    app("ours", HANDLER)

    with caplog.at_level(logging.WARNING, "jetbridge"):
        autodiscovery.discover_tolerantly()

    assert names() == ["ours.work"]
    assert "foreign.handlers" in caplog.text


def test_a_web_process_fails_on_broken_modules_that_mention_jetbridge(app):
    app("broken_ours", "import jetbridge\n1 / 0\n")

    with pytest.raises(ZeroDivisionError):
        autodiscovery.discover_tolerantly()


def test_faults_of_the_setting_are_left_to_the_checks(app):
    app("waiting", HANDLER)

    with override_settings(JETBRIDGE=None):
        autodiscovery.discover_tolerantly()

    assert names() == []

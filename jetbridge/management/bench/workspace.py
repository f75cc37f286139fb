"""
A place to measure in that touches nothing of the project: an app, a stream and a table that nobody else knows.

The project's own settings hold but for names, so that PAGE_SIZE or CONCURRENCY are measured as they are set.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from jetbridge import conf, topology
from jetbridge.conf import Settings
from jetbridge.errors import JetbridgeError
from jetbridge.management.bench import store, streams
from jetbridge.management.bench.plan import Plan
from jetbridge.registry import Handler, registry

logger = logging.getLogger("jetbridge.bench")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """
    Attributes:
        settings: Of the benchmark's own app, in force while the workspace is open.
        rows: The table of the user's own writes.
        traces: What has come into jetbridge's tables.
    """

    plan: Plan
    settings: Settings
    rows: store.Rows
    traces: store.Traces
    server: str

    def fresh(self) -> None:
        """Begin a repetition: an empty stream without memory of message ids, empty tables, tidy indexes."""
        self.forget()
        asyncio.run(streams.fresh(self.settings))

    def forget(self) -> None:
        """Empty the tables only."""
        self.traces.remove()
        self.rows.clear()
        self.tidy()

    def tidy(self) -> None:
        """Let the database do at once what it would do within a minute."""
        store.tidy(using=self.plan.using)


@contextmanager
def opened(plan: Plan, *, yes: bool, keep: bool) -> Iterator[Workspace]:
    """
    Make the workspace, and take everything away afterwards unless ``keep``.

    Args:
        yes: Measure although the outbox is not empty; what lies there is set aside and put back.

    Raises:
        ImproperlyConfigured: Something is in the outbox, or a relay is at work. Nothing was done.
        BrokerUnreachable: The text says where there is no server.
    """
    _check_outbox(plan.using, yes=yes)
    app = f"bench-{secrets.token_hex(4)}"
    with ExitStack() as stack:
        settings = stack.enter_context(_own_app(app, plan.using))
        server = asyncio.run(streams.server_version(settings))
        stack.enter_context(_others_aside(plan.using, yes=yes))
        space = Workspace(
            plan=plan,
            settings=settings,
            rows=store.Rows(f"jetbridge_{app.replace('-', '_')}", using=plan.using),
            traces=store.Traces(
                app=app,
                handler="jetbridge.bench",
                archived_before=store.last_archived(using=plan.using),
                using=plan.using,
            ),
            server=server,
        )
        space.rows.create_table()
        if not keep:
            stack.callback(_remove, space)
        yield space


def _check_outbox(using: str, *, yes: bool) -> None:
    if owner := store.relay_at_work(using=using):
        raise ImproperlyConfigured(
            f"The relay {owner} works on database {using!r} and would take the benchmark's events. "
            f"Stop it, or if it was killed wait until its leases run out."
        )
    found = store.waiting(using=using)
    if (found.rows or found.scheduled) and not yes:
        raise ImproperlyConfigured(
            f"The outbox of database {using!r} is not empty: {found.rows} rows, {found.scheduled} scheduled. "
            f"Measure on a database without traffic, or give --yes to set them aside meanwhile."
        )


@contextmanager
def _others_aside(using: str, *, yes: bool) -> Iterator[None]:
    if not yes:
        yield
        return
    store.set_aside(using=using)
    try:
        yield
    finally:
        store.put_back(using=using)


@contextmanager
def _own_app(app: str, using: str) -> Iterator[Settings]:
    """``JETBRIDGE`` with names of the benchmark's own: it sends to itself."""
    before = django_settings.JETBRIDGE
    own = {
        key: value
        for key, value in before.items()
        if key not in ("STREAM", "IGNORED_EVENTS", "REQUIRE_ATOMIC")
    }
    own |= {"APP_NAME": app, "DESTINATIONS": [app], "SOURCES": [app], "DATABASES": [using]}
    _put(own)
    try:
        yield conf.get_settings()
    finally:
        _put(before)


def _put(value: object) -> None:
    """Change the setting the way Django's own tools do, so that whatever caches it hears of it."""
    django_settings.JETBRIDGE = value
    setting_changed.send(sender=Workspace, setting="JETBRIDGE", value=value, enter=True)


def _remove(space: Workspace) -> None:
    """Each part on its own: without a broker the tables are still cleaned."""
    try:
        asyncio.run(streams.remove(space.settings))
    except JetbridgeError as error:
        logger.error("The stream %s is left behind: %s", space.settings.stream, error)
    space.traces.remove()
    space.rows.drop_table()


@contextmanager
def only_handler(handler: Handler) -> Iterator[None]:
    """Register ``handler`` and take away those of the project that would also want the benchmark's events."""
    source = handler.source or ""
    assert topology.check_token(source, "source")
    others = [other for pattern in handler.patterns for other in registry.matching(pattern, source)]
    for other in others:
        registry.remove(other.name)
    registry.add(handler)
    try:
        yield
    finally:
        registry.remove(handler.name)
        for other in others:
            registry.add(other)

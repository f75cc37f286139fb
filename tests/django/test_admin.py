"""The admin shows every table, lets nobody change one, and does no work that grows with a table."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.db.models import Model
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone, translation

import jetbridge
from jetbridge import models
from jetbridge.admin import ADMINS, COUNTED, CappedPaginator
from jetbridge.leases import store as leases

pytestmark = pytest.mark.django_db
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def client() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("ana", password="x"))
    return client


def url(model: type[Model], page: str, *arguments: object) -> str:
    return reverse(f"admin:jetbridge_{model._meta.model_name}_{page}", args=arguments)


def rows() -> dict[type[Model], Any]:
    """One row of each table, with what a foreign service may put into it."""
    content: dict[str, Any] = {
        "event_id": "e-1",
        "kind": "event",
        "event_type": EVIL,
        "destination": "billing",
        "subject": "orders.sync.billing",
        "bucket": 1,
        "headers": {"x": EVIL},
        "body": f'{{"payload":{{"name":"{EVIL}"}}}}'.encode(),
    }
    message: dict[str, Any] = {
        "handler": EVIL,
        "source": "orders",
        "event_id": "e-1",
        "event_type": EVIL,
        "stream": "s",
        "sequence": 1,
    }
    whole = {**message, "subject": "s", "headers": {"x": EVIL}, "body": b"\xff\x00" + EVIL.encode()}
    leases.ensure(["relay/0"], using="default")
    leases.beat("w", role="relay", host=EVIL, pid=1, version="1", info={"x": EVIL}, using="default")
    return {
        models.Outbox: models.Outbox.objects.create(**content),
        models.Scheduled: models.Scheduled.objects.create(**content, due_at=timezone.now()),
        models.Archive: models.Archive.objects.create(
            **content, id=1, stream="s", sequence=1, duplicate=False
        ),
        models.Inbox: models.Inbox.objects.create(**message, state="dead", error=EVIL),
        models.Deferred: models.Deferred.objects.create(**whole, kind="redrive"),
        models.DeadLetter: models.DeadLetter.objects.create(
            **whole, reason="r", attempts=1, traceback=EVIL, edited_body=b"[1]"
        ),
        models.Hold: models.Hold.objects.create(handler="h", source="s", key=EVIL, by="x"),
        models.Lease: models.Lease.objects.get(),
        models.Worker: models.Worker.objects.get(),
    }


def test_every_model_is_there() -> None:
    from django.apps import apps

    assert set(ADMINS) == set(apps.get_app_config("jetbridge").get_models())
    assert all(admin.site.is_registered(model) for model in ADMINS)


@pytest.mark.parametrize("model", ADMINS, ids=lambda model: model.__name__)
def test_rows_are_shown_escaped_and_cannot_be_changed(model: type[Model], client: Client) -> None:
    row = rows()[model]

    listed = client.get(url(model, "changelist"))
    shown = client.get(url(model, "change", row.pk))

    for response in (listed, shown):
        assert response.status_code == 200
        assert EVIL not in response.content.decode()
    assert b'name="_save"' not in shown.content
    assert b"deletelink" not in shown.content
    assert client.get(url(model, "add")).status_code == 403
    assert client.get(url(model, "delete", row.pk)).status_code == 403
    assert client.post(url(model, "change", row.pk), {"key": "changed"}).status_code == 403
    assert client.post(
        url(model, "changelist"), {"action": "delete_selected", "_selected_action": row.pk}
    ).status_code in (302, 403, 200)
    assert model._default_manager.filter(pk=row.pk).exists()


def test_bodies_are_readable(client: Client) -> None:
    found = rows()

    event = client.get(url(models.Outbox, "change", found[models.Outbox].pk)).content.decode()
    letter = client.get(url(models.DeadLetter, "change", found[models.DeadLetter].pk)).content.decode()

    assert "&quot;payload&quot;: {\n    &quot;name&quot;: &quot;&lt;script&gt;" in event
    assert "\\xff\x00&lt;script&gt;" in letter or "\\xff�&lt;script&gt;" in letter
    assert "[\n  1\n]" in letter


@pytest.mark.parametrize("model", ADMINS, ids=lambda model: model.__name__)
def test_a_list_loads_no_body_and_counts_no_table(model: type[Model], client: Client) -> None:
    rows()

    with CaptureQueriesContext(connection) as queries:
        client.get(url(model, "changelist"))

    sql = [one["sql"] for one in queries if f'FROM "{model._meta.db_table}"' in one["sql"]]
    assert sql
    for statement in sql:
        assert "DISTINCT" not in statement
        for column in ("body", "headers", "traceback"):
            assert f'"{column}"' not in statement
        if "COUNT(" in statement:
            assert f"LIMIT {COUNTED}" in statement


def test_events_are_found_by_their_whole_id_only(client: Client) -> None:
    rows()

    def found(query: str) -> int:
        response = client.get(url(models.Outbox, "changelist"), {"q": query})
        return int(response.context["cl"].result_count)

    assert (found("e-1"), found("e-"), found("E-1")) == (1, 0, 0)


def test_an_event_links_to_its_other_rows(client: Client) -> None:
    found = rows()

    page = client.get(url(models.DeadLetter, "change", found[models.DeadLetter].pk)).content.decode()

    assert f'href="{url(models.Inbox, "changelist")}?q=e-1"' in page
    assert f'href="{url(models.Archive, "changelist")}?q=e-1"' in page


@pytest.mark.parametrize(
    ("model", "query"),
    [
        (models.Outbox, {"state__exact": "ready", "kind__exact": "event"}),
        (models.Inbox, {"state__exact": "dead"}),
        (models.DeadLetter, {"state__exact": "open"}),
        (models.Deferred, {"kind__exact": "redrive"}),
    ],
)
def test_filters_use_the_known_choices(model: type[Model], query: dict[str, str], client: Client) -> None:
    rows()

    assert client.get(url(model, "changelist"), query).context["cl"].result_count == 1


def test_a_person_needs_the_permission_to_view() -> None:
    user = User.objects.create_user("bo", password="x", is_staff=True)
    client = Client()
    client.force_login(user)
    assert client.get(url(models.Outbox, "changelist")).status_code == 403

    user.user_permissions.add(Permission.objects.get(codename="view_outbox"))
    assert client.get(url(models.Outbox, "changelist")).status_code == 200
    assert client.get(url(models.Inbox, "changelist")).status_code == 403


def test_the_paginator_stops_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetbridge.admin.COUNTED", 3)
    for number in range(5):
        jetbridge.publish("order.placed", {"id": number})

    assert CappedPaginator(models.Outbox.objects.order_by("id"), 2).count == 3


def test_labels_are_lazy_so_that_they_can_be_translated() -> None:
    from django.utils.functional import Promise

    for model, model_admin in ADMINS.items():
        assert isinstance(model._meta.verbose_name, Promise)
        for name in ("headers_shown", "body_shown", "same_event"):
            shown = getattr(model_admin, name, None)
            assert shown is None or isinstance(shown.short_description, Promise)
    with translation.override("de"):
        assert str(models.Outbox._meta.verbose_name)

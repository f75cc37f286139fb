"""
Every table in Django's admin, to read: rows change by what relays, consumers and commands do, never by hand.

Lists stay cheap at any size: no total count, no body, pages found by primary key, filters over known
choices only. For an admin site of your own call :func:`register` with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from django.contrib import admin
from django.core.exceptions import ImproperlyConfigured
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from jetbridge import conf, models

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
    _Paginator = Paginator[Any]
else:
    _ModelAdmin = admin.ModelAdmin
    _Paginator = Paginator

COUNTED: Final = 10_000
MAX_SHOWN_CHARS: Final = 100_000
_RELATED: Final = ("outbox", "scheduled", "archive", "inbox", "deferred", "deadletter")


class CappedPaginator(_Paginator):
    """Counts at most 10,000 rows: older ones are found by their event id, not by leafing."""

    @cached_property
    def count(self) -> int:
        rows = self.object_list
        if isinstance(rows, QuerySet):
            return int(rows.order_by()[:COUNTED].count())
        return len(rows)


class ReadOnlyAdmin(_ModelAdmin):
    """
    A table that nobody edits.

    Attributes:
        large: Columns that lists do not load.
    """

    large: ClassVar[tuple[str, ...]] = ()
    paginator = CappedPaginator
    show_full_result_count = False
    list_per_page = 50
    actions = None
    ordering: ClassVar[tuple[str, ...]] = ("-pk",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).using(_alias()).defer(*self.large)


class EventAdmin(ReadOnlyAdmin):
    """A table of events: found by their id, with headers and body to read."""

    search_fields = ("event_id__exact",)
    search_help_text = _("An event id, complete: other searches would read the whole table.")
    large: ClassVar[tuple[str, ...]] = ("headers", "body")

    @admin.display(description=_("headers"))
    def headers_shown(self, row: Any) -> SafeString:
        return _pre(_pretty(row.headers))

    @admin.display(description=_("body"))
    def body_shown(self, row: Any) -> SafeString:
        return _pre(_body(row.body))

    @admin.display(description=_("same event"))
    def same_event(self, row: Any) -> SafeString:
        """Links to this event in the other tables."""
        links = []
        for name in _RELATED:
            try:
                url = reverse(f"admin:jetbridge_{name}_changelist", current_app=self.admin_site.name)
            except NoReverseMatch:
                continue
            label = self.opts.apps.get_model("jetbridge", name)._meta.verbose_name_plural
            links.append((f"{url}?{urlencode({'q': row.event_id})}", label))
        return format_html_join(" · ", '<a href="{}">{}</a>', links)


CONTENT: Final = (
    "event_id",
    "event_type",
    "kind",
    "destination",
    "subject",
    "key",
    "message_id",
    "bucket",
    "causation_id",
    "correlation_id",
    "created_at",
    "same_event",
    "headers_shown",
    "body_shown",
)


class OutboxAdmin(EventAdmin):
    list_display = ("id", "state", "event_type", "destination", "key", "event_id", "error_code", "created_at")
    list_filter = ("state", "kind")
    fields = ("id", "state", "error_code", "error", "attempts", "state_at", *CONTENT)


class ScheduledAdmin(EventAdmin):
    list_display = ("id", "due_at", "event_type", "destination", "key", "event_id", "created_at")
    list_filter = ("kind",)
    ordering = ("due_at", "id")
    fields = ("id", "due_at", "name", *CONTENT)


class ArchiveAdmin(EventAdmin):
    list_display = ("id", "event_type", "destination", "key", "event_id", "stream", "sequence", "sent_at")
    list_filter = ("kind",)
    fields = ("id", "stream", "stream_created_at", "sequence", "duplicate", "sent_at", *CONTENT)


class InboxAdmin(EventAdmin):
    list_display = ("id", "state", "handler", "event_type", "source", "event_id", "attempts", "received_at")
    list_filter = ("state",)
    large = ("error",)
    fields = (
        "id",
        "state",
        "handler",
        "source",
        "event_id",
        "event_type",
        "key",
        "attempts",
        "starts",
        "generation",
        "duplicates",
        "stream",
        "sequence",
        "received_at",
        "finished_at",
        "next_attempt_at",
        "claimed_by",
        "claim_epoch",
        "claim_expires_at",
        "error_class",
        "error",
        "same_event",
    )


class DeferredAdmin(EventAdmin):
    list_display = ("id", "kind", "due_at", "handler", "event_type", "source", "key", "event_id")
    list_filter = ("kind",)
    fields = (
        "id",
        "kind",
        "due_at",
        "attempts",
        "handler",
        "source",
        "event_id",
        "event_type",
        "key",
        "subject",
        "stream",
        "sequence",
        "created_at",
        "same_event",
        "headers_shown",
        "body_shown",
    )


class DeadLetterAdmin(EventAdmin):
    list_display = (
        "id",
        "state",
        "handler",
        "event_type",
        "source",
        "event_id",
        "reason",
        "error_class",
        "redrives",
        "created_at",
    )
    list_filter = ("state",)
    large = ("headers", "body", "edited_body", "error", "traceback", "note")
    fields = (
        "id",
        "state",
        "handler",
        "source",
        "event_id",
        "event_type",
        "key",
        "reason",
        "error_class",
        "error",
        "attempts",
        "starts",
        "redrives",
        "resolved_at",
        "resolved_by",
        "note",
        "subject",
        "stream",
        "sequence",
        "occurred_at",
        "trace_id",
        "fingerprint",
        "created_at",
        "same_event",
        "headers_shown",
        "body_shown",
        "edited_body_shown",
        "traceback_shown",
    )

    @admin.display(description=_("edited body"))
    def edited_body_shown(self, row: models.DeadLetter) -> SafeString | str:
        return "-" if row.edited_body is None else _pre(_body(row.edited_body))

    @admin.display(description=_("traceback"))
    def traceback_shown(self, row: models.DeadLetter) -> SafeString:
        return _pre(row.traceback)


class HoldAdmin(ReadOnlyAdmin):
    list_display = ("id", "handler", "source", "key", "by", "until")
    fields = ("id", "handler", "source", "key", "by", "reason", "until")


class LeaseAdmin(ReadOnlyAdmin):
    list_display = ("name", "owner", "epoch", "expires_at")
    ordering = ("name",)
    fields = list_display


class WorkerAdmin(ReadOnlyAdmin):
    list_display = ("id", "role", "host", "pid", "version", "beat_at")
    fields = (*list_display, "info_shown")

    @admin.display(description=_("info"))
    def info_shown(self, row: models.Worker) -> SafeString:
        return _pre(_pretty(row.info))


ADMINS: Final[Mapping[type[Model], type[ReadOnlyAdmin]]] = {
    models.Outbox: OutboxAdmin,
    models.Scheduled: ScheduledAdmin,
    models.Archive: ArchiveAdmin,
    models.Inbox: InboxAdmin,
    models.Deferred: DeferredAdmin,
    models.DeadLetter: DeadLetterAdmin,
    models.Hold: HoldAdmin,
    models.Lease: LeaseAdmin,
    models.Worker: WorkerAdmin,
}


def register(site: admin.AdminSite) -> None:
    """Show every table on ``site``."""
    for model, model_admin in ADMINS.items():
        site.register(model, model_admin)


def _alias() -> str | None:
    """Where jetbridge's tables are; what the router says where the settings have faults (the checks name them)."""
    try:
        return conf.get_settings().databases[0]
    except ImproperlyConfigured:
        return None


def _body(body: bytes | memoryview) -> str:
    raw = bytes(body)
    try:
        return _pretty(json.loads(raw))
    except (ValueError, RecursionError):
        return raw.decode("utf-8", "backslashreplace")


def _pretty(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _pre(text: str) -> SafeString:
    """Text as it stands, escaped and cut: it comes from other services."""
    if len(text) > MAX_SHOWN_CHARS:
        text = f"{text[:MAX_SHOWN_CHARS]}\n… ({len(text) - MAX_SHOWN_CHARS:,} more characters)"
    return format_html("<pre>{}</pre>", text)


register(admin.site)

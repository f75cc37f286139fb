"""Messages that wait in the database instead of in the broker, and the keys they block."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _


class DeferredKind(models.TextChoices):
    """Why a message waits here."""

    RETRY = "retry", _("retry")
    SNOOZE = "snooze", _("snooze")
    FOLLOWER = "follower", _("follower")
    REDRIVE = "redrive", _("redrive")
    REPLAY = "replay", _("replay")


def deferred_kind_choices() -> list[tuple[str, str]]:
    """Named, so that a new member needs no migration."""
    return [(member.value, str(member.label)) for member in DeferredKind]


class Deferred(models.Model):
    """
    A message stored whole, run by the consumer when it is due.

    ::

        (redrive) ──> due ──> (gone)      its handler committed, or it is a dead letter again
                       ▲ │
                       └─┘                failed, due again later

    Only the head of a key has a ``due_at``; it leaves in the transaction of its handler.
    """

    id = models.BigAutoField(primary_key=True)
    handler = models.CharField(_("handler"), max_length=190, blank=True)
    source = models.CharField(_("source"), max_length=64)
    event_id = models.CharField(_("event id"), max_length=255)
    key = models.CharField(_("key"), max_length=255, blank=True)
    event_type = models.CharField(_("event type"), max_length=255)
    subject = models.CharField(_("subject"), max_length=255)
    stream = models.CharField(_("stream"), max_length=255)
    sequence = models.BigIntegerField(_("sequence"))
    headers = models.JSONField(_("headers"))
    body = models.BinaryField(_("body"))
    kind = models.CharField(_("kind"), max_length=16, choices=deferred_kind_choices)
    attempts = models.IntegerField(_("attempts"), db_default=0)
    due_at = models.DateTimeField(_("due at"), null=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now())

    class Meta:
        db_table = "jetbridge_deferred"
        verbose_name = _("deferred message")
        verbose_name_plural = _("deferred")
        constraints = [
            models.UniqueConstraint(fields=["handler", "source", "event_id"], name="jb_deferred_identity")
        ]
        indexes = [
            models.Index(fields=["due_at"], name="jb_deferred_due", condition=models.Q(due_at__isnull=False)),
            models.Index(fields=["handler", "source", "key", "id"], name="jb_deferred_key"),
        ]

    def __str__(self) -> str:
        return f"{self.handler} {self.source}/{self.event_id}, {self.kind}"


class Hold(models.Model):
    """A blocked (handler, key): who touches the messages behind it locks this row first."""

    id = models.BigAutoField(primary_key=True)
    handler = models.CharField(_("handler"), max_length=190)
    source = models.CharField(_("source"), max_length=64)
    key = models.CharField(_("key"), max_length=255)
    by = models.CharField(_("held by"), max_length=255)
    reason = models.TextField(_("reason"), blank=True)
    until = models.DateTimeField(_("until"), null=True)

    class Meta:
        db_table = "jetbridge_hold"
        verbose_name = _("held key")
        verbose_name_plural = _("held keys")
        constraints = [models.UniqueConstraint(fields=["handler", "source", "key"], name="jb_hold_identity")]

    def __str__(self) -> str:
        return f"{self.handler} {self.source}/{self.key}"

"""Events that were given up, with everything needed to understand and redrive them."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _


class DeadLetterState(models.TextChoices):
    """See :class:`DeadLetter` for the transitions."""

    OPEN = "open", _("open")
    REDRIVING = "redriving", _("redriving")
    REDRIVEN = "redriven", _("redriven")
    DISCARDED = "discarded", _("discarded")


def dead_letter_state_choices() -> list[tuple[str, str]]:
    """Named, so that a new member needs no migration."""
    return [(member.value, str(member.label)) for member in DeadLetterState]


class DeadLetter(models.Model):
    """
    The truth about a failure; the message on ``<app>.sync.dlq`` is only a notice.

    ::

        open ──> redriving ──> redriven        its handler committed
         │  ▲        │
         │  └────────┘                         it failed again
         └──> discarded                        an operator said so, with a note

    The row is born in the transaction that gives the event up. ``body`` and ``headers`` are the
    message as it arrived, whatever is wrong with it.
    """

    id = models.BigAutoField(primary_key=True)
    handler = models.CharField(_("handler"), max_length=190, blank=True)
    source = models.CharField(_("source"), max_length=64)
    event_id = models.CharField(_("event id"), max_length=255)
    event_type = models.CharField(_("event type"), max_length=255, blank=True)
    key = models.CharField(_("key"), max_length=255, blank=True)
    subject = models.CharField(_("subject"), max_length=255)
    stream = models.CharField(_("stream"), max_length=255)
    sequence = models.BigIntegerField(_("sequence"))
    headers = models.JSONField(_("headers"))
    body = models.BinaryField(_("body"))
    edited_body = models.BinaryField(_("edited body"), null=True)
    reason = models.CharField(_("reason"), max_length=64)
    error_class = models.CharField(_("error class"), max_length=255, blank=True)
    error = models.TextField(_("error"), blank=True)
    traceback = models.TextField(_("traceback"), blank=True)
    fingerprint = models.CharField(_("fingerprint"), max_length=64, blank=True)
    attempts = models.IntegerField(_("attempts"))
    starts = models.IntegerField(_("starts"), db_default=0)
    state = models.CharField(
        _("state"), max_length=16, choices=dead_letter_state_choices, db_default=DeadLetterState.OPEN.value
    )
    redrives = models.IntegerField(_("redrives"), db_default=0)
    resolved_at = models.DateTimeField(_("resolved at"), null=True)
    resolved_by = models.CharField(_("resolved by"), max_length=150, blank=True, db_default="")
    note = models.TextField(_("note"), blank=True, db_default="")
    occurred_at = models.DateTimeField(_("occurred at"), null=True)
    trace_id = models.CharField(_("trace id"), max_length=255, blank=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now())

    class Meta:
        db_table = "jetbridge_dead_letter"
        verbose_name = _("dead letter")
        verbose_name_plural = _("dead letters")
        indexes = [
            models.Index(fields=["state", "id"], name="jb_dead_state"),
            models.Index(fields=["event_id"], name="jb_dead_event"),
            models.Index(
                fields=["handler", "source", "key"], name="jb_dead_open_key", condition=models.Q(state="open")
            ),
        ]

    def __str__(self) -> str:
        return f"#{self.pk} {self.handler or '-'} {self.event_type} {self.event_id}: {self.reason} ({self.state})"

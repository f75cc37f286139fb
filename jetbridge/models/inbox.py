"""What each handler has done with each event."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _


class InboxState(models.TextChoices):
    """See :class:`Inbox` for the transitions. ``skipped`` is reserved."""

    PROCESSED = "processed", _("processed")
    RETRYING = "retrying", _("retrying")
    RUNNING = "running", _("running")
    DEFERRED = "deferred", _("deferred")
    DEAD = "dead", _("dead")
    SKIPPED = "skipped", _("skipped")


def inbox_state_choices() -> list[tuple[str, str]]:
    """Named, so that a new member needs no migration."""
    return [(member.value, str(member.label)) for member in InboxState]


class Inbox(models.Model):
    """
    One row for each (handler, source, event id): the only deduplication there is.

    ::

        (absent) ──────────> processed          with the handler's own writes, one commit
           │                     ▲
           ├──> retrying(n) ─────┤              an attempt failed; the next one is due at next_attempt_at
           │       │             │
           └───────┴──> dead ──> deferred       given up: a dead letter; redrive re-opens it (generation + 1),
                          ▲         │           and the stored message alone may run it
                          └─────────┘

    The row is inserted in its final state inside the handler's transaction, so it becomes true with
    the commit, and a second copy of the event waits on the unique key instead of running.

    An event that may have been started before passes through ``running``, in a commit of its own::

        (absent), retrying, deferred ──> running       starts + 1, claimed_by this process
        running ──> running                            another process finds it: that start ended with its process
        running ──> processed, retrying, deferred      attempts + 1
        running ──> retrying, deferred                 snoozed, interrupted, outage: starts - 1
        running ──> dead                               given up; by reason "crashed" after MAX_STARTS

    ``starts - attempts``, less the start of a process that lives, is the number of starts that ended with
    their process. A row that was redriven (``generation`` > 0) is deferred where others are retrying.
    """

    id = models.BigAutoField(primary_key=True)
    handler = models.CharField(_("handler"), max_length=190, blank=True)
    source = models.CharField(_("source"), max_length=64)
    event_id = models.CharField(_("event id"), max_length=255)
    state = models.CharField(_("state"), max_length=16, choices=inbox_state_choices)
    attempts = models.IntegerField(_("attempts"), db_default=0)
    starts = models.IntegerField(_("starts"), db_default=0)
    generation = models.IntegerField(_("generation"), db_default=0)
    duplicates = models.IntegerField(_("duplicates"), db_default=0)
    event_type = models.CharField(_("event type"), max_length=255)
    key = models.CharField(_("key"), max_length=255, blank=True)
    stream = models.CharField(_("stream"), max_length=255)
    sequence = models.BigIntegerField(_("sequence"))
    received_at = models.DateTimeField(_("received at"), db_default=Now())
    finished_at = models.DateTimeField(_("finished at"), null=True)
    next_attempt_at = models.DateTimeField(_("next attempt at"), null=True)
    claimed_by = models.CharField(_("claimed by"), max_length=128, blank=True, db_default="")
    claim_epoch = models.IntegerField(_("claim epoch"), db_default=0)
    claim_expires_at = models.DateTimeField(_("claim expires at"), null=True)
    error_class = models.CharField(_("error class"), max_length=255, blank=True, db_default="")
    error = models.TextField(_("error"), blank=True, db_default="")

    class Meta:
        db_table = "jetbridge_inbox"
        verbose_name = _("inbox entry")
        verbose_name_plural = _("inbox")
        constraints = [
            models.UniqueConstraint(fields=["handler", "source", "event_id"], name="jb_inbox_identity")
        ]
        indexes = [
            models.Index(
                fields=["state", "id"], name="jb_inbox_open", condition=~models.Q(state="processed")
            ),
        ]

    def __str__(self) -> str:
        return f"{self.handler} {self.source}/{self.event_id} ({self.state})"

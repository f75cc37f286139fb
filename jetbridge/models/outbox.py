"""Events on their way out: waiting, scheduled, and sent."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _


class Kind(models.TextChoices):
    """What a row stands for."""

    EVENT = "event", _("event")
    DEAD_LETTER = "dead_letter", _("dead letter notice")
    REPLAY = "replay", _("replay")
    TASK = "task", _("task")
    TIMER = "timer", _("timer")


def kind_choices() -> list[tuple[str, str]]:
    """Named, so that a new member needs no migration."""
    return [(member.value, str(member.label)) for member in Kind]


class OutboxState(models.TextChoices):
    """See :class:`Outbox` for the transitions."""

    READY = "ready", _("ready")
    HELD = "held", _("held")
    PARKED = "parked", _("parked")
    REFUSED = "refused", _("refused")


def outbox_state_choices() -> list[tuple[str, str]]:
    """Named, so that a new member needs no migration."""
    return [(member.value, str(member.label)) for member in OutboxState]


class Content(models.Model):
    """What an event is on the wire, encoded once by ``publish()`` and never decoded by a relay."""

    event_id = models.CharField(_("event id"), max_length=255)
    message_id = models.CharField(_("message id"), max_length=400, blank=True)
    kind = models.CharField(_("kind"), max_length=16, choices=kind_choices)
    event_type = models.CharField(_("event type"), max_length=255)
    destination = models.CharField(_("destination"), max_length=255)
    subject = models.CharField(_("subject"), max_length=255)
    key = models.CharField(_("key"), max_length=255, blank=True)
    bucket = models.SmallIntegerField(_("bucket"))
    headers = models.JSONField(_("headers"))
    body = models.BinaryField(_("body"))
    causation_id = models.CharField(_("causation id"), max_length=255, blank=True)
    correlation_id = models.CharField(_("correlation id"), max_length=255, blank=True)
    created_at = models.DateTimeField(_("created at"), db_default=Now())

    class Meta:
        abstract = True


class Outbox(Content):
    """
    A row waits here until the stream has stored it.

    ::

        (insert) ──> ready ──────────────────────────────> archive   stored by the stream
                     │ │ │
                     │ │ └─> refused ──> ready               the message's own fault; an operator retries
                     │ └───> parked ───> archive             its subject has no stream, or is at its cap
                     └─────> held ─────> ready               an older row of its key is refused

    A parked row is sent from where it is: a subject in trouble costs one write a row, and from there a row
    may be refused or held like a ready one. Only the relay that owns the bucket moves a row between ready,
    held and parked. There is no unique key: the same event may be published twice, and the inbox makes
    that one effect.
    """

    id = models.BigAutoField(primary_key=True)
    state = models.CharField(
        _("state"), max_length=16, choices=outbox_state_choices, db_default=OutboxState.READY.value
    )
    error_code = models.CharField(_("error code"), max_length=32, blank=True, db_default="")
    error = models.TextField(_("error"), blank=True, db_default="")
    attempts = models.IntegerField(_("attempts"), db_default=0)
    state_at = models.DateTimeField(_("in this state since"), db_default=Now())

    class Meta:
        db_table = "jetbridge_outbox"
        verbose_name = _("outbox event")
        verbose_name_plural = _("outbox")
        indexes = [
            models.Index(fields=["bucket", "id"], name="jb_outbox_ready", condition=models.Q(state="ready")),
            models.Index(
                fields=["state", "id"], name="jb_outbox_not_ready", condition=~models.Q(state="ready")
            ),
            models.Index(fields=["event_id"], name="jb_outbox_event"),
        ]

    def __str__(self) -> str:
        return f"{self.event_type} {self.event_id} → {self.destination} ({self.state})"


class Scheduled(Content):
    """
    An event for later. When it is due the relay *moves* it to the outbox, where it gets a new id and
    with it its place in the order of its key: ``scheduled ──> outbox.ready``.
    """

    id = models.BigAutoField(primary_key=True)
    due_at = models.DateTimeField(_("due at"))
    name = models.CharField(_("name"), max_length=255, null=True, blank=True)

    class Meta:
        db_table = "jetbridge_scheduled"
        verbose_name = _("scheduled event")
        verbose_name_plural = _("scheduled")
        constraints = [models.UniqueConstraint(fields=["name"], name="jb_scheduled_name")]
        indexes = [
            models.Index(fields=["due_at", "id"], name="jb_scheduled_due"),
            models.Index(fields=["event_id"], name="jb_scheduled_event"),
        ]

    def __str__(self) -> str:
        return f"{self.event_type} {self.event_id} → {self.destination}, due {self.due_at}"


class Archive(Content):
    """
    What the stream has stored, append-only, kept for a while so that a broker that loses what it
    acknowledged can be refilled. ``id`` is the row's former id in the outbox. Each further index here
    would cost relay speed.
    """

    id = models.BigIntegerField(_("outbox id"), primary_key=True)
    stream = models.CharField(_("stream"), max_length=255)
    stream_created_at = models.DateTimeField(_("stream created at"), null=True)
    sequence = models.BigIntegerField(_("sequence"))
    duplicate = models.BooleanField(_("duplicate"))
    sent_at = models.DateTimeField(_("sent at"), db_default=Now())

    class Meta:
        db_table = "jetbridge_archive"
        verbose_name = _("sent event")
        verbose_name_plural = _("archive")
        indexes = [models.Index(fields=["event_id"], name="jb_archive_event")]

    def __str__(self) -> str:
        return f"{self.event_type} {self.event_id} → {self.stream} #{self.sequence}"

"""Who owns what, and who is alive."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _


class Lease(models.Model):
    """
    The right to work on something, until a moment of the database's clock.

    ``free ──> held(owner, epoch) ──> free``; every change of hands raises ``epoch``.
    """

    name = models.CharField(_("name"), max_length=190, primary_key=True)
    owner = models.CharField(_("owner"), max_length=128, blank=True)
    epoch = models.BigIntegerField(_("epoch"), default=0)
    expires_at = models.DateTimeField(_("expires at"))

    class Meta:
        db_table = "jetbridge_lease"
        verbose_name = _("lease")
        verbose_name_plural = _("leases")

    def __str__(self) -> str:
        return f"{self.name}: {self.owner or 'free'} ({self.epoch})"


class Worker(models.Model):
    """A running relay or consumer, as it last described itself."""

    id = models.CharField(_("id"), max_length=128, primary_key=True)
    role = models.CharField(_("role"), max_length=32)
    host = models.CharField(_("host"), max_length=255)
    pid = models.IntegerField(_("process id"))
    version = models.CharField(_("version"), max_length=32)
    beat_at = models.DateTimeField(_("last beat"))
    info = models.JSONField(_("info"), default=dict)

    class Meta:
        db_table = "jetbridge_worker"
        verbose_name = _("worker")
        verbose_name_plural = _("workers")

    def __str__(self) -> str:
        return f"{self.role} {self.id}"

from django.db import models


class Invoice(models.Model):
    """
    The effect of one ``order.placed``.

    ``order_id`` is not unique on purpose: a constraint would hide a doubled effect, and doubled effects are
    what the demo and the tests count here.
    """

    order_id = models.BigIntegerField(db_index=True)
    event_id = models.CharField(max_length=128)
    total = models.DecimalField(max_digits=12, decimal_places=2)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        db_table = "billing_invoice"

    def __str__(self) -> str:
        return f"invoice {self.pk} for order {self.order_id}"

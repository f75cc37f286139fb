from django.db import models


class Order(models.Model):
    """A placed order. ``invoiced`` turns true when billing says so."""

    number = models.CharField(max_length=64)
    total = models.DecimalField(max_digits=12, decimal_places=2)
    email = models.EmailField(blank=True)
    fails = models.BooleanField(default=False, help_text="Billing can never write an invoice for this one.")
    invoiced = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        db_table = "orders_order"

    def __str__(self) -> str:
        return self.number

"""
For the tests of your project: what was published, and handlers run as the consumer runs them, without NATS.

Everything works inside a ``TestCase`` and with ``pytest.mark.django_db``: the outbox is a table, and its rows
are visible in the transaction that wrote them. ::

    from jetbridge.testing import assert_published, deliver, published

    def test_an_order_is_announced(db):
        order = place_order("A-1", Decimal("9.90"))
        assert_published("order.placed", to="billing", payload={"id": order.pk})

    def test_an_invoice_is_written(db):
        deliver(Event("order.placed", {"id": 1, "number": "A-1", "total": "9.90"}), source="orders")
        assert Invoice.objects.count() == 1

The consumer commits; a ``TestCase`` does not, so ``on_commit`` hooks of a handler run there only inside
``captureOnCommitCallbacks(execute=True)``.
"""

from __future__ import annotations

from jetbridge.testing.delivering import NoHandler, Outcome, deliver
from jetbridge.testing.publishing import PublishedEvent, assert_published, published

__all__ = ["NoHandler", "Outcome", "PublishedEvent", "assert_published", "deliver", "published"]

"""On which database a publish lands, and when it is refused because its transaction is elsewhere."""

from __future__ import annotations

import pytest
from django.db import transaction
from django.test import TestCase, TransactionTestCase, override_settings

import jetbridge
from jetbridge import context
from jetbridge.event import Delivery
from jetbridge.models import Outbox, Scheduled

BOTH = {"APP_NAME": "shop", "DESTINATIONS": ["billing"], "DATABASES": ["default", "other"]}
ONE = {"APP_NAME": "shop", "DESTINATIONS": ["billing"]}


class ToOther:
    """A router that sends jetbridge's rows to "other"."""

    def db_for_write(self, model: type, **hints: object) -> str | None:
        return "other" if model._meta.app_label == "jetbridge" else None  # type: ignore[attr-defined]


def counts() -> tuple[int, int]:
    """Rows in the outbox of "default" and of "other"."""
    return Outbox.objects.using("default").count(), Outbox.objects.using("other").count()


@override_settings(JETBRIDGE=BOTH)
class RulesOfTheAlias(TransactionTestCase):
    """No transaction but those a test opens."""

    databases = {"default", "other"}

    def test_the_first_alias_is_the_default(self):
        """Without router and without ``using``: the first of ``DATABASES``."""
        jetbridge.publish("a.b", {})

        assert counts() == (1, 0)

    def test_using_wins(self):
        """``using=`` names the alias."""
        jetbridge.publish("a.b", {}, using="other")
        jetbridge.publish_many([jetbridge.Event("a.b")] * 150, using="other")
        jetbridge.publish("a.b", {}, using="other", delay=60)

        assert counts() == (0, 151)
        assert Scheduled.objects.using("other").count() == 1

    def test_the_router_decides_where_nothing_else_does(self):
        """``router.db_for_write``."""
        with override_settings(DATABASE_ROUTERS=[ToOther()]):
            jetbridge.publish("a.b", {})

        assert counts() == (0, 1)

    @override_settings(JETBRIDGE=ONE)
    def test_an_alias_of_the_router_without_outbox_is_passed_over(self):
        """The router may know nothing of ``DATABASES``; then it is the first."""
        with override_settings(DATABASE_ROUTERS=[ToOther()]):
            jetbridge.publish("a.b", {})

        assert counts() == (1, 0)

    def test_inside_a_handler_it_is_the_handlers_alias(self):
        """What a handler publishes shares its transaction."""
        delivery = Delivery("x.y", {}, event_id="cause")
        with context.handling(delivery, "other"), transaction.atomic(using="other"):
            jetbridge.publish("a.b", {})

        assert counts() == (0, 1)

    def test_using_wins_over_the_handlers_alias(self):
        """An explicit word is an explicit word."""
        with context.handling(Delivery("x.y", {}, event_id="cause"), "other"), transaction.atomic():
            jetbridge.publish("a.b", {}, using="default")

        assert counts() == (1, 0)

    def test_only_another_alias_in_atomic_is_refused(self):
        """The event would not share the fate of the business rows; the text names both and the cure."""
        for publish in (
            lambda: jetbridge.publish("a.b", {}),
            lambda: jetbridge.publish_many([jetbridge.Event("a.b")]),
            lambda: jetbridge.publish("a.b", {}, delay=60),
        ):
            with transaction.atomic(using="other"), pytest.raises(jetbridge.WrongDatabase) as caught:
                publish()
            text = str(caught.value)
            assert [word for word in ("'default'", "'other'", "atomic", "using=") if word not in text] == []

        assert counts() == (0, 0)

    def test_both_aliases_in_atomic_is_fine(self):
        """The event's own transaction is open."""
        with transaction.atomic(using="other"), transaction.atomic():
            jetbridge.publish("a.b", {})
            jetbridge.publish("a.b", {}, using="other")

        assert counts() == (1, 1)

    def test_no_transaction_anywhere_is_fine(self):
        """Autocommit: the event is committed by itself."""
        jetbridge.publish("a.b", {}, using="other")

        assert counts() == (0, 1)

    def test_a_transaction_by_hand_counts(self):
        """``set_autocommit(False)`` is a transaction of the user's, on either alias."""
        transaction.set_autocommit(False, using="other")
        try:
            with pytest.raises(jetbridge.WrongDatabase):
                jetbridge.publish("a.b", {})
            jetbridge.publish("a.b", {}, using="other")
            transaction.commit(using="other")
        finally:
            transaction.set_autocommit(True, using="other")

        assert counts() == (0, 1)

    @override_settings(JETBRIDGE={**ONE, "REQUIRE_ATOMIC": True})
    def test_require_atomic_refuses_autocommit(self):
        """The text names the setting and the cure."""
        for publish in (
            lambda: jetbridge.publish("a.b", {}),
            lambda: jetbridge.publish_many([jetbridge.Event("a.b")]),
        ):
            with pytest.raises(jetbridge.NotInTransaction, match=r"transaction\.atomic.*REQUIRE_ATOMIC"):
                publish()
        with transaction.atomic():
            jetbridge.publish("a.b", {})

        assert counts() == (1, 0)


@override_settings(JETBRIDGE={**BOTH, "REQUIRE_ATOMIC": True})
class RulesInsideTestCase(TestCase):
    """The blocks that TestCase wraps around a test do not count: forgetful code must fail its tests."""

    databases = {"default", "other"}

    @classmethod
    def setUpTestData(cls):
        with transaction.atomic():
            jetbridge.publish("a.b", {}, event_id="of-the-class")

    def test_require_atomic_wants_a_block_of_ones_own(self):
        """Code without ``atomic()`` is refused, as it would be in production."""
        with pytest.raises(jetbridge.NotInTransaction):
            jetbridge.publish("a.b", {})
        with transaction.atomic():
            jetbridge.publish("a.b", {})

        assert counts() == (2, 0)

    def test_wrong_database_looks_at_ones_own_blocks_only(self):
        """Both aliases are in TestCase's blocks; only "other" is in ours."""
        with transaction.atomic(using="other"), pytest.raises(jetbridge.WrongDatabase):
            jetbridge.publish("a.b", {})

    @override_settings(JETBRIDGE=BOTH)
    def test_autocommit_is_fine_without_require_atomic(self):
        """TestCase's blocks on every alias are no reason to refuse."""
        jetbridge.publish("a.b", {})
        jetbridge.publish("a.b", {}, using="other")

        assert counts() == (2, 1)

"""What is wrong with a durable that somebody else made. Pure: it is told, and somebody with the right may repair it."""

from __future__ import annotations

from collections.abc import Mapping

from jetbridge.conf import Settings
from jetbridge.jetstream.provision_spec import ConsumerSpec, filters_of

NS = 1_000_000_000


def faults(config: Mapping[str, object], wanted: ConsumerSpec, settings: Settings) -> list[str]:
    """
    Sentences about a durable's configuration, none for one that ``jetbridge_provision`` made.

    Only what endangers a promise: a larger ``max_ack_pending`` is nobody's trouble.
    """
    found = []
    if config.get("ack_policy") != "explicit":
        found.append(
            f"its ack_policy is {config.get('ack_policy')!r} instead of 'explicit', so a crash loses events"
        )
    most = config.get("max_deliver")
    if isinstance(most, int) and most > 0:
        found.append(
            f"its max_deliver is {most} instead of -1, so a message that is delivered {most} times without an ack "
            "stays in the stream for good"
        )
    ack_wait = config.get("ack_wait")
    longest_s = settings.lease_s * 2 / 3
    if isinstance(ack_wait, int) and ack_wait / NS > longest_s:
        found.append(
            f"its ack_wait is {ack_wait / NS:g} s, longer than two thirds of LEASE_S ({longest_s:g} s), so a new "
            "owner may start before the messages of the old one are back"
        )
    filters = filters_of(config)
    if sorted(filters) != sorted(wanted.filters):
        found.append(f"it reads {', '.join(filters) or 'everything'} instead of {', '.join(wanted.filters)}")
    return found

"""The pure parts of the pull loop: reply subjects, statuses, counting."""

from __future__ import annotations

import pytest

from jetbridge.jetstream.incoming import read_reply
from jetbridge.jetstream.pulls import Pulls, Reaction, allowed_batch, react


@pytest.mark.parametrize(
    ("reply", "stream", "consumer", "numbers"),
    [
        ("$JS.ACK.S.w.2.10.11.1700000000000000000.5", "S", "w", (2, 10, 11, 1700000000000000000, 5)),
        ("$JS.ACK._.hash.S.w.2.10.11.1700000000000000000.5", "S", "w", (2, 10, 11, 1700000000000000000, 5)),
        ("$JS.ACK.hub.hash.S.w.2.10.11.17.5.token", "S", "w", (2, 10, 11, 17, 5)),
    ],
)
def test_both_formats_of_the_reply_subject_are_read(reply, stream, consumer, numbers):
    info = read_reply(reply)
    assert (info.stream, info.consumer) == (stream, consumer)
    assert (
        info.delivered,
        info.sequence,
        info.consumer_sequence,
        info.stored_ns,
        info.pending,
    ) == numbers


@pytest.mark.parametrize(
    "reply", ["", "_INBOX.x", "$JS.ACK.S.w.1.1.1.1", "$JS.ACK.S.w.1.1.1.1.1.1", "$JS.ACK.S.w.a.b.c.d.e"]
)
def test_another_reply_subject_is_an_error_that_names_it(reply):
    with pytest.raises(ValueError):
        read_reply(reply)


@pytest.mark.parametrize(
    ("code", "text", "reaction"),
    [
        (100, "Idle Heartbeat", Reaction.ALIVE),
        (404, "No Messages", Reaction.EMPTY),
        (408, "Request Timeout", Reaction.ENDED),
        (408, "Requests Pending", Reaction.ENDED),
        (409, "Message Size Exceeds MaxBytes", Reaction.ENDED),
        (409, "Leadership Change", Reaction.PAUSE),
        (409, "Server Shutdown", Reaction.PAUSE),
        (409, "Exceeded MaxWaiting", Reaction.PAUSE),
        (423, "Nats-Pin-Id mismatch", Reaction.PAUSE),
        (409, "Consumer Deleted", Reaction.MISSING),
        (409, "Consumer is push based", Reaction.MISSING),
        (503, "", Reaction.MISSING),
        (409, "Exceeded MaxRequestBatch of 5", Reaction.WRONG),
        (409, "Exceeded MaxRequestExpires of 1s", Reaction.WRONG),
        (400, "Bad Request - heartbeat value too large", Reaction.WRONG),
        (0, "", Reaction.WRONG),
    ],
)
def test_each_status_has_its_meaning(code, text, reaction):
    assert react(code, text) is reaction


def test_the_limit_in_a_status_is_read():
    assert allowed_batch("Exceeded MaxRequestBatch of 5") == 5
    assert allowed_batch("Exceeded MaxRequestExpires of 1s") is None


def test_counting_of_pulls_does_not_drift_for_good():
    """A status that got lost, or came twice, must neither starve the consumer nor ask for too much."""
    pulls = Pulls()
    first = pulls.add(10, deadline=100)
    second = pulls.add(5, deadline=101)
    for _ in range(8):
        pulls.arrived()
    pulls.ended(first, left=2)
    pulls.ended(first, left=2)
    assert pulls.asked == 5
    pulls.write_off(now=102)
    assert pulls.asked == 5
    pulls.write_off(now=104)
    assert pulls.asked == 0
    pulls.ended(second, left=5)
    assert pulls.asked == 0

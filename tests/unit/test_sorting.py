"""What may go now, and what each answer of the stream means for the row it answers and for those behind it."""

from __future__ import annotations

import pytest

from jetbridge.conf import Destination
from jetbridge.jetstream.results import NoAnswer, NotSent, Refused, Result, Stored
from jetbridge.outbox.records import OutboxRecord
from jetbridge.partition import partition
from jetbridge.relay.sorting import Verdicts, code_of, judge, outgoing, sort

STREAM = "jetbridge-orders"
TOO_LARGE = Refused(400, 10054, "message size exceeds maximum allowed")
CAPPED = Refused(503, 10077, "maximum messages per subject exceeded")
FULL = Refused(503, 10077, "maximum messages exceeded")
NOBODY = Refused(503, 0, "no responders")
BEHIND = NotSent("an earlier message of its lane was not stored")


def row(id: int, key: str = "k", destination: str = "billing", event_id: str = "") -> OutboxRecord:
    subject = f"orders.sync.{destination}"
    return OutboxRecord(id, subject, destination, key, event_id or f"e{id}", f"e{id}:x", {}, b"{}")


def stored(sequence: int, stream: str = STREAM) -> Stored:
    return Stored(stream, sequence, False)


def verdict(*pairs: tuple[OutboxRecord, Result], hold_key: bool = True) -> Verdicts:
    rows, results = zip(*pairs, strict=True)
    return judge(rows, results, stream=STREAM, hold_key=hold_key)


def ids(rows) -> list[int]:
    return [getattr(one, "id", None) or one[0].id for one in rows]


# --- sort ----------------------------------------------------------------------------------------


def test_parked_subjects_and_held_keys_stay_here():
    page = sort(
        [row(1, "a"), row(2, "b"), row(3, "a", "mail"), row(4, "")],
        parked={"orders.sync.mail"},
        refused={("orders.sync.billing", "a")},
    )

    assert (ids(page.send), ids(page.park), ids(page.hold)) == ([2, 4], [3], [1])


def test_a_held_key_of_a_parked_subject_is_held():
    """A parked row is tried first when its subject works, and would overtake its key."""
    page = sort([row(1, "a")], parked={"orders.sync.billing"}, refused={("orders.sync.billing", "a")})

    assert (ids(page.park), ids(page.hold)) == ([], [1])


def test_rows_without_a_key_are_never_held():
    page = sort([row(1, "")], parked=set(), refused={("orders.sync.billing", "")})

    assert ids(page.send) == [1]


# --- outgoing ------------------------------------------------------------------------------------


def test_a_lane_is_a_key_of_a_subject():
    """Two of one lane are never in flight together; rows without a key have none."""
    destinations = {"billing": Destination(name="billing")}

    lanes = [outgoing(one, destinations).lane for one in (row(1, "a"), row(2, "a", "mail"), row(3, ""))]

    assert lanes == [("orders.sync.billing", "a"), ("orders.sync.mail", "a"), None]


@pytest.mark.parametrize(("key", "hashed"), [("key", "key"), ("ключ", "ключ"), ("", "e1")])
def test_the_partition_is_of_the_key_else_of_the_event_id(key, hashed):
    destinations = {"billing": Destination(name="billing", partitions=7)}

    message = outgoing(row(1, key), destinations)

    assert message.subject == f"orders.sync.billing.{partition(hashed, 7)}"


def test_all_of_a_key_go_to_one_partition_and_one_lane():
    destinations = {"billing": Destination(name="billing", partitions=7)}

    messages = [outgoing(row(n, "same"), destinations) for n in range(20)]

    assert len({(message.subject, message.lane) for message in messages}) == 1


def test_a_subject_of_ones_own_is_left_alone():
    """Only a configured destination has partitions."""
    assert outgoing(row(1, "a", "billing.special"), {}).subject == "orders.sync.billing.special"


# --- judge ---------------------------------------------------------------------------------------


def test_stored_rows_are_settled_with_their_place():
    found = verdict((row(1), stored(7)), (row(2), Stored(STREAM, 8, True)))

    assert [(one.id, one.stream, one.sequence, one.duplicate) for one in found.stored] == [
        (1, STREAM, 7, False),
        (2, STREAM, 8, True),
    ]


def test_an_ack_of_another_stream_parks_the_subject():
    found = verdict((row(1), stored(7, "thief")), (row(2, "b"), stored(8)))

    (rows, refusal) = found.parked["orders.sync.billing"]
    assert (ids(rows), ids(found.stored), code_of(refusal)) == ([1], [2], "wrong_stream")
    assert "'thief' instead of 'jetbridge-orders'" in refusal.description


def test_a_refused_row_takes_its_followers_along_and_nobody_else():
    found = verdict(
        (row(1, "a"), TOO_LARGE), (row(2, "a"), BEHIND), (row(3, "b"), stored(1)), (row(4, "a"), BEHIND)
    )

    assert (ids(found.refused), ids(found.followers), ids(found.stored)) == ([1], [2, 4], [3])
    assert (found.outage, found.parked) == ("", {})


def test_passing_leaves_the_followers_ready():
    """They were not sent behind the refused one; the next page takes them."""
    found = verdict((row(1, "a"), TOO_LARGE), (row(2, "a"), BEHIND), hold_key=False)

    assert (ids(found.refused), found.followers, found.outage) == ([1], [], "")


def test_a_full_subject_parks_itself_and_what_waits_behind():
    found = verdict(
        (row(1, "a"), stored(1)),
        (row(2, "a"), CAPPED),
        (row(3, "a"), BEHIND),
        (row(4, "b"), CAPPED),
        (row(5, "a", "mail"), stored(2)),
    )

    assert ids(found.parked["orders.sync.billing"][0]) == [2, 3, 4]
    assert (ids(found.stored), found.outage, set(found.parked)) == ([1, 5], "", {"orders.sync.billing"})


@pytest.mark.parametrize(
    "answer", [FULL, NoAnswer("no answer"), NotSent("not connected"), Refused(503, 10008, "x")]
)
def test_an_outage_touches_no_row(answer):
    found = verdict((row(1), answer), (row(2), BEHIND))

    assert found.outage
    assert (found.stored, found.refused, found.parked, found.followers) == ([], [], {}, [])


def test_nobody_answering_at_all_is_an_outage_and_not_the_subjects_fault():
    """Before the first provision, and while the stream has no leader, nothing may be parked."""
    found = verdict((row(1), NOBODY), (row(2, "b", "mail"), NOBODY))

    assert (found.outage, found.parked) == ("no responders", {})


def test_a_page_full_of_what_this_user_may_not_send_parks_it():
    """A denial names its subject. Red if only an answer beside it could: nothing behind such a page would ever go."""
    denied = Refused(403, 0, "permissions violation: this NATS user may not publish to 'orders.sync.billing'")

    found = verdict((row(1), denied), (row(2), BEHIND))

    assert ids(found.parked["orders.sync.billing"][0]) == [1, 2]
    assert not found.outage


def test_nobody_answering_one_subject_parks_it():
    found = verdict((row(1), NOBODY), (row(2, "b", "mail"), stored(1)))

    assert (set(found.parked), found.outage) == ({"orders.sync.billing"}, "")


def test_every_row_has_one_fate():
    """Nothing is in two lists, and what is in none stays ready."""
    found = verdict(
        (row(1, "a"), TOO_LARGE),
        (row(2, "a"), BEHIND),
        (row(3, "b"), CAPPED),
        (row(4, "c"), stored(1)),
        (row(5, "d"), NoAnswer("late")),
        (row(6, "d"), BEHIND),
    )
    parked = [one for rows, _ in found.parked.values() for one in rows]

    fates = ids(found.refused) + ids(found.followers) + ids(parked) + ids(found.stored)
    # 6 stays behind 5 of its own key, which has no answer: parked alone, it could overtake.
    assert sorted(fates) == [1, 2, 3, 4]

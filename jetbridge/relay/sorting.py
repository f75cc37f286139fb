"""
What may go now, and what the stream's answers mean for the rows. Pure decisions of the relay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from jetbridge import partition, topology
from jetbridge.conf import Destination
from jetbridge.envelope import wire_headers
from jetbridge.jetstream.classify import Fault, classify
from jetbridge.jetstream.results import NO_RESPONDERS, NoAnswer, NotSent, Outgoing, Refused, Result, Stored
from jetbridge.outbox.records import OutboxRecord, Settled

Lane = tuple[str, str]
NATS_TTL = "Nats-TTL"
TTL_DISABLED = 10166


@dataclass(frozen=True, slots=True, kw_only=True)
class Sorted:
    """A page, split: ``send`` goes out, the others wait for something and leave the hot index."""

    send: Sequence[OutboxRecord]
    park: Sequence[OutboxRecord]
    hold: Sequence[OutboxRecord]


def sort(records: Sequence[OutboxRecord], *, parked: Collection[str], refused: Collection[Lane]) -> Sorted:
    """
    Args:
        parked: Subjects without room or stream.
        refused: (subject, key) pairs with a refused row that their followers wait for.
    """
    send, park, hold = [], [], []
    for record in records:
        # Held before parked: a parked row is tried as soon as its subject works, and must not overtake its key.
        if record.key and (record.subject, record.key) in refused:
            hold.append(record)
        elif record.subject in parked:
            park.append(record)
        else:
            send.append(record)
    return Sorted(send=send, park=park, hold=hold)


def outgoing(
    record: OutboxRecord, destinations: Mapping[str, Destination], *, message_ttl: bool = True
) -> Outgoing:
    """
    A row as a message. Its partition is decided here, at the last moment, so that a changed count
    also holds for rows that already wait.
    """
    destination = destinations.get(record.destination)
    subject = record.subject
    if destination is not None and destination.partitions > 1:
        number = partition.partition(record.key or record.event_id, destination.partitions)
        subject = topology.subject(subject.split(".", 1)[0], destination.name, number)
    headers = record.headers
    if not message_ttl and NATS_TTL in headers:
        headers = {name: value for name, value in headers.items() if name != NATS_TTL}
    return Outgoing(
        subject=subject,
        headers=wire_headers(record.message_id, headers),
        body=record.body,
        lane=(record.subject, record.key) if record.key else None,
    )


@dataclass(slots=True, kw_only=True)
class Verdicts:
    """
    What follows from a page's answers.

    Attributes:
        stored: To settle.
        parked: Subject → the rows and the reason.
        refused: Rows that can never be stored as they are, with the reason.
        followers: Rows of a refused row's key that must not overtake it.
        outage: Why some rows were not stored and are left as they are; ``""`` if none.
        ttl_disabled: The stream takes no ``Nats-TTL``: to be sent again without.
        answered: Whether there was any answer at all.
        unheard: Nobody listens on a subject, and whether that is the subject's trouble cannot be told.
    """

    stored: list[Settled] = field(default_factory=list)
    parked: dict[str, tuple[list[OutboxRecord], Refused]] = field(default_factory=dict)
    refused: list[tuple[OutboxRecord, Refused]] = field(default_factory=list)
    followers: list[OutboxRecord] = field(default_factory=list)
    outage: str = ""
    ttl_disabled: bool = False
    answered: bool = False
    unheard: bool = False


WRONG_STREAM = "wrong_stream"


def judge(
    records: Sequence[OutboxRecord],
    results: Sequence[Result],
    *,
    stream: str,
    hold_key: bool,
    uncovered: Collection[str] = (),
) -> Verdicts:
    """
    Args:
        stream: Where the rows belong; an answer from another stream parks the subject.
        uncovered: Subjects that the stream is known not to take.
        hold_key: Whether followers of a refused row wait for it.
    """
    verdicts = Verdicts(answered=any(isinstance(result, Stored | Refused) for result in results))
    anything_stored = any(isinstance(result, Stored) for result in results)
    refused_lanes: set[Lane] = set()
    parked_lanes: set[Lane] = set()
    for record, result in zip(records, results, strict=True):
        match result:
            case Stored() if result.stream == stream:
                verdicts.stored.append(Settled(record.id, result.stream, result.sequence, result.duplicate))
            case Stored():
                other = Refused(0, 0, f"stored by the stream {result.stream!r} instead of {stream!r}")
                _park(verdicts, record, other)
            case Refused():
                is_known = anything_stored or record.subject in uncovered
                _refused(verdicts, record, result, is_known, refused_lanes)
            case NotSent() if (record.subject, record.key) in refused_lanes and hold_key:
                verdicts.followers.append(record)
            # Only behind a parked row of its own key: one behind an open question may not leave it alone in front.
            case NotSent() if (record.subject, record.key) in parked_lanes:
                verdicts.parked[record.subject][0].append(record)
            case NotSent() if (record.subject, record.key) in refused_lanes:
                pass
            case NoAnswer() | NotSent():
                verdicts.outage = verdicts.outage or result.reason
        if record.subject in verdicts.parked and verdicts.parked[record.subject][0][-1] is record:
            parked_lanes.add((record.subject, record.key))
    return verdicts


def _refused(
    verdicts: Verdicts, record: OutboxRecord, refusal: Refused, is_known: bool, lanes: set[Lane]
) -> None:
    if refusal.err_code == TTL_DISABLED:
        verdicts.ttl_disabled = True
        return
    match classify(refusal):
        case Fault.MESSAGE:
            verdicts.refused.append((record, refusal))
            if record.key:
                lanes.add((record.subject, record.key))
        case Fault.SUBJECT if refusal.err_code or is_known or refusal.code != NO_RESPONDERS.code:
            _park(verdicts, record, refusal)
        case Fault.SUBJECT | Fault.OUTAGE as fault:
            # 503 for everything is a stream without leader, or no stream at all: the same wait for all.
            verdicts.unheard = verdicts.unheard or fault is Fault.SUBJECT
            verdicts.outage = verdicts.outage or refusal.description


def _park(verdicts: Verdicts, record: OutboxRecord, refusal: Refused) -> None:
    verdicts.parked.setdefault(record.subject, ([], refusal))[0].append(record)


def code_of(refusal: Refused) -> str:
    """The reason as it stands in the row: JetStream's number, else the status."""
    if refusal.err_code:
        return str(refusal.err_code)
    return str(refusal.code) if refusal.code else WRONG_STREAM

"""Every key of ``JETBRIDGE``: the one list, each with its parser, default, unit and the sentence of the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from jetbridge import conf_types as kinds


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One key of ``JETBRIDGE``: how to parse it, its default, and the sentence the reference shows."""

    key: str
    parse: Callable[[object], object]
    default: object
    help: str


OPTIONS: Final[tuple[Option, ...]] = (
    Option(
        key="APP_NAME",
        parse=kinds.token("app"),
        default=None,
        help="The name of this service on the wire: first token of its subjects. The only required key.",
    ),
    Option(
        key="NATS_URLS",
        parse=kinds.urls,
        default=("nats://127.0.0.1:4222",),
        help="Addresses of the NATS servers: a list, one comma-separated string, or `embedded` (development only).",
    ),
    Option(
        key="EMBEDDED_DIR",
        parse=kinds.path,
        default=None,
        help="Where the embedded server keeps its store and its port file. Default: `.jetbridge` below `BASE_DIR`.",
    ),
    Option(
        key="INBOX_PREFIX",
        parse=kinds.inbox_prefix,
        default="_INBOX_{app}_{role}",
        help="Reply inbox of each role (`relay`, `worker`, `admin`); NATS permissions are written against it.",
    ),
    Option(
        key="DESTINATIONS",
        parse=kinds.destinations,
        default=(),
        help="Apps this one publishes to: a list of names, or a dict of name to `{partitions, message_id}`.",
    ),
    Option(
        key="SOURCES",
        parse=kinds.sources,
        default=(),
        help="Apps this one reads from: a list of names, or a dict of name to `{stream, partitions}`.",
    ),
    Option(
        key="STREAM",
        parse=kinds.token("stream"),
        default=None,
        help="The stream this app publishes to. Default: `jetbridge-<APP_NAME>`, a stream of its own.",
    ),
    Option(
        key="REPLICAS",
        parse=kinds.integer(1, 5),
        default=1,
        help="Replicas of the own stream and of the durables; 3 on a cluster.",
    ),
    Option(
        key="DUPLICATE_WINDOW_S",
        parse=kinds.number(0.1, 86_400),
        default=120.0,
        help="Seconds for which the stream drops repeated message ids. A convenience: the inbox is the truth.",
    ),
    Option(
        key="MAX_MESSAGES_PER_SUBJECT",
        parse=kinds.integer(1, 10**12),
        default=10_000_000,
        help="Cap of unread messages per subject of the own stream: a dead destination parks only itself.",
    ),
    Option(
        key="DATABASES",
        parse=kinds.aliases,
        default=("default",),
        help="Database aliases that have jetbridge's tables; each needs its own relay (`--database`).",
    ),
    Option(
        key="DATABASE_TIMEOUT_S",
        parse=kinds.number(0.5, 3_600),
        default=30.0,
        help="Seconds after which a query of the relay, or of the consumer's own bookkeeping, counts as an outage of "
        "the database: its session is cut, and it is tried again. Handlers are not limited by it.",
    ),
    Option(
        key="REQUIRE_ATOMIC",
        parse=kinds.boolean,
        default=False,
        help="Refuse `publish()` outside a transaction.",
    ),
    Option(
        key="MAX_PAYLOAD_BYTES",
        parse=kinds.integer(1_024, 64 * 1024 * 1024),
        default=1_000_000,
        help="Largest encoded event with its headers, checked inside the transaction. NATS allows 1 MiB.",
    ),
    Option(
        key="POLL_INTERVAL_S",
        parse=kinds.number(0.005, 60),
        default=0.05,
        help="Seconds between two looks of an idle relay at the outbox.",
    ),
    Option(
        key="PAGE_SIZE",
        parse=kinds.integer(1, 10_000),
        default=1_000,
        help="Rows a relay reads, publishes and settles at a time.",
    ),
    Option(
        key="WINDOW",
        parse=kinds.integer(1, 10_000),
        default=512,
        help="Publishes that may wait for their ack at once.",
    ),
    Option(
        key="PUBLISH_TIMEOUT_S",
        parse=kinds.number(0.1, 600),
        default=5.0,
        help="Seconds after which a page's missing acks count as no answer; the rows stay and are sent again.",
    ),
    Option(
        key="LEASE_S",
        parse=kinds.number(1, 3_600),
        default=15.0,
        help="Seconds after which the work of a dead relay or consumer may be taken over.",
    ),
    Option(
        key="ON_REFUSED",
        parse=kinds.choice("hold_key", "pass"),
        default="hold_key",
        help="What a refused row does to later rows of its key: `hold_key` keeps the order, `pass` lets them go on.",
    ),
    Option(
        key="PARK_RETRY_S",
        parse=kinds.number(0.1, 3_600),
        default=5.0,
        help="Seconds between two tries of a parked subject.",
    ),
    Option(
        key="READ_STREAM_INFO",
        parse=kinds.boolean,
        default=False,
        help="Let the relay read INFO of the own stream, to archive the stream's creation time. Needs that permission.",
    ),
    Option(
        key="HANDLERS_MODULE",
        parse=kinds.identifier,
        default="handlers",
        help="Module imported from every installed app at start.",
    ),
    Option(
        key="CONCURRENCY",
        parse=kinds.integer(1, 256),
        default=8,
        help="Handler threads of a consumer, each with a database connection. SQLite always uses 1.",
    ),
    Option(
        key="MAX_IN_FLIGHT",
        parse=kinds.integer(1, 100_000),
        default=256,
        help="Messages a consumer holds at once: running, waiting for a thread, or waiting for a retry.",
    ),
    Option(
        key="MAX_ACK_PENDING",
        parse=kinds.integer(1, 1_000_000),
        default=1_000,
        help="Unacknowledged messages the server allows a durable. At least MAX_IN_FLIGHT.",
    ),
    Option(
        key="ACK_WAIT_S",
        parse=kinds.number(0.5, 3_600),
        default=10.0,
        help="Seconds of silence after which the server redelivers. At most two thirds of LEASE_S.",
    ),
    Option(
        key="LOCK_TIMEOUT_S",
        parse=kinds.number(0.05, 60),
        default=2.0,
        help="Seconds to wait for another copy of the same event that is being handled right now.",
    ),
    Option(
        key="HANDLER_TIMEOUT_S",
        parse=kinds.number(0.1, 86_400),
        default=60.0,
        help="Seconds after which `delivery.cancelled` turns true. PostgreSQL ends a handler's transaction that asked "
        "nothing of it for one and a half times as long (1 to 30 s more): so a stopped copy frees its key.",
    ),
    Option(
        key="MAX_ATTEMPTS",
        parse=kinds.integer(1, 1_000),
        default=5,
        help="Attempts of a handler before the event becomes a dead letter.",
    ),
    Option(
        key="MAX_STARTS",
        parse=kinds.integer(1, 1_000),
        default=3,
        help="Starts of a handler that ended with the death of the process, before the event becomes a dead letter. "
        "With 1, every redelivered event runs alone.",
    ),
    Option(
        key="BACKOFF",
        parse=kinds.durations,
        default=(1.0, 5.0, 30.0, 120.0),
        help="Seconds before each further attempt, with jitter; the last one repeats.",
    ),
    Option(
        key="UNKNOWN_EVENTS",
        parse=kinds.choice("dead_letter", "ignore"),
        default="dead_letter",
        help="What happens to an event that no handler wants.",
    ),
    Option(
        key="IGNORED_EVENTS",
        parse=kinds.patterns,
        default=(),
        help="Patterns of events that are acknowledged without a handler, e.g. `audit.>`.",
    ),
    Option(
        key="DLQ_TTL_S",
        parse=kinds.number(1, 10**9),
        default=14 * 86_400.0,
        help="Seconds the notice of a dead letter lives in the stream (server 2.11 or newer); the table has the truth.",
    ),
    Option(
        key="SHUTDOWN_TIMEOUT_S",
        parse=kinds.number(0.1, 3_600),
        default=20.0,
        help="Seconds that running handlers get after SIGTERM.",
    ),
)

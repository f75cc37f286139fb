"""
The least that each role needs from NATS, as text for the server's configuration. Pure, no I/O.

Three roles: ``relay`` speaks as the app, ``worker`` reads its own durables, ``admin`` is for
``jetbridge_provision`` alone. The first two create and change nothing. Each has its own reply inbox: with a shared
``_INBOX.>`` every user could read the replies of all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from jetbridge.conf import Settings
from jetbridge.jetstream.advisories import advisory_subjects
from jetbridge.jetstream.provision_spec import ConsumerSpec, wanted

Role = Literal["relay", "worker", "admin"]
ROLES: Final[tuple[Role, ...]] = ("relay", "worker", "admin")
API: Final = "$JS.API"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """
    Subjects that one user may publish to and subscribe to.

    Args:
        optional: What he may publish to as well, if the deployment wants it: subject and what it is for.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    optional: tuple[tuple[str, str], ...] = ()


def permissions(settings: Settings, role: Role) -> Permissions:
    """The allow-lists of ``role``; everything else is denied."""
    optional: dict[str, str]
    publish = {"relay": _relay, "worker": _worker, "admin": _admin}[role](settings)
    subscribe, optional = [f"{settings.inbox_prefix_for(role)}.>"], {}
    if role == "worker":
        for durable in wanted(settings)[1]:
            subscribe += advisory_subjects(durable.stream, durable.name)
            optional[f"{API}.STREAM.MSG.GET.{durable.stream}"] = SAVE
    return Permissions(
        publish=tuple(dict.fromkeys(publish)), subscribe=tuple(subscribe), optional=tuple(optional.items())
    )


def render(settings: Settings, role: Role) -> str:
    """One entry for the ``users`` of the account, with the password taken from the server's environment."""
    allowed = permissions(settings, role)
    user = f"{settings.app_name}_{role}"
    password = f"${user.upper().replace('-', '_')}_PASSWORD"
    return "\n".join(
        [
            f"# {PURPOSE[role]}",
            "{",
            f"  user: {user}",
            f"  password: {password}  # read from the environment of nats-server",
            "  permissions: {",
            *_list("publish", allowed.publish, allowed.optional),
            *_list("subscribe", allowed.subscribe),
            "  }",
            "}",
        ]
    )


PURPOSE: Final = {
    "relay": "jetbridge_relay: may only speak as this app",
    "worker": "jetbridge_consume: its own durables and their acknowledgements",
    "admin": "jetbridge_provision: for the deploy job, not for running processes",
}


# Only where somebody else made the durable; it reads every message of the stream, also those of other services.
SAVE: Final = "optional, saves messages that a durable with a finite max_deliver gives up"


def _list(name: str, subjects: tuple[str, ...], optional: tuple[tuple[str, str], ...] = ()) -> list[str]:
    lines = [f'      "{one}"' for one in subjects]
    lines += [f'      # "{one}"  # {purpose}' for one, purpose in optional]
    return [f"    {name}: [", *lines, "    ]"]


def _relay(settings: Settings) -> list[str]:
    return [f"{settings.app_name}.sync.>", f"{API}.STREAM.INFO.{settings.stream}"]


def _worker(settings: Settings) -> list[str]:
    allowed = []
    for durable in wanted(settings)[1]:
        place = f"{durable.stream}.{durable.name}"
        allowed += [
            f"{API}.CONSUMER.MSG.NEXT.{place}",
            f"{API}.CONSUMER.INFO.{place}",
            f"$JS.ACK.{place}.>",
            # The same with domain and account in front, which servers from 2.14 on can be told to send.
            f"$JS.ACK.*.*.{place}.>",
        ]
    return allowed


def _admin(settings: Settings) -> list[str]:
    own, durables = wanted(settings)
    allowed = [
        *(f"{API}.STREAM.{verb}.{own.name}" for verb in ("INFO", "CREATE", "UPDATE")),
        f"{API}.STREAM.NAMES",
        f"{API}.CONSUMER.LIST.{own.name}",
    ]
    for durable in durables:
        allowed += [f"{API}.STREAM.INFO.{durable.stream}", f"{API}.CONSUMER.LIST.{durable.stream}"]
        allowed += [
            f"{API}.CONSUMER.INFO.{durable.stream}.{durable.name}",
            f"{API}.{create_subject(durable)}",
        ]
    return allowed


def create_subject(durable: ConsumerSpec) -> str:
    """
    Where the create request of a durable goes, without ``$JS.API``.

    It carries the filter, which the server compares with the body: so a permission can allow exactly this
    durable. Several filters do not fit, and the permission then allows any.
    """
    base = f"CONSUMER.CREATE.{durable.stream}.{durable.name}"
    return f"{base}.{durable.filters[0]}" if len(durable.filters) == 1 else base

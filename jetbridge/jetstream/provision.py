"""
Make the own stream and the durables in the sources' streams, by raw JSON calls of the JetStream API.

Called by ``jetbridge_provision``, ``jetbridge_dev``, the demo and tests. Idempotent, merges only, and reads back what
it wrote. Never through the client's dataclasses: a read-modify-write with those wipes every field they do not know.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from jetbridge.conf import Settings
from jetbridge.jetstream import features, provision_notices
from jetbridge.jetstream.connection import Connection
from jetbridge.jetstream.permissions import create_subject
from jetbridge.jetstream.provision_api import JetStreamApi, config_of, error_of
from jetbridge.jetstream.provision_plan import covers, dropped, plan_consumer, plan_stream
from jetbridge.jetstream.provision_report import ConsumerResult, ProvisionReport, StreamResult
from jetbridge.jetstream.provision_spec import (
    Change,
    Config,
    ConsumerSpec,
    Notice,
    Plan,
    StreamFound,
    StreamSpec,
    wanted,
)
from jetbridge.jetstream.subjects import overlap

Mode = Literal["apply", "plan", "check"]

POLL_S: Final = 0.25
TRIES: Final = 10
# Two services that join a shared stream at once read, then write: the later one drops what the earlier one added.
# That takes milliseconds; whoever looks again after this sees it and adds it anew.
SETTLE_S: Final = 0.3

STREAM_EXISTS: Final = 10058
CONSUMER_EXISTS: Final = 10148
SUBJECTS_TAKEN: Final = 10065
FILTER_TAKEN: Final = (10099, 10100)


async def provision(
    connection: Connection,
    settings: Settings,
    *,
    mode: Mode = "apply",
    wait_s: float = 0.0,
    say: Callable[[str], None] = lambda line: None,
) -> ProvisionReport:
    """
    Bring JetStream to what ``settings`` need.

    Args:
        connection: Connected, as the admin role.
        mode: ``plan`` and ``check`` change nothing and report what would be done.
        wait_s: How long to wait for the streams of sources that are not provisioned yet.
        say: Gets a line for people when there is waiting to do.

    Raises:
        BrokerUnreachable: The server went away, or has no JetStream.
        PermissionDenied: The text names the subject that the user lacks.
    """
    run = _Run(JetStreamApi(connection), settings, mode, time.monotonic() + wait_s, say)
    return await run.all()


@dataclass(slots=True)
class _Run:
    api: JetStreamApi
    settings: Settings
    mode: Mode
    deadline: float
    say: Callable[[str], None]
    drift: list[Change] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    async def all(self) -> ProvisionReport:
        own, durables = wanted(self.settings)
        version = self.api.version
        if version < features.RECOMMENDED:
            self.notices.append(
                Notice(code="old_server", text=OLD_SERVER.format(".".join(map(str, version))))
            )
        stream, planned = await self._own_stream(own)
        consumers: list[ConsumerResult] = []
        for name in dict.fromkeys(one.stream for one in durables):
            here = [one for one in durables if one.stream == name]
            known = StreamFound(config=planned) if planned is not None and name == own.name else None
            consumers += await self._durables_in(name, here, known)
        await self._audit_unread(own)
        return ProvisionReport(
            mode=self.mode,
            stream=stream,
            consumers=tuple(consumers),
            drift=tuple(self.drift),
            notices=tuple(dict.fromkeys(self.notices)),
        )

    # --- the own stream --------------------------------------------------------------------------

    async def _own_stream(self, spec: StreamSpec) -> tuple[StreamResult, Config | None]:
        """The result, and in a dry run the configuration the stream would have."""
        action, changes = "unchanged", tuple[Change, ...]()
        lost: list[Change] = []
        for _ in range(TRIES):
            found = await self.api.stream(spec.name, f"{spec.app}.sync.>" if spec.shared else ">")
            plan = plan_stream(spec, found, self.api.version)
            changes = changes or plan.changes
            if plan.step in ("unchanged", "refused") or self.mode != "apply":
                return self._stream_result(spec, found, plan, action, changes)
            verb = plan.step.upper()
            answer = await self.api.call(f"STREAM.{verb}.{spec.name}", plan.request)
            code, text = error_of(answer)
            if code == STREAM_EXISTS:
                continue  # made by another process a moment ago: look again
            if code:
                self.drift.append(await self._stream_refusal(spec, plan, code, text))
                return StreamResult(name=spec.name, action="refused", changes=changes), None
            action = "created" if plan.step == "create" or action == "created" else "updated"
            lost = dropped(f"stream {spec.name}", plan.request, config_of(answer))
            if lost and not spec.shared:
                break
            if spec.shared:
                # Not in step with the others, or all of them would collide again.
                await asyncio.sleep(SETTLE_S * random.uniform(0.7, 1.5))
        self.drift += lost or [replace(one, repair=False, advice=NEVER_STAYS) for one in plan.changes]
        return StreamResult(name=spec.name, action=action, changes=changes), None

    def _stream_result(
        self, spec: StreamSpec, found: StreamFound | None, plan: Plan, done: str, changes: tuple[Change, ...]
    ) -> tuple[StreamResult, Config | None]:
        pending = plan.step not in ("unchanged", "refused")
        self.drift += plan.changes if plan.step == "refused" or self.mode != "apply" else ()
        if found is not None:
            state = StreamFound(config=plan.request, clustered=found.clustered) if pending else found
            self.notices += provision_notices.weaknesses(spec.name, state)
            self.notices += provision_notices.kept_larger(spec, found)
        action = plan.step if plan.step != "unchanged" else done
        return StreamResult(name=spec.name, action=action, changes=changes), plan.request if pending else None

    async def _stream_refusal(self, spec: StreamSpec, plan: Plan, code: int, text: str) -> Change:
        advice = "The server's own words; nothing was changed."
        if code == SUBJECTS_TAKEN:
            others = [
                name
                for one in spec.subjects
                for name in await self.api.streams_with(one)
                if name != spec.name
            ]
            advice = (
                f"The subjects are in stream {', '.join(dict.fromkeys(others)) or '(not visible to this user)'}. "
                'Name that one in JETBRIDGE["STREAM"], or take them out of it.'
            )
        return Change(
            what=f"stream {spec.name}",
            wanted=plan.step,
            found=f"error {code}: {text}",
            repair=False,
            advice=advice,
        )

    # --- the durables ----------------------------------------------------------------------------

    async def _durables_in(
        self, stream: str, specs: list[ConsumerSpec], planned: StreamFound | None
    ) -> list[ConsumerResult]:
        filters = [one for spec in specs for one in spec.filters]
        found = planned or await self._source_stream(stream, filters)
        if found is None:
            missing = [ConsumerResult(stream=stream, name=one.name, action="missing") for one in specs]
            self.drift.append(await self._missing_stream(stream, filters))
            return missing
        self.notices += provision_notices.weaknesses(stream, found)
        if self._partitions_differ(stream, found):
            return [ConsumerResult(stream=stream, name=one.name, action="refused") for one in specs]
        results = [await self._durable(spec) for spec in specs]
        there = await self.api.consumers(stream) or {}
        self.notices += provision_notices.stale(
            stream, self.settings.app_name, there, {one.name for one in specs}
        )
        return results

    def _partitions_differ(self, stream: str, found: StreamFound) -> bool:
        """Asked before any durable is made: one for a partition that nobody fills, or not all, looks like success."""
        differ = False
        for source in self.settings.sources.values():
            if source.stream != stream:
                continue
            problem = provision_notices.check_partitions(source, self.settings.app_name, found.config)
            if isinstance(problem, Change):
                self.drift.append(problem)
                differ = True
            elif problem is not None:
                self.notices.append(problem)
        return differ

    async def _source_stream(self, name: str, filters: list[str]) -> StreamFound | None:
        """The source's stream once it takes our subjects; ``None`` when the waiting time is over."""
        told = False
        while True:
            found = await self.api.stream(name)
            if found is not None and covers(found, filters):
                return found
            if time.monotonic() >= self.deadline:
                return None
            if not told:
                self.say(f"Waiting for stream {name} to take {', '.join(filters)} ...")
                told = True
            await asyncio.sleep(POLL_S)

    async def _missing_stream(self, name: str, filters: list[str]) -> Change:
        elsewhere = [one for one in await self.api.streams_with(filters[0]) if one != name]
        hint = f' It is in stream {elsewhere[0]}: name that in the source\'s "stream".' if elsewhere else ""
        return Change(
            what=f"stream {name}",
            wanted=f"takes {', '.join(filters)}",
            found="missing",
            repair=False,
            advice=f"Provision its publisher, then run this again, or use --wait.{hint}",
        )

    async def _durable(self, spec: ConsumerSpec) -> ConsumerResult:
        def result(action: str, plan: Plan) -> ConsumerResult:
            return ConsumerResult(stream=spec.stream, name=spec.name, action=action, changes=plan.changes)

        for attempt in range(TRIES):
            plan = plan_consumer(spec, await self.api.consumer(spec.stream, spec.name))
            if plan.step == "refused" or self.mode != "apply":
                self.drift += plan.changes
            if plan.step in ("unchanged", "refused") or self.mode != "apply":
                return result(plan.step, plan)
            body = {"stream_name": spec.stream, "config": plan.request, "action": plan.step}
            answer = await self.api.call(create_subject(spec), body)
            code, text = error_of(answer)
            if code == CONSUMER_EXISTS and attempt + 1 < TRIES:
                continue  # another process of this app was faster: compare with what it made
            if code:
                self.drift.append(await self._durable_refusal(spec, code, text))
                return result("refused", plan)
            self.drift += dropped(
                f"durable {spec.name} in stream {spec.stream}", plan.request, config_of(answer)
            )
            break
        return result("created" if plan.step == "create" else "updated", plan)

    async def _durable_refusal(self, spec: ConsumerSpec, code: int, text: str) -> Change:
        found: object = f"error {code}: {text}"
        advice = "The server's own words; nothing was changed."
        if code in FILTER_TAKEN:
            others = await self.api.consumers(spec.stream) or {}
            rivals = [
                f"{name} ({', '.join(theirs)})"
                for name, theirs in others.items()
                if name != spec.name and any(overlap(a, b) for a in theirs for b in spec.filters)
            ]
            found = f"read by {' and '.join(rivals) or 'a durable that is not visible to this user'}"
            advice = (
                "In a work queue each subject has one reader. Delete the other durable, or narrow its filter."
            )
        return Change(
            what=f"durable {spec.name} in stream {spec.stream}",
            wanted=f"reads {', '.join(spec.filters)}",
            found=found,
            repair=False,
            advice=advice,
        )

    async def _audit_unread(self, spec: StreamSpec) -> None:
        found = await self.api.stream(spec.name, f"{spec.app}.sync.>")
        if found is not None and found.messages:
            readers = await self.api.consumers(spec.name)
            if readers is not None:
                filters = [one for theirs in readers.values() for one in theirs]
                self.notices += provision_notices.unread(spec, found, filters)


NEVER_STAYS: Final = "Somebody changes this stream all the time. Find out who, and run this again."
OLD_SERVER: Final = (
    "nats-server {} is older than 2.10: it keeps no metadata, so partition counts cannot be compared. "
    "Use 2.10 or newer."
)

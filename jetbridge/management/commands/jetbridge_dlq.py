"""``manage.py jetbridge_dlq list|show|redrive|discard``: look at dead letters, run them again, or close them."""

from __future__ import annotations

import argparse
import copy
import getpass
import socket
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandParser

from jetbridge.conf import Settings
from jetbridge.dead_letters import store
from jetbridge.dead_letters.discard import discard
from jetbridge.dead_letters.redrive import Acted, Skipped, redrive, rehearse
from jetbridge.dead_letters.store import DeadLetterSummary, Selection
from jetbridge.dead_letters.waiting import wait_until_run
from jetbridge.errors import JetbridgeError
from jetbridge.management import dead_letter_report as report
from jetbridge.management.base import JetbridgeCommand, Outcome
from jetbridge.management.dead_letter_report import Act
from jetbridge.management.exit_codes import ExitCode
from jetbridge.management.options import add_database, count, database, seconds, since
from jetbridge.models import DeadLetterState

LISTED_FOR_PEOPLE: Final = 50
UNFINISHED: Final = (DeadLetterState.OPEN, DeadLetterState.REDRIVING)
# What an act does with the letters it may touch; it also ends with the exit code of what it found.
Deed: TypeAlias = Callable[[Sequence[DeadLetterSummary]], tuple[Acted, ExitCode]]
# What it would do, for --dry-run: the same refusals, and nothing is written.
Rehearsal: TypeAlias = Callable[[Sequence[DeadLetterSummary]], Acted]


class UnknownDeadLetter(JetbridgeError):
    """There is no dead letter of that id."""


class Command(JetbridgeCommand):
    help = (
        "Dead letters: list, show ID, redrive (run again, locally) and discard (close for good, with a note). "
        "redrive and discard act on open ones and need a selector: ids, filters, or --all."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        add_database(parser)
        shared = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
        actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|redrive|discard")
        listing = actions.add_parser("list", help="Show those that are not finished; --all shows every one.")
        showing = actions.add_parser("show", help="Show one with headers, body, traceback and history.")
        redriving = actions.add_parser("redrive", help="Run again in the running consumer.")
        discarding = actions.add_parser("discard", help="Close for good; the rows stay.")
        showing.add_argument("id", type=count, metavar="ID")
        _add_selectors(listing, "Also those that are finished: redriven and discarded ones.")
        for sub in (redriving, discarding):
            _add_selectors(sub, "Every open one. Not together with ids or filters.")
        for sub in (redriving, discarding):
            sub.add_argument("--dry-run", action="store_true", help="Only say what would be done.")
            sub.add_argument("--no-input", action="store_true", help="Do not ask before acting.")
        redriving.add_argument(
            "--wait",
            type=seconds,
            metavar="S",
            help="Wait up to S seconds until they have run (else exit 6).",
        )
        redriving.add_argument("--note", default="", metavar="TEXT", help="Why, for the record.")
        discarding.add_argument("--note", required=True, metavar="TEXT", help="Why, for the record.")
        for sub in (listing, showing, redriving, discarding):
            _repeat(shared, sub)

    def run(self, settings: Settings, options: Namespace) -> Outcome:
        using = database(settings, options)
        match options.action:
            case "list":
                return _list(_selection(options), using, options)
            case "show":
                return _show(options.id, using)
            case "redrive":
                return self._redrive(settings, using, options)
            case _:
                return self._discard(using, options)

    def _redrive(self, settings: Settings, using: str, options: Namespace) -> Outcome:
        def deed(letters: Sequence[DeadLetterSummary]) -> tuple[Acted, ExitCode]:
            acted = redrive(letters, by=whoami(), note=options.note, settings=settings, using=using)
            if options.wait is None or not acted.ids:
                return acted, ExitCode.DONE
            self.progress(f"Waiting up to {options.wait:g} s until {len(acted.ids)} have run.")
            waited = wait_until_run(acted, timeout_s=options.wait, using=using)
            return waited.acted, ExitCode.DONE if waited.finished else ExitCode.TIMED_OUT

        def dry(letters: Sequence[DeadLetterSummary]) -> Acted:
            return rehearse(letters, settings=settings, using=using)

        return self._act("redriven", deed, dry, using, options)

    def _discard(self, using: str, options: Namespace) -> Outcome:
        if not options.note.strip():
            raise ImproperlyConfigured("--note must say why; it is empty.")
        return self._act(
            "discarded",
            lambda letters: (
                discard(letters, by=whoami(), note=options.note, using=using),
                ExitCode.DONE,
            ),
            _open_ones,
            using,
            options,
        )

    def _act(self, verb: str, deed: Deed, dry: Rehearsal, using: str, options: Namespace) -> Outcome:
        selection = _selection(options)
        if selection.all and not replace(selection, all=False).is_empty:
            raise ImproperlyConfigured(
                "--all is every open dead letter; together with ids or filters one of them is not meant. "
                "Leave --all out, or the others."
            )
        if selection.is_empty:
            raise ImproperlyConfigured(
                "Nothing is selected. Give ids, or filters such as --handler or --reason, or --all for every open one."
            )
        unknown = _unknown(selection, using)
        if unknown:
            numbers = ", ".join(str(one.id) for one in unknown)
            stopped = f"Nothing was done because {numbers} {'does' if len(unknown) == 1 else 'do'} not exist."
            if options.format == "json":
                self.progress(stopped)
            act = Act(
                verb=verb, matched=len(selection.ids) - len(unknown), ids=[], skipped=unknown, stopped=stopped
            )
            return _outcome(act, ExitCode.FAILED)
        # Ids are taken as they are, so that one in another state is reported; filters mean open ones.
        states = None if selection.ids else (DeadLetterState.OPEN,)
        letters = store.select(selection, states=states, using=using)
        if options.dry_run:
            acted, code = dry(letters), ExitCode.DONE
        elif letters and not self._confirmed(f"{_letters(len(letters))} will be {verb}.", options):
            self.progress("Nothing was done.")
            return _outcome(Act(verb=verb, matched=len(letters), ids=[], skipped=[]), ExitCode.FAILED)
        else:
            acted, code = deed(letters)
        if acted.skipped and code is ExitCode.DONE:
            code = ExitCode.FAILED
        act = Act(
            verb=verb,
            matched=len(letters),
            ids=acted.ids,
            skipped=acted.skipped,
            is_rehearsal=options.dry_run,
        )
        return _outcome(act, code)

    def _confirmed(self, what: str, options: Namespace) -> bool:
        """Ask a person, on stderr: stdout is one document. Without a terminal there is nobody to ask."""
        if options.no_input or sys.stdin is None or not sys.stdin.isatty():
            return True
        self.stderr.write(f"{what} Continue? [y/N] ", ending="")
        self.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def _repeat(shared: Sequence[argparse.Action], sub: argparse.ArgumentParser) -> None:
    """The command's options are understood behind the sub-command, too, where people write them."""
    for action in shared:
        repeated = copy.copy(action)
        repeated.default = argparse.SUPPRESS  # else it would overrule one given before the sub-command
        sub._add_action(repeated)


def _add_selectors(parser: argparse.ArgumentParser, all_means: str) -> None:
    parser.add_argument("ids", nargs="*", type=count, metavar="ID", help="Of dead letters.")
    parser.add_argument("--handler", metavar="NAME", help="Name of the handler; '' for none.")
    parser.add_argument("--type", metavar="TYPE", help="Event type.")
    parser.add_argument("--source", metavar="APP", help="App that published the event.")
    parser.add_argument("--key", metavar="KEY", help="Ordering key.")
    parser.add_argument("--reason", metavar="REASON", help="Why it was given up.")
    parser.add_argument("--since", type=since, metavar="WHEN", help="Such as 30m, 2h, 7d, 2026-11-22T14:00Z.")
    parser.add_argument("--limit", type=count, metavar="N", help="At most so many, the oldest first.")
    parser.add_argument("--all", action="store_true", help=all_means)


def _selection(options: Namespace) -> Selection:
    return Selection(
        ids=tuple(dict.fromkeys(options.ids)),
        handler=options.handler,
        type=options.type,
        source=options.source,
        key=options.key,
        reason=options.reason,
        since=options.since,
        limit=options.limit,
        all=options.all,
    )


def _list(selection: Selection, using: str, options: Namespace) -> Outcome:
    states = None if selection.all or selection.ids else UNFINISHED
    if selection.limit is None and options.format == "text":
        selection = replace(selection, limit=LISTED_FOR_PEOPLE)
    if selection.is_empty:  # looking changes nothing, so looking at everything needs no --all
        selection = replace(selection, all=True)
    letters = store.select(selection, states=states, using=using)
    unknown = _unknown(selection, using)
    total = store.count(selection, states=states, using=using)
    text = "\n".join([report.table(letters, total), *(f"Skipped {one.id}: {one.why}" for one in unknown)])
    return Outcome(
        code=ExitCode.FAILED if unknown else ExitCode.DONE,
        document={"count": len(letters), "dead_letters": [report.summary(one) for one in letters]},
        text=text,
    )


def _show(dead_letter_id: int, using: str) -> Outcome:
    letter = store.get(dead_letter_id, using=using)
    if letter is None:
        raise UnknownDeadLetter(f"There is no dead letter {dead_letter_id} on database {using!r}.")
    return Outcome(document=report.details(letter), text=report.page(letter))


def _unknown(selection: Selection, using: str) -> list[Skipped]:
    """The ids that are nobody's. One of them stops an act: it is a typo, and the others may be, too."""
    if not selection.ids:
        return []
    known = {one.id for one in store.select(Selection(ids=selection.ids), states=None, using=using)}
    return [Skipped(id=id, why="there is no such dead letter") for id in selection.ids if id not in known]


def _open_ones(letters: Sequence[DeadLetterSummary]) -> Acted:
    """What a discard would close."""
    closed = [one for one in letters if one.state != DeadLetterState.OPEN]
    return Acted(
        ids=[one.id for one in letters if one.state == DeadLetterState.OPEN],
        skipped=[Skipped(id=one.id, why=f"it is {one.state}, not open any more") for one in closed],
    )


def _letters(number: int) -> str:
    return f"{number} dead letter{'' if number == 1 else 's'}"


def _outcome(act: Act, code: ExitCode) -> Outcome:
    return Outcome(code=code, document=act.document(), text=act.text())


def whoami() -> str:
    """``user@host``, for the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for its user
        user = "?"
    return f"{user}@{socket.gethostname()}"

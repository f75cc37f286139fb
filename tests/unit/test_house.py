"""The house rules that no linter can express: fences inside the package, and what a repository must not say."""

from __future__ import annotations

import ast
import fnmatch
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ("jetbridge", "testproject", "tests")
MAX_LINES = 400
MAX_TEST_LINES = 700  # a specification of one module, read top to bottom

# Rows are touched here and nowhere else; a state machine that two files write to has no owner.
MAY_TOUCH_ROWS = (
    "jetbridge/*/store.py",
    "jetbridge/*/store_*.py",
    "jetbridge/models/*.py",
    "jetbridge/migrations/*.py",
    "jetbridge/admin.py",
    "jetbridge/*/admin.py",
    "jetbridge/inbox/unit_of_work.py",
    "jetbridge/outbox/publish.py",
    "jetbridge/runtime/sessions.py",  # the options of a session, no rows
)
MAY_CROSS_THREADS = ("jetbridge/runtime/threads.py",)
MAY_SLEEP = ("tests/waiting.py",)

MANAGERS = {"objects", "_default_manager", "_base_manager"}
CURSOR = {"cursor", "chunked_cursor"}
SQL = re.compile(
    r"\s*(--.*\n\s*)*(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH|COPY|LOCK TABLE|SET LOCAL|NOTIFY|LISTEN)\s"
)
CROSSINGS = {"run_in_executor", "to_thread", "run_coroutine_threadsafe", "call_soon_threadsafe"}
CROSSING_MODULES = {"concurrent", "asgiref"}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def outside(allowed: tuple[str, ...], *folders: str) -> list[Path]:
    return [
        path for path in files(*folders) if not any(fnmatch.fnmatch(name(path), rule) for rule in allowed)
    ]


def imported(module: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def attributes(module: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno


def sql_literals(module: ast.Module) -> Iterator[tuple[str, int]]:
    """String literals that are statements; a docstring that starts with a big word is none."""
    docstrings = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
    for node in ast.walk(module):
        if not isinstance(node, ast.Constant) or id(node) in docstrings:
            continue
        if isinstance(node.value, str) and SQL.match(node.value):
            yield node.value.strip()[:40], node.lineno


def test_only_stores_touch_rows():
    """SQL and managers stay in */store.py, models, migrations, admin, unit of work and publish."""
    found = []
    for path in outside(MAY_TOUCH_ROWS, "jetbridge"):
        found += [
            f"{name(path)}:{line} .{attr}"
            for attr, line in attributes(tree(path))
            if attr in MANAGERS | CURSOR
        ]
        found += [f"{name(path)}:{line} SQL {text!r}" for text, line in sql_literals(tree(path))]

    assert not found, "Move this into a store.py:\n" + "\n".join(found)


def test_only_runtime_threads_crosses_between_loop_and_threads():
    found = []
    for path in outside(MAY_CROSS_THREADS, "jetbridge"):
        found += [
            f"{name(path)}:{line} imports {module}"
            for module, line in imported(tree(path))
            if module.split(".")[0] in CROSSING_MODULES
        ]
        found += [
            f"{name(path)}:{line} .{attr}" for attr, line in attributes(tree(path)) if attr in CROSSINGS
        ]

    assert not found, "Cross in jetbridge/runtime/threads.py:\n" + "\n".join(found)


def test_the_jetstream_room_knows_no_database():
    """The loop owns NATS, threads own Django: a query on the loop would stop every subscription."""
    found = [
        f"{name(path)}:{line} imports {module}"
        for path in files("jetbridge/jetstream")
        for module, line in imported(tree(path))
        if module == "django.db" or module.startswith(("django.db.", "jetbridge.models"))
    ]

    assert not found, "\n".join(found)


def test_tests_wait_for_facts():
    """A sleep in a test is either too short on a slow machine or too long on every other one."""
    found = [
        f"{name(path)}:{node.lineno}"
        for path in outside(MAY_SLEEP, "tests")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep")
    ]

    assert not found, "Use tests.waiting.eventually() at:\n" + "\n".join(found)


def test_files_can_be_read_in_one_sitting():
    lengths = {name(path): len(path.read_text().splitlines()) for path in files(*CODE)}
    found = [
        f"{file}: {lines} lines"
        for file, lines in lengths.items()
        if lines > (MAX_TEST_LINES if file.startswith("tests/") else MAX_LINES) and "/migrations/" not in file
    ]

    assert not found, f"At most {MAX_LINES} lines ({MAX_TEST_LINES} in tests):\n" + "\n".join(found)


def test_importing_jetbridge_needs_only_django():
    """A web process that publishes pays neither for nats-py nor for the models at import time."""
    program = (
        "import sys, jetbridge;"
        "print([m for m in sys.modules if m.split('.')[0] in ('nats', 'psycopg', 'rich') or m == 'jetbridge.models'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )

    assert done.stdout.strip() == "[]"


def test_the_repository_speaks_of_the_product_only():
    """No paths of somebody's machine, no plan of the work: a reader cannot follow either."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git work tree")
    # Put together here, so that this file does not contain what it forbids.
    forbidden = re.compile("|".join(["/wo" + "rk/", "sta" + r"ge \d\b", "/tmp" + "/jb"]), re.IGNORECASE)
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    found = []
    for file in filter(None, listed.stdout.split("\0")):
        text = (ROOT / file).read_text(errors="replace") if (ROOT / file).is_file() else ""
        found += [f"{file}: {match.group()!r}" for match in forbidden.finditer(text)]

    assert not found, "\n".join(found)

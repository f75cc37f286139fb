"""``jetbridge_dev`` in a project as ``startproject`` makes it: one terminal, and nothing left when it is closed."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from jetbridge.errors import BrokerUnreachable
from jetbridge.jetstream import embedded
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
MARK = "JETBRIDGE_DEV_TEST"

SETTINGS = """

INSTALLED_APPS += ["jetbridge", "shop"]
JETBRIDGE = {"APP_NAME": "shop", "NATS_URLS": "embedded", "DESTINATIONS": ["shop"], "SOURCES": ["shop"]}
JETBRIDGE |= {"LEASE_S": 4, "ACK_WAIT_S": 2, "PUBLISH_TIMEOUT_S": 2}  # a killed worker is replaced sooner
DATABASES["default"]["OPTIONS"] = {
    "transaction_mode": "IMMEDIATE",
    "init_command": "PRAGMA journal_mode=WAL;",
    "timeout": 20,
}
"""
MODELS = """
from django.db import models

class Invoice(models.Model):
    number = models.IntegerField()
    note = models.CharField(max_length=50)
"""
HANDLERS = """
import jetbridge
from shop.models import Invoice

@jetbridge.handler("order.placed", source="shop")
def create_invoice(event):
    Invoice.objects.create(number=event.payload["id"], note="{note}")
"""
PUBLISH = """
import jetbridge
from django.db import transaction
with transaction.atomic():
    jetbridge.publish("order.placed", {{"id": {number}}}, to="shop")
"""


class Dev:
    """A running jetbridge_dev and everything it has started, known by a mark in their environment."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, text: str, times: int = 1) -> None:
        eventually(
            lambda: self.said.count(text) >= times, 20, what=f"{text!r} ({times} times) in\n{self.said}"
        )

    def family(self) -> list[str]:
        """Command lines of the processes that it has started; Linux only."""
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if (
                    wanted in (process / "environ").read_bytes()
                    and int(process.name) != self.process.pid
                    and line
                ):
                    found.append(f"{process.name} {line}")
            except (OSError, ValueError):
                continue
        return found

    def member(self, word: str) -> int:
        """Process id of the only one whose command line has ``word``."""
        (one,) = [line for line in self.family() if word in line]
        return int(one.split()[0])

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(how)
        return self.process.wait(30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}

    def manage(self, *command: str) -> None:
        done = subprocess.run(
            [sys.executable, "manage.py", *command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def handlers(self, note: str) -> None:
        (self.folder / "shop" / "handlers.py").write_text(HANDLERS.format(note=note))

    def publish(self, number: int) -> None:
        self.manage("shell", "-c", PUBLISH.format(number=number))

    def note_of(self, number: int) -> str | None:
        with closing(sqlite3.connect(self.folder / "db.sqlite3")) as database:
            found = database.execute("SELECT note FROM shop_invoice WHERE number = ?", [number]).fetchall()
        assert len(found) <= 1, found
        return found[0][0] if found else None

    @contextmanager
    def dev(self, *options: str) -> Iterator[Dev]:
        command = [sys.executable, "manage.py", "jetbridge_dev", *options]
        with ended(Dev(command, self.folder, self.environment, self.folder / "dev.log")) as dev:
            yield dev


@contextmanager
def ended(dev: Dev) -> Iterator[Dev]:
    try:
        yield dev
    except AssertionError as failure:
        raise AssertionError(f"{failure}\njetbridge_dev said:\n{dev.said}") from failure
    finally:
        dev.process.kill()
        dev.process.wait()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; each test works on a copy."""
    made = Project(folder=tmp_path_factory.mktemp("pristine") / "site")
    made.folder.mkdir()
    admin = [sys.executable, "-m", "django"]
    subprocess.run([*admin, "startproject", "site_of_shop", "."], cwd=made.folder, check=True)
    made.manage("startapp", "shop")
    with (made.folder / "site_of_shop" / "settings.py").open("a") as settings:
        settings.write(SETTINGS)
    (made.folder / "shop" / "models.py").write_text(MODELS)
    made.handlers("first")
    made.manage("makemigrations", "-v0", "shop")
    made.manage("migrate", "-v0")
    return made.folder


@pytest.fixture
def project(pristine: Path, tmp_path: Path) -> Project:
    return Project(folder=Path(shutil.copytree(pristine, tmp_path / "site")))


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
once = pytest.mark.sqlite  # the project brings its own database; once is enough


@once
@linux
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_one_terminal_is_enough_and_ctrl_c_leaves_nothing(project: Project, how: signal.Signals) -> None:
    project.publish(1)
    with project.dev() as dev:
        eventually(lambda: project.note_of(1) == "first", 20, what="the effect")
        assert len(dev.family()) >= 3, "server, relay, consumer"

        assert dev.stop(how) == 0, dev.said
        assert dev.family() == []
    with pytest.raises(BrokerUnreachable):
        embedded.read_url(project.folder / ".jetbridge")


@once
def test_changed_code_runs_at_once(project: Project) -> None:
    with project.dev() as dev:
        project.publish(1)
        eventually(lambda: project.note_of(1) == "first", 20)

        project.handlers("second")
        dev.says("handlers.py changed")
        dev.says("Pulling", times=2)
        project.publish(2)

        eventually(lambda: project.note_of(2) == "second", 20)
        assert dev.stop() == 0


@once
def test_broken_code_is_reported_and_waited_for(project: Project) -> None:
    with project.dev() as dev:
        dev.says("Pulling")
        (project.folder / "shop" / "handlers.py").write_text("import jetbridge\nthis is no Python\n")
        dev.says("SyntaxError")
        dev.says("next start in")

        project.handlers("repaired")
        project.publish(1)

        eventually(lambda: project.note_of(1) == "repaired", 20)
        assert dev.stop() == 0


@once
@linux
def test_a_worker_and_a_server_that_die_are_started_again(project: Project) -> None:
    with project.dev("--no-reload") as dev:
        project.publish(1)
        eventually(lambda: project.note_of(1) == "first", 20)

        os.kill(dev.member("jetbridge_relay"), signal.SIGKILL)
        os.kill(dev.member("nats-server"), signal.SIGKILL)
        dev.says("was killed by signal 9")
        project.publish(2)

        eventually(lambda: project.note_of(2) == "first", 40)
        assert dev.stop() == 0


@once
@linux
def test_not_even_sigkill_leaves_a_process_behind(project: Project) -> None:
    with project.dev() as dev:
        dev.says("Pulling")
        dev.stop(signal.SIGKILL)

        eventually(lambda: dev.family() == [], 30, what="every child to have ended")


def test_two_services_share_the_server_and_the_second_takes_over(
    make_services: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    """Started one after the other: the first waits for the stream of the second, the second uses its server."""
    environment = make_services("embedded")
    folder = Path(environment["TESTPROJECT_DIR"], "nats")
    place = "from testproject.orders.services import place_order; place_order('A-1', 10)"
    invoiced = "from testproject.orders.models import Order; assert Order.objects.get().invoiced"

    def manage(service: str, *command: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "manage.py", *command, "--settings", f"testproject.settings.{service}"]
        return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    def dev(service: str) -> Dev:
        command = [
            sys.executable,
            "manage.py",
            "jetbridge_dev",
            "--settings",
            f"testproject.settings.{service}",
        ]
        return Dev(command, ROOT, environment, tmp_path / f"{service}.log")

    for service in ("orders", "billing"):
        assert manage(service, "migrate", "-v0").returncode == 0
    with ended(dev("orders")) as first:
        first.says("Waiting for stream jetbridge-billing")
        assert manage("orders", "shell", "-c", place).returncode == 0
        with ended(dev("billing")) as second:
            second.says("using the server that runs in")
            eventually(lambda: manage("orders", "shell", "-c", invoiced).returncode == 0, 30, interval_s=0.5)

            assert first.stop() == 0
            second.says("store in")
            eventually(lambda: embedded.read_url(folder))
            assert second.stop() == 0
    with pytest.raises(BrokerUnreachable):
        embedded.read_url(folder)


def test_a_server_of_your_own_is_used_where_one_is_named(
    make_services: Callable[[str], dict[str, str]], make_nats_server: Callable[[], object], tmp_path: Path
) -> None:
    server = make_nats_server()
    environment = make_services(str(server.url))  # type: ignore[attr-defined]
    command = [sys.executable, "manage.py", "jetbridge_dev", "--settings", "testproject.settings.orders"]
    with ended(Dev(command, ROOT, environment, tmp_path / "dev.log")) as dev:
        dev.says(f"Connected to {server.url}")  # type: ignore[attr-defined]
        assert dev.stop() == 0

    assert not Path(environment["TESTPROJECT_DIR"], "nats").exists()
    assert "nats      |" not in dev.said

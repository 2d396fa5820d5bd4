"""Real processes to disturb: server and sites of a small federation, and what they left behind."""

from __future__ import annotations

import datetime
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SITES = ("east", "north", "west")
SITE = """\
data: {manifest}
declared_patients: 10
randomness: seeded-for-testing
budget: {{epsilon: 100}}
policy: {{approval: automatic, min_patients: 1}}
release: {{metrics: [loss, accuracy]}}"""


@dataclass
class Process:
    """A process that the nursery has started."""

    nursery: Nursery
    pid: int
    log: Path
    code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        if self.code is None:
            self.code = self.nursery.ask({"poll": self.pid})
        return self.code

    def wait(self, timeout_s: float = 300) -> int:
        """Its exit code, when it has ended."""
        wait_until(lambda: self.poll() is not None, f"{self.log.name} ends", timeout_s)
        assert self.code is not None
        return self.code

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """As `kill -9` does; waits for the end."""
        self.send(signal.SIGKILL)
        self.wait(30)

    def stop(self) -> int:
        """As a service manager does; returns the exit code."""
        self.send(signal.SIGTERM)
        return self.wait(30)


@dataclass
class Nursery:
    """The process that forks the others (see nursery.py)."""

    process: subprocess.Popen[str]
    started: list[Process] = field(default_factory=list)

    def start(self, *arguments: object, log: Path, **more: object) -> Process:
        """A `fedward` command line, running; what it says is added to the log."""
        job = {"start": [str(one) for one in arguments], "log": str(log), **more}
        child = Process(self, int(self.ask(job)), log)
        self.started.append(child)
        return child

    def ask(self, job: dict[str, object]) -> Any:
        """The nursery's answer to one line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def wait_until(happened: Callable[[], object], what: str, timeout_s: float = 300) -> None:
    """Wait for something that must happen within that time."""
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end, f"waited {timeout_s:g} s until {what}"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def warm_nursery(_own_cache: None) -> Iterator[Nursery]:
    """One nursery for all tests."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "nursery.py")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == "ready"
        yield Nursery(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(30)
        finally:
            process.kill()


@pytest.fixture
def nursery(warm_nursery: Nursery) -> Iterator[Nursery]:
    """The nursery; what a test starts ends with it, and what that said is shown where it fails."""
    warm_nursery.started.clear()
    try:
        yield warm_nursery
    finally:
        for process in warm_nursery.started:
            process.kill()
        for log in dict.fromkeys(process.log for process in warm_nursery.started):
            with suppress(OSError):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")


@dataclass
class Federation:
    """A server and its sites; every process of one has one log."""

    nursery: Nursery
    study: Path
    changes: list[str]
    folder: Path
    names: tuple[str, ...] = SITES
    more: dict[str, dict[str, object]] = field(default_factory=dict)  # by process: for the nursery

    @property
    def out(self) -> Path:
        """The server's run directory."""
        return self.folder / "run"

    @property
    def file(self) -> Path:
        """federation.yaml."""
        return self.folder / "federation" / "federation.yaml"

    def site_yaml(self, name: str) -> Path:
        """A site's settings."""
        return self.file.parent / name / "site.yaml"

    def log(self, name: str) -> Path:
        """What the processes of this name have said."""
        return self.folder / f"{name}.log"

    def serve(self) -> Process:
        """Start the server; the same call again goes on."""
        command = ["server", self.study, "--federation", self.file, "--out", self.out]
        return self._start("server", command + self._sets())

    def join(self, name: str) -> Process:
        """Start a site."""
        return self._start(name, ["site", "run", self.site_yaml(name)])

    def simulate(self) -> Path:
        """Run the same study in one process; returns its run directory."""
        out = self.folder / "simulated"
        command = ["simulate", self.study, "--no-baselines", "--out", out]
        assert self._start("simulation", command + self._sets()).wait(240) == 0
        return out

    def move(self, host: str) -> None:
        """Let the server be at another address."""
        from server.provision import SERVER, SERVER_KEY, make_server_certificate

        for name in (SERVER, SERVER_KEY):
            (self.file.parent / name).unlink()
        for path in (self.file, *map(self.site_yaml, self.names)):
            path.write_text(path.read_text().replace("127.0.0.1", host))
        now = datetime.datetime.now(datetime.UTC)
        make_server_certificate(self.file.parent, host=host, now=now)

    def rounds(self) -> int:
        """How many rounds are done."""
        with suppress(OSError):
            return (self.out / "history.jsonl").read_text().count("\n")
        return 0

    def _start(self, name: str, command: list[object]) -> Process:
        return self.nursery.start(*command, log=self.log(name), **self.more.get(name, {}))

    def _sets(self) -> list[object]:
        return [part for change in self.changes for part in ("--set", change)]


@pytest.fixture
def found(
    nursery: Nursery, tiny: Path, tmp_path: Path, enrol: Callable[..., Path]
) -> Callable[..., Federation]:
    """Founds a federation of three sites on the tiny data, for a private study of some rounds."""

    def found(rounds: int, *changes: str, **federation_yaml: object) -> Federation:
        settings = SITE.format(manifest=tiny / "manifest.csv")
        enrol(tmp_path / "federation", dict.fromkeys(SITES, settings), **federation_yaml)
        private = ["privacy.enabled=true", "privacy.target_epsilon=8", f"training.rounds={rounds}"]
        return Federation(nursery, tiny / "study.yaml", [*private, *changes], tmp_path)

    return found


def history(run: Path) -> list[dict[str, Any]]:
    """What a run's rounds brought, without what must differ: time, keys, bytes of signatures."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    own = {"seconds", "heads", "bytes_up", "bytes_down"}
    return [{key: value for key, value in line.items() if key not in own} for line in lines]


def charged(state: Path) -> list[tuple[Any, ...]]:
    """What a ledger says that each patient was charged with: (unit, rate, sigma, steps)."""
    from client.ledger import FILE
    from client.ledger_book import ROW, Reserved

    with sqlite3.connect(state / FILE) as ledger:
        bodies = [body for (body,) in ledger.execute("SELECT body FROM rows ORDER BY number")]
    rows = [row for row in map(ROW.validate_json, bodies) if isinstance(row, Reserved)]
    steps = [(row.round.round_number, row.charge.unit, row.charge.mechanism) for row in rows]
    return [
        (number, unit.value, one.sampling_rate, one.noise_multiplier, one.steps)
        for number, unit, one in steps
    ]


@dataclass(frozen=True)
class Told:
    """What the tests ask of a run; a fixture, since tests import nothing of one another."""

    history: Callable[[Path], list[dict[str, Any]]] = history
    charged: Callable[[Path], list[tuple[Any, ...]]] = charged
    wait_until: Callable[..., None] = wait_until

    def same_as_undisturbed(self, federation: Federation, undisturbed: Path) -> None:
        """Assert it: weights, rounds, what was charged, and receipts that are whole."""
        from client.receipts_table import verify_receipts
        from common.config import load_site

        expected = json.loads((undisturbed / "result.json").read_text())
        result = json.loads((federation.out / "result.json").read_text())
        assert result["weights_sha256"] == expected["weights_sha256"]
        assert self.history(federation.out) == self.history(undisturbed)
        lines = (federation.out / "history.jsonl").read_text().splitlines()
        heads = [json.loads(line)["heads"] for line in lines]
        for name in federation.names:
            state = federation.site_yaml(name).parent / "state"
            assert self.charged(state) == self.charged(undisturbed / "sites" / name / "state"), name
            for head in [one[name] for one in heads if name in one]:
                verified = verify_receipts(load_site(federation.site_yaml(name)), head)
                assert not verified.problems, name


@pytest.fixture(scope="session")
def told() -> Told:
    """What the tests ask of a run."""
    return Told()

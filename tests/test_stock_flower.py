"""Flower's own processes run a study by the very commands of deploy/STOCK_FLOWER.md."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import simulations
from client.keys import open_keys
from client.ledger import open_ledger
from client.training import privacy_plan
from common.config import load_study, to_yaml
from common.models import read_card
from common.privacy.epsilon import TrustModel

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "deploy" / "STOCK_FLOWER.md").read_text()
PORTS = ("8000", "9092", "9094", "9095")
MARK = "FEDWARD_STOCK_TEST"  # every process that comes of a test has it in its environment
MOST_S = 540.0  # two idle cores take a sixth of it
WriteTiny = Callable[..., Path]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment whose processes are all killed at the end, whoever their parents are."""
    own = str(uuid.uuid4())
    (tmp_path / "bin").mkdir()
    fedward = tmp_path / "bin" / "fedward"
    fedward.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "fedward.py"}" "$@"\n')
    fedward.chmod(0o700)
    folders = [str(fedward.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("REPOSITORY", str(ROOT))
    monkeypatch.delenv("PYTHONPATH", raising=False)  # the code that runs is the bundle's
    with monkeypatch.context() as patch:
        patch.setenv(MARK, own)
        yield
    for sign in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + 10
        while (alive := marked(own)) and time.monotonic() < end:
            for process in alive:
                with suppress(ProcessLookupError):
                    os.kill(process, sign)
            time.sleep(0.5)
    assert marked(own) == []


def marked(own: str) -> list[int]:
    """The processes with this mark in their environment."""
    wanted, found = f"{MARK}={own}".encode(), []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def commands() -> str:
    """The page's commands, with ports that are free on this machine."""
    script = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL))
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in PORTS]
        for port, free in zip(PORTS, sockets, strict=True):
            free.bind(("127.0.0.1", 0))
            assert re.search(rf"\b{port}\b", script)
            script = re.sub(rf"\b{port}\b", f"<{port}>", script)
        for port, free in zip(PORTS, sockets, strict=True):
            script = script.replace(f"<{port}>", str(free.getsockname()[1]))
    return f"set -eu\n{script}"


def follow(script: str, folder: Path) -> str:
    """Run a script to its end, at most for as long as a test may; returns what was said."""
    said = folder / "said.log"
    with said.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=folder, stdout=file, stderr=subprocess.STDOUT
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(MOST_S)
    logs = [said, *folder.glob("*.log")]
    return "\n".join(f"--- {log.name}\n{log.read_text()[-4000:]}" for log in dict.fromkeys(logs))


@pytest.mark.timeout(MOST_S + 60)
@pytest.mark.usefixtures("started", "no_report")
def test_the_pages_commands_come_to_a_simulations_weights(
    tmp_path: Path, write_tiny: WriteTiny
) -> None:
    """Two supernodes, TLS, node keys, two private rounds: paid for, stated, the very bits."""
    data = write_tiny(tmp_path / "data", {"north": 8, "south": 8})
    changes = [
        "federation.min_sites=2",
        "privacy.enabled=true",
        "simulation.site_defaults.declared_patients=10",
    ]
    study = load_study(data / "study.yaml", changes)
    (data / "study.yaml").write_text(to_yaml(study))
    logs = follow(commands(), tmp_path)
    assert (tmp_path / "run" / "result.json").is_file(), logs
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    expected = simulations.run(study, out=tmp_path / "inline", baselines=False)
    assert result["weights_sha256"] == expected.weights_sha256
    card = read_card(tmp_path / "run" / "model.safetensors")
    assert card.weights_sha256 == expected.weights_sha256
    assert result["privacy"]["trust_model"] == TrustModel.SENT
    for name, site in result["sites"].items():
        assert (site["rounds_joined"], site["stated"], site["verified"]) == (2, True, True)
        state = tmp_path / name / "state"
        paid = open_ledger(state, key=open_keys(state).ledger).taken(study.sha256)
        plan = privacy_plan(study, declared=10)
        assert paid.history == plan.patient_history(2)
        # What ran there is what was sent.
        assert list((tmp_path / name / "flower").rglob("client/stock.py"))
    assert set(result["sites"]) == {"north", "south"}

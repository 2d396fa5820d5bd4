"""A real federation on one machine: processes, mutual TLS, and the very bits of a simulation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import simulations
from common.config import load_study
from common.models import read_card

ROOT = Path(__file__).parents[1]
ROUNDS = 3
CHANGES = [f"training.rounds={ROUNDS}", "federation.min_sites=3"]
Write = Callable[..., Path]


def fedward(*arguments: object) -> list[str]:
    """A command line of this very interpreter."""
    return [sys.executable, str(ROOT / "fedward.py"), *map(str, arguments)]


@contextmanager
def processes(commands: list[list[str]], log: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """These commands, running; stopped as a service manager would, and killed if that fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log.mkdir(exist_ok=True)
    started = []
    try:
        for number, command in enumerate(commands):
            with (log / f"{number}.log").open("w") as file:
                started.append(subprocess.Popen(command, env=environment, stderr=file, text=True))
        yield started
    finally:
        for process in started:
            process.terminate()
        end = time.monotonic() + 30
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
        for process in started:
            process.kill()
            process.wait(30)


@pytest.fixture
def federation(tmp_path: Path, tiny: Path, enrol: Write) -> Path:
    """Three sites on the tiny data, each with its own patients; returns federation.yaml."""
    settings = (
        f"data: {tiny / 'manifest.csv'}\ndeclared_patients: 10\nrandomness: seeded-for-testing\n"
        "policy: {approval: automatic, privacy: optional, min_patients: 1}\n"
        "release: {metrics: [loss, accuracy]}"
    )
    return enrol(tmp_path / "federation", dict.fromkeys(["east", "north", "west"], settings))


@pytest.mark.usefixtures("no_report")
def test_processes_come_to_the_bits_of_a_simulation(
    tiny: Path, tmp_path: Path, federation: Path
) -> None:
    """Server and sites as processes, the server and a site killed on the way: the same weights."""
    study = tiny / "study.yaml"
    expected = simulations.run(
        load_study(study, CHANGES), out=tmp_path / "inline", baselines=False
    ).weights_sha256
    sets = [part for change in CHANGES for part in ("--set", change)]
    out = tmp_path / "run"
    server = fedward("server", study, "--federation", federation, *sets, "--out", out)
    sites = [fedward("site", "run", site) for site in federation.parent.glob("*/site.yaml")]
    with processes([server, *sites], tmp_path) as running:
        wait_for_line(out / "history.jsonl", running[0], tmp_path)
        for process in running[:2]:
            process.kill()
        with processes([server, sites[0]], tmp_path / "again") as again:
            assert again[0].wait(120) == 0, (tmp_path / "again" / "0.log").read_text()
            alive = [again[1], *running[2:]]
            for process in alive:
                process.send_signal(signal.SIGTERM)
            assert [process.wait(30) for process in alive] == [0, 0, 0]
    result = json.loads((out / "result.json").read_text())
    assert result["weights_sha256"] == expected
    assert {name: one["rounds_joined"] for name, one in result["sites"].items()} == dict.fromkeys(
        ["east", "north", "west"], ROUNDS
    )
    assert read_card(out / "model.safetensors").weights_sha256 == expected


def wait_for_line(history: Path, server: subprocess.Popen[str], log: Path) -> None:
    """Wait until a round is done."""
    deadline = time.monotonic() + 120
    while not (history.exists() and history.read_text()):
        alive = server.poll() is None and time.monotonic() < deadline
        assert alive, (log / "0.log").read_text()
        time.sleep(0.02)

"""A run that is killed, wherever and whenever, goes on to the bits of one that never was."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import simulations
from common.config import load_study

pytestmark = pytest.mark.usefixtures("no_report")

CHANGES = ["training.rounds=3"]

# Imports once, then forks a process a kill; each kills itself, as `kill -9` would, when the
# function is called for the given time, or is killed from outside after some seconds.
DRIVER = """
import importlib, json, os, signal, sys, time
from pathlib import Path
import torch._dynamo  # torch's optimizers import it when they are made, which takes seconds
from common.config import load_study
from simulations import runner

study = load_study(Path(sys.argv[1]), json.loads(sys.argv[2]))

def die_at(name, count):
    module, _, function = name.rpartition(".")
    module = importlib.import_module(module)
    original, calls = getattr(module, function), []
    def counted(*arguments, **named):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)
    setattr(module, function, counted)

for out, name, count in json.loads(sys.argv[3]):
    child = os.fork()
    if not child:
        if name:
            die_at(name, count)
        runner.run(study, out=Path(out))
        os._exit(0)
    if not name:
        time.sleep(count)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else "ended", flush=True)
"""

MOMENTS = {
    "while the run directory is made": ("simulations.folder._write_site", 2),
    "in the middle of a round": ("server.rounds._take", 5),
    "between the history's line and the checkpoint": ("server.rounds.write_checkpoint", 2),
    "between checkpoint and model": ("simulations.runner.save", 1),
    "in the middle of the baselines": ("simulations.runner.train_arm", 3),
    "before the result": ("simulations.runner.summarise", 1),
    "at some time": ("", random.uniform(0.05, 1.5)),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, write_tiny: Any) -> dict[str, Path]:
    """Run directories of killed runs by the moment, and `undisturbed`."""
    folder = write_tiny(tmp_path_factory.mktemp("killed") / "tiny")
    found = {moment: folder / f"run-{number}" for number, moment in enumerate(MOMENTS)}
    jobs = [[str(found[moment]), *where] for moment, where in MOMENTS.items()]
    arguments = [str(folder / "study.yaml"), json.dumps(CHANGES), json.dumps(jobs)]
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER, *arguments],
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    *chosen, random_one = driver.stdout.split()
    assert chosen == ["9"] * (len(MOMENTS) - 1), driver.stdout + driver.stderr
    assert random_one in ("9", "ended"), driver.stderr  # a fast machine may be done before
    simulations.run(load_study(folder / "study.yaml", CHANGES), out=folder / "undisturbed")
    return found | {"undisturbed": folder / "undisturbed"}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_same_bits(killed: dict[str, Path], moment: str) -> None:
    """Killed by SIGKILL and resumed: the same weights, history and numbers as undisturbed."""
    out, undisturbed = killed[moment], killed["undisturbed"]
    begun = (out / "study.yaml").is_file()  # a kill at some time may come before
    study = load_study(out.parent / "study.yaml", CHANGES)
    result = simulations.run(study, out=out, resume=begun).as_json()
    expected = json.loads((undisturbed / "result.json").read_text())
    for key in ("weights_sha256", "evaluation", "comparisons", "sites", "bytes_up", "bytes_down"):
        assert result[key] == expected[key], key
    assert _history(out) == _history(undisturbed)
    assert _names(out) == _names(undisturbed)


def _history(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    # Each run's sites have keys of their own, so their receipts have other hashes.
    own = {"seconds", "heads"}
    return [{key: value for key, value in line.items() if key not in own} for line in lines]


def _names(out: Path) -> list[str]:
    return sorted(str(path.relative_to(out)) for path in out.rglob("*"))

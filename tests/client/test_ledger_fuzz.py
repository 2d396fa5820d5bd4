"""The ledger killed at random points: never overspent, never undercounted, always resumable."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUZZ = Path(__file__).parent / "ledger_fuzz.py"


@pytest.fixture
def fast_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a kill of a process doesn't ask for a sync."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="fedward-", dir=memory))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("schedules", "first_seed"),
    [(100, 0), pytest.param(1000, 100, marks=pytest.mark.long)],
)
def test_no_schedule_of_kills_breaks_the_ledger(
    fast_disk: Path, schedules: int, first_seed: int
) -> None:
    """Whatever is killed, full, shared or put back: the oracle's list and the ledger agree."""
    run = subprocess.run(
        [sys.executable, str(FUZZ), str(fast_disk), str(schedules), str(first_seed)],
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    happened = json.loads(run.stdout)
    print(happened)
    # It must have been hard: every kind of trouble came, often.
    assert happened["lives"] > 4 * schedules
    assert happened["killed"] > 2 * schedules
    least = {"over": 1.0, "full": 0.5, "settled": 1.0, "resumed": 2.0, "put back": 0.1}
    assert {what for what, often in least.items() if happened[what] < often * schedules} == set()

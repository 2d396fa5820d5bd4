"""The README's federation of processes: its own commands, in a shell, phantom to evaluation."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_COMMANDS, MOST_S = 12, 240
_, _, AFTER = (
    (ROOT / "README.md").read_text().partition("### A federation of processes on one machine\n")
)
BLOCKS = re.findall(r"```sh\n(.*?)```", re.split(r"^##", AFTER, flags=re.MULTILINE)[0], re.DOTALL)
CHECK, NOT_YET, APPROVE = 1, 3, 4  # blocks: names in the phantom, nobody has approved, a hash


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder; processes that were left running in it are ended."""
    yield tmp_path
    for file in tmp_path.glob("block-*.pid"):
        with suppress(ProcessLookupError):
            os.killpg(int(file.read_text()), signal.SIGKILL)
    for log in sorted(tmp_path.glob("block-*.log")):
        print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")


def shell(home: Path, number: int, script: str) -> int:
    """Run a block as a person would, in a shell of its own; its exit code."""
    own = f'fedward() {{ "{sys.executable}" "{ROOT / "fedward.py"}" "$@"; }}\nset -e\n'
    with (home / f"block-{number}.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-c", own + script],
            cwd=home,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (home / f"block-{number}.pid").write_text(str(process.pid))
    return process.wait(MOST_S)


def test_it_takes_few_commands() -> None:
    """A person types at most twelve."""
    commands = re.findall(r"^(?:fedward|for|cat) ", "".join(BLOCKS), flags=re.MULTILINE)
    assert 9 <= len(commands) <= MOST_COMMANDS


@pytest.mark.timeout(600)
def test_the_commands_run_a_private_study(home: Path) -> None:
    """Word for word, but for a free port: three hospitals finish five private rounds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for number, block in enumerate(BLOCKS):
        script = block.replace("9092", port)
        if number == APPROVE:
            (asked,) = (home / "hospital-1/state/studies").glob("*.json")
            script = script.replace("HASH", asked.stem[:16])
        code = shell(home, number, script)
        assert code == (1 if number in (CHECK, NOT_YET) else 0), block
    assert "1 thing must be mended" in (home / f"block-{CHECK}.log").read_text()
    assert "not-approved" in (home / f"block-{NOT_YET}.log").read_text()
    result = json.loads((home / "runs/trial/result.json").read_text())
    assert result["privacy"]["enabled"]
    assert {name: one["rounds_joined"] for name, one in result["sites"].items()} == dict.fromkeys(
        ["hospital-1", "hospital-2", "hospital-3"], 5
    )
    for name in result["sites"]:
        assert list((home / name / "state" / "statements").iterdir())
    scored = (home / f"block-{len(BLOCKS) - 1}.log").read_text()
    assert "only the patients that the site itself keeps for testing are scored" in scored
    assert "macro AUROC" in scored

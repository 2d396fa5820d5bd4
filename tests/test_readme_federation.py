"""The README's federation of processes: its own commands, in a shell, phantom to evaluation."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_COMMANDS, MOST_S = 12, 240
_, _, AFTER = (
    (ROOT / "README.md").read_text().partition("### A federation of processes on one machine\n")
)
BLOCKS = re.findall(r"```sh\n(.*?)```", re.split(r"^##", AFTER, flags=re.MULTILINE)[0], re.DOTALL)
CHECK, APPROVE, WATCH = 1, 4, 5  # blocks: names in the phantom; a hash; on a terminal
SITES = ("hospital-1", "hospital-2", "hospital-3")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder; processes that were left running in it are ended."""
    yield tmp_path
    for file in tmp_path.glob("block-*.pid"):
        with suppress(ProcessLookupError):
            os.killpg(int(file.read_text()), signal.SIGKILL)
    for log in sorted(tmp_path.glob("*.log")):
        print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")


def shell(home: Path, number: int, script: str) -> int:
    """Run a block as a person would, in a shell of its own; its exit code."""
    own = f'fedward() {{ "{sys.executable}" "{ROOT / "fedward.py"}" "$@"; }}\nset -e\n'
    ours, theirs = os.openpty()
    log = os.open(home / f"block-{number}.log", os.O_WRONLY | os.O_CREAT)
    out = theirs if number == WATCH else log
    process = subprocess.Popen(
        ["bash", "-c", own + script],
        cwd=home,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        start_new_session=True,
    )
    os.close(theirs)
    (home / f"block-{number}.pid").write_text(str(process.pid))
    if number == WATCH:
        reader = threading.Thread(target=copy, args=(ours, log), daemon=True)
        reader.start()
    code = process.wait(MOST_S)
    if number == WATCH:
        reader.join(MOST_S)
    os.close(ours)
    os.close(log)
    return code


def copy(source: int, target: int) -> None:
    """What a terminal shows, until nobody writes to it any more."""
    with suppress(OSError):  # how Linux tells that the other end is closed
        while said := os.read(source, 2**16):
            os.write(target, said)


def wait_for(look: Callable[[], bool]) -> None:
    """Until it is so; fails after a while."""
    end = time.monotonic() + MOST_S
    while not look():
        assert time.monotonic() < end
        time.sleep(0.2)


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
            wait_for(lambda: len(list(home.glob("hospital-*/state/studies/*.json"))) == len(SITES))
            (asked,) = (home / "hospital-1/state/studies").glob("*.json")
            script = script.replace("HASH", asked.stem[:16])
        code = shell(home, number, script)
        assert code == (1 if number == CHECK else 0), block
    assert "1 thing must be mended" in (home / f"block-{CHECK}.log").read_text()
    assert "to approve the study" in (home / "server.log").read_text()
    watched = (home / f"block-{WATCH}.log").read_text()
    assert watched.index("round 0 of 5") < watched.index("finished; the numbers")
    assert "hospital-1, hospital-2, hospital-3 signed: epsilon 8.00 per patient" in watched
    result = json.loads((home / "runs/trial/result.json").read_text())
    assert result["privacy"]["enabled"]
    assert {name: one["rounds_joined"] for name, one in result["sites"].items()} == dict.fromkeys(
        SITES, 5
    )
    for name in result["sites"]:
        assert list((home / name / "state" / "statements").iterdir())
    scored = " ".join(watched.partition("finished; the numbers")[2].split())
    assert "only the patients that the site itself keeps for testing are scored" in scored
    assert "macro AUROC" in scored

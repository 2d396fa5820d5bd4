"""Whether a process is at work in a run directory, as others see it."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import BadInput
from server import presence
from server.presence import Waiting, at_work, is_at_work, tell, told

HOLDS = """
import pathlib, sys, time
from server import presence
from server.presence import at_work
with at_work(pathlib.Path(sys.argv[1])):
    print("here", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_is_no_longer_at_work(tmp_path: Path) -> None:
    """While it lives others see it and are kept out; a kill leaves nothing to be cleared away."""
    assert not is_at_work(tmp_path)
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        assert is_at_work(tmp_path)
        with pytest.raises(BadInput, match="another process is at work"), at_work(tmp_path):
            pass
        process.kill()
    assert not is_at_work(tmp_path)
    with at_work(tmp_path):
        assert is_at_work(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_look_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who begins to work in the moment of a look tries again."""
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(presence.time, "sleep", lambda _: os.close(looking))
    with at_work(tmp_path):
        assert is_at_work(tmp_path)


def test_without_locks_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that has none nobody is kept out, and nobody is said to have stopped."""

    def unknown(*_given: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with at_work(tmp_path):
        assert is_at_work(tmp_path)


def test_whom_it_waits_for_is_told_until_the_wait_is_over(tmp_path: Path) -> None:
    """What is told last holds, until it is taken back or its time has come."""
    assert told(tmp_path) is None
    for missing in (2, 1):
        waiting = Waiting(missing, {"north": "not reachable"}, until=time.time() + 60)
        tell(tmp_path, waiting)
        assert told(tmp_path) == waiting
    tell(tmp_path, None)
    assert told(tmp_path) is None
    tell(tmp_path, Waiting(1, {}, until=time.time() - 1))
    assert told(tmp_path) is None

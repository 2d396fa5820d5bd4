"""Files of a site's state folder: whole or not there, however large they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from client import state
from client.state import write_private


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 95])
def test_a_file_is_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """In pieces of any size, each written at once or not; for its owner alone."""
    monkeypatch.setattr(state, "_AT_ONCE", 10)
    content = bytes(range(size))
    write_private(tmp_path / "file", (b"line\n", memoryview(content), b"end"))
    assert (tmp_path / "file").read_bytes() == b"line\n" + content + b"end"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_disk_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Also in the middle of a large piece: what was there before is still there."""
    monkeypatch.setattr(state, "_AT_ONCE", 10)
    (tmp_path / "file").write_bytes(b"before")
    syncs = []

    def full(_descriptor: int) -> None:
        syncs.append(1)
        if len(syncs) == failing:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(OSError, match="No space"):
        write_private(tmp_path / "file", (b"line\n", memoryview(bytes(30))))
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"

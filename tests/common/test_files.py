"""Files on disk: whole or not there, and a cache folder that this user can write."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from common.errors import BadInput
from common.files import cache_folder, write_atomically


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    """The content is there, and nothing else beside it."""
    path = tmp_path / "a.json"
    for content in (b"one", b"two", b""):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("place", "step"), [(os, "fsync"), (Path, "replace")])
def test_what_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: object, step: str
) -> None:
    """Stopped before the last step, the old content is there and no half of the new."""
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, step, stopped)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new" * 1000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_cache_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new cache folder is for this user alone, and asking again changes nothing."""
    monkeypatch.setenv("FEDWARD_CACHE", str(tmp_path / "a" / "cache"))
    for _ in range(2):
        folder = cache_folder()
        assert folder == tmp_path / "a" / "cache"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_without_a_word_the_cache_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XDG_CACHE_HOME if set, else .cache in the home folder."""
    monkeypatch.delenv("FEDWARD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fedward"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "fedward"


def test_a_cache_folder_that_cant_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in its place is named, with the remedy."""
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        monkeypatch.setenv("FEDWARD_CACHE", str(tmp_path / place))
        with pytest.raises(BadInput, match=r"^FEDWARD_CACHE: .* set FEDWARD_CACHE to a folder"):
            cache_folder()

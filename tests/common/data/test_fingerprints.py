"""Content hashes that are remembered: never an old one for a changed file."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.data import fingerprints
from common.data.fingerprints import content_hashes
from common.errors import BadData

KEY = b"k" * 32
HASH_OFTEN = """\
import hashlib, sys
from pathlib import Path
from common.data import fingerprints
fingerprints._TICK_S = -1.0
folder = Path(sys.argv[1])
files = [folder / name for name in ("a", "b", "c")]
plain = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
for _ in range(200):
    for memory in (folder / "memory").glob("contents-*"):
        memory.write_bytes(b"")  # so that each round writes
    assert fingerprints.content_hashes(files, memory=folder / "memory", key=b"k" * 32) == plain
"""


@pytest.fixture(autouse=True)
def _aged_files_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files written just now count as settled, except where a test says otherwise."""
    monkeypatch.setattr(fingerprints, "_TICK_S", -1.0)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three files."""
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_text(f"content of {path.name}")
    return paths


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose content was read."""
    names: list[str] = []
    real = fingerprints._read

    def listed(path: Path) -> tuple[str, str, bool]:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(fingerprints, "_read", listed)
    return names


def hashes(paths: list[Path]) -> tuple[str, ...]:
    """The hashes, remembered beside the files."""
    return content_hashes(paths, memory=paths[0].parent / "memory", key=KEY)


def plain(paths: list[Path]) -> tuple[str, ...]:
    """The hashes, computed anew."""
    return tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)


def test_files_are_read_once(files: list[Path], read: list[str]) -> None:
    """The second time no content is read, and the hashes are those of the contents."""
    assert hashes(files) == plain(files)
    assert hashes(files) == plain(files)
    assert read == ["a", "b", "c"]


def test_what_is_used_stays(files: list[Path]) -> None:
    """Pruning goes by the last use, so a use without a change is noted."""
    hashes(files)
    (memory,) = (files[0].parent / "memory").iterdir()
    os.utime(memory, (0, 0))
    hashes(files)
    assert memory.stat().st_mtime > 0


def test_the_same_file_twice_has_its_hash_twice(files: list[Path]) -> None:
    """Sources may share a file."""
    assert hashes([files[0], files[1], files[0]]) == plain([files[0], files[1], files[0]])


@pytest.mark.parametrize("how", ["written", "written and dated back", "replaced", "grown", "link"])
def test_a_changed_file_is_noticed(files: list[Path], read: list[str], how: str) -> None:
    """In place, with its old size and date, or by another file of the same name."""
    hashes(files)
    path, old = files[1], files[1].stat()
    time.sleep(0.02)  # a tick of the clock, which `_TICK_S` would wait for
    match how:
        case "written":
            path.write_text("content of x")
        case "written and dated back":
            path.write_text("content of x")
            os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
        case "replaced":
            other = path.with_name("x")
            other.write_text("content of x")
            os.utime(other, ns=(old.st_atime_ns, old.st_mtime_ns))
            other.replace(path)
        case "grown":
            with path.open("a") as file:
                file.write("!")
        case "link":
            path.unlink()
            path.symlink_to(files[0])
    read.clear()
    assert hashes(files) == plain(files)
    assert read == ["b"]


def test_a_file_that_changed_just_now_is_read_again(
    files: list[Path], read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within one tick of the clock could not be seen, so nothing is remembered."""
    monkeypatch.setattr(fingerprints, "_TICK_S", 3.0)
    hashes(files)
    hashes(files)
    assert read == ["a", "b", "c"] * 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    files: list[Path], read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hash may be that of neither content."""
    digest = hashlib.file_digest

    def slow(file: object, name: str) -> object:
        found = digest(file, name)  # type: ignore[arg-type] # an open file, as the real one takes
        files[0].write_text("something else")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", slow)
        hashes(files[:1])
    assert hashes(files[:1]) == plain(files[:1])
    assert read == ["a", "a"]


def test_what_is_remembered_is_private_and_names_nobody(files: list[Path]) -> None:
    """Mode 0700 and 0600, no path inside, other names under another key."""
    hashes(files)
    (memory,) = (files[0].parent / "memory").iterdir()
    assert stat.S_IMODE(memory.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(memory.stat().st_mode) == 0o600
    assert files[0].parent.name not in memory.read_text()
    content_hashes(files, memory=memory.parent, key=b"other")
    first, second = (set(json.loads(p.read_text())) for p in memory.parent.iterdir())
    assert not first & second


@pytest.mark.parametrize("junk", [b"", b"{", b"[1]", b'{"a": 1}', b"\xff", b'{"a": ["b"]}'])
def test_a_broken_memory_is_made_anew(files: list[Path], junk: bytes) -> None:
    """After a power cut or a full disk the hashes are computed again."""
    hashes(files)
    (memory,) = (files[0].parent / "memory").iterdir()
    memory.write_bytes(junk)
    assert hashes(files) == plain(files)
    assert len(json.loads(memory.read_text())) == 3


def test_a_memory_that_cannot_be_written_costs_time_only(files: list[Path]) -> None:
    """A file where the folder should be changes no hash."""
    (files[0].parent / "memory").write_text("in the way")
    assert hashes(files) == plain(files)


def test_an_unreadable_file_is_named(files: list[Path]) -> None:
    """The sentence says which and what to do."""
    files[1].unlink()
    with pytest.raises(BadData, match=r"^b: can't be read \(No such file or directory\); make it"):
        hashes(files)


def test_two_writers_do_no_harm(files: list[Path]) -> None:
    """Two processes that write the same memory at once never read wrong hashes from it."""
    command = [sys.executable, "-c", HASH_OFTEN, str(files[0].parent)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert not [p.name for p in (files[0].parent / "memory").iterdir() if p.name.startswith(".")]

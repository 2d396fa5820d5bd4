"""Pruning the cache: what goes, what stays, and that nobody at work is disturbed."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from common.config import Intensity
from common.data.cache import LEFTOVERS, Pruned, mark_used, prune
from common.data.dataset import Dataset, open_dataset
from common.data.preprocessing import Preprocessing
from common.data.source import Image, Source

ROOT = Path(__file__).parents[3]
DAY_S = 86_400.0
FORK = multiprocessing.get_context("fork")
KEY = "0123456789abcdef" * 4
IMAGES, PHANTOMS = "data sets of decoded images", "phantoms"


@dataclass(frozen=True)
class ByteReader:
    """A format of one image a file, 8x8 of its first byte; `midway` is called at each file."""

    midway: Callable[[], object] = field(default=lambda: None, repr=False)

    def find(self, root: Path, classes: object) -> tuple[Source, ...]:
        """Every file is a patient."""
        return tuple(Source(path, path.name, None, 0) for path in sorted(root.iterdir()))

    def decode(self, source: Source) -> tuple[Image, ...]:
        """The one image of a file."""
        self.midway()
        return (Image((np.full((1, 8, 8), source.path.read_bytes()[0], np.float32),), 0),)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three patients."""
    folder = tmp_path / "data"
    folder.mkdir()
    for value in (0, 51, 255):
        (folder / f"{value}").write_bytes(bytes([value]))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    return folder


def opened(data: Path, cache: Path, midway: Callable[[], object] = lambda: None) -> Dataset:
    """The data set, from the cache if it is there."""
    reader = ByteReader(midway)
    return open_dataset(
        reader.find(data, ()),
        reader,
        preprocessing=Preprocessing(8, Intensity(low=0, high=255)),
        pseudonym_key=b"k",
        cache=cache,
    )


def pruned(cache: Path, *, days: float = 0.0, unused_days: float = 30) -> Pruned:
    """What a pruning does `days` from now."""
    return prune(cache, unused_days=unused_days, now_s=time.time() + days * DAY_S)


def names(folder: Path) -> list[str]:
    """What a folder holds, hidden things too."""
    return sorted(path.name for path in folder.iterdir())


def made(cache: Path, name: str, *, age_days: float, inside: str = "file") -> Path:
    """A folder with a file of 10 bytes, all of that age."""
    folder = cache / name
    folder.mkdir()
    (folder / inside).write_bytes(bytes(10))
    for path in (folder / inside, folder):
        aged(path, age_days)
    return folder


def aged(path: Path, days: float) -> None:
    """Give a file or folder an age."""
    then_s = time.time() - days * DAY_S
    os.utime(path, (then_s, then_s))


@pytest.mark.parametrize("name", [f"images-{KEY}", f"phantom-{KEY}"])
def test_only_what_was_not_used_for_long_goes(cache: Path, name: str) -> None:
    """An entry goes once it is older than that many days; using it makes it young again."""
    entry = made(cache, name, age_days=31)
    mark_used(entry)
    assert pruned(cache).removed == {}
    assert pruned(cache, days=29).removed == {}
    what = IMAGES if name.startswith("images") else PHANTOMS
    assert pruned(cache, days=31).removed == {what: (1, 10)}
    assert names(cache) == []


def test_a_change_inside_is_a_use(cache: Path) -> None:
    """A file that something has just derived inside an entry keeps the entry."""
    entry = made(cache, f"images-{KEY}", age_days=31)
    aged(entry / "file", 1)
    assert pruned(cache).removed == {}


def test_less_than_a_day_is_a_day(cache: Path) -> None:
    """What a process has opened just now is not pruned under it, whatever is asked for."""
    made(cache, f"images-{KEY}", age_days=0.9)
    assert pruned(cache, unused_days=0).removed == {}
    assert pruned(cache, unused_days=0, days=0.2).removed == {IMAGES: (1, 10)}


def test_opening_a_data_set_is_a_use(data: Path, cache: Path) -> None:
    """An entry that is read from the cache is as young as one that was just built."""
    for path in [*(entry := opened(data, cache).folder).iterdir(), entry]:
        aged(path, 31)
    opened(data, cache)
    assert pruned(cache).removed == {}
    for path in [*entry.iterdir(), entry]:
        aged(path, 31)
    assert pruned(cache).removed[IMAGES][0] == 1


def test_leftovers_go_after_a_day(cache: Path) -> None:
    """Partial entries, phantoms and features, and temporary files; younger ones are told."""
    made(cache, ".partial-ab_cd012", age_days=2)
    made(cache, f".phantom-{KEY}-ab_cd012", age_days=2)
    (cache / f".contents-{KEY[:32]}.json-ab_cd012").write_bytes(bytes(5))
    aged(cache / f".contents-{KEY[:32]}.json-ab_cd012", 2)
    entry = made(cache, f"images-{KEY}", age_days=2, inside=".cnn-by-32.f32-ab_cd012")
    (entry / "images.bin").touch()
    made(cache, ".partial-young012", age_days=0.5)
    found = pruned(cache)
    assert found.removed == {LEFTOVERS: (4, 35)}
    assert found.unfinished == (1, 10)
    assert names(cache) == [".partial-young012", f"images-{KEY}"]
    assert names(entry) == ["images.bin"]
    assert "1 unfinished, 10 bytes" in found.text()
    assert "4 leftovers of killed processes, 35 bytes" in found.text()


def test_a_slow_builder_is_no_leftover(cache: Path) -> None:
    """A folder that was begun long ago, but is still being written to, stays."""
    partial = made(cache, ".partial-ab_cd012", age_days=5)
    (partial / "images.bin").write_bytes(bytes(10))
    aged(partial, 5)
    assert pruned(cache).unfinished == (1, 20)
    assert partial.is_dir()


@pytest.mark.parametrize(
    "name", ["images", "images-old", f"{KEY}", ".partial", ".partial-of-mine", ".ssh", "phantom-1"]
)
def test_other_names_are_nobodys_business(cache: Path, name: str) -> None:
    """FEDWARD_CACHE may be a folder with other things in it."""
    made(cache, name, age_days=1000)
    assert pruned(cache) == Pruned({}, (0, 0), 0)
    assert names(cache) == [name]
    assert pruned(cache).text() == "Nothing to remove."


def test_links_are_never_followed(cache: Path, tmp_path: Path) -> None:
    """Neither a link with an entry's name nor one inside an entry leads pruning elsewhere."""
    outside = made(tmp_path, "outside", age_days=1000)
    for name in (f"images-{KEY}", ".partial-ab_cd012"):
        (cache / name).symlink_to(outside)
    entry = made(cache, f"phantom-{KEY}", age_days=1000)
    (entry / "link").symlink_to(outside)
    aged(entry, 1000)
    assert pruned(cache, days=31).removed == {PHANTOMS: (1, 10)}
    assert names(outside) == ["file"]
    assert names(cache) == [".partial-ab_cd012", f"images-{KEY}"]


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path) -> None:
    """Nothing to do is no error."""
    assert pruned(tmp_path / "nowhere") == Pruned({}, (0, 0), 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove anything")
def test_what_cannot_be_removed_is_told(cache: Path) -> None:
    """A folder that is read-only is counted, and pruning goes on."""
    made(cache, f"images-{KEY}", age_days=31)
    cache.chmod(0o500)
    try:
        found = pruned(cache)
    finally:
        cache.chmod(0o700)
    assert found.stuck == 1
    assert "check the cache's permissions" in found.text()


# Beside other processes.


def test_a_reader_keeps_what_it_has_open(data: Path, cache: Path) -> None:
    """An entry that is pruned stays readable for who has it open; the next opening builds it."""
    dataset = opened(data, cache)
    before = np.array(dataset.images)
    assert pruned(cache, days=31).removed[IMAGES][0] == 1
    assert names(cache) == []
    assert np.array_equal(dataset.images, before)
    assert np.array_equal(opened(data, cache).images, before)


def test_two_processes_build_one_entry(data: Path, cache: Path) -> None:
    """Both are in the middle of the same work at once; both succeed and one entry is there."""
    meeting = FORK.Barrier(2, timeout=30)
    processes = [FORK.Process(target=opened, args=(data, cache, meeting.wait)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(names(cache)) == 1
    reads: list[int] = []
    dataset = opened(data, cache, lambda: reads.append(1))
    assert dataset.images[:, 0, 0, 0] == pytest.approx([-1, 1, -0.6])
    assert reads == [], "taken from the cache"


@pytest.fixture
def builder(data: Path, cache: Path) -> Iterator[tuple[BaseProcess, Event]]:
    """A process that stands still in the middle of building, and what lets it go on."""
    midway, go_on = FORK.Event(), FORK.Event()

    def wait() -> None:
        midway.set()
        assert go_on.wait(60)

    process = FORK.Process(target=opened, args=(data, cache, wait))
    process.start()
    assert midway.wait(60)
    yield process, go_on
    if process.is_alive():
        process.kill()
    process.join(60)


def test_a_builder_is_left_alone(
    builder: tuple[BaseProcess, Event], data: Path, cache: Path
) -> None:
    """Pruning during the work removes nothing, and the work ends well."""
    process, go_on = builder
    assert pruned(cache).unfinished[0] == 1
    go_on.set()
    process.join(60)
    assert process.exitcode == 0
    assert [name.startswith("images-") for name in names(cache)] == [True]


def test_a_kill_leaves_what_pruning_removes(
    builder: tuple[BaseProcess, Event], data: Path, cache: Path
) -> None:
    """After kill -9 nothing is taken for whole; the leftover goes, the entry built since stays."""
    process, _ = builder
    process.kill()  # SIGKILL
    process.join(60)
    assert [name.startswith(".partial-") for name in names(cache)] == [True]
    assert len(opened(data, cache).images) == 3
    assert pruned(cache).removed == {}
    assert pruned(cache, days=1.1).removed[LEFTOVERS][0] == 1
    assert [name.startswith("images-") for name in names(cache)] == [True]


def test_the_cache_is_for_its_user_alone(data: Path, cache: Path) -> None:
    """Folders are 0700 and files 0600, whatever the umask."""
    before = os.umask(0)
    try:
        entry = opened(data, cache).folder
    finally:
        os.umask(before)
    assert stat.S_IMODE(entry.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in entry.iterdir()} == {0o600}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 kB; where none can be mounted the test is skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, check=False, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no small file system can be mounted here: {error.strerror}")
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fedward(*arguments: str, folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "FEDWARD_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, str(ROOT / "fedward.py"), *arguments],
        check=False,
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_full_disk_is_one_sentence(small_disk: Path, tiny: Path) -> None:
    """Exit code 2, cause and remedy, nothing half-written; pruning needs no room."""
    said = fedward("simulate", "study.yaml", "--out", "out", folder=tiny, cache=small_disk)
    assert said.returncode == 2
    assert "Traceback" not in said.stderr
    assert "No space left on device" in said.stderr
    assert "set FEDWARD_CACHE to a folder with room" in said.stderr
    for name in names(small_disk):  # nothing but remembered hashes, and these whole
        assert name.startswith("contents-")
        assert json.loads((small_disk / name).read_text())
    entry = made(small_disk, f"images-{KEY}", age_days=31)
    (entry / "images.bin").write_bytes(bytes(4_000))
    for path in (entry / "images.bin", entry):
        aged(path, 31)
    said = fedward("data", "prune", folder=tiny, cache=small_disk)
    assert said.returncode == 0, said.stderr
    assert "Freed 4.0 kB" in said.stdout
    assert all(name.startswith("contents-") for name in names(small_disk))

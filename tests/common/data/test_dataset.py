"""The cache of decoded images: built once, whole or not at all, private, and found by content."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Intensity
from common.data.dataset import Dataset, derived, open_dataset, pseudonym
from common.data.preprocessing import Preprocessing
from common.data.source import Image, Source
from common.errors import BadData, BadInput

SECRET = "Ann-4711"
PREPROCESSING = Preprocessing(8, Intensity(low=0, high=255))


@dataclass(frozen=True)
class RawReader:
    """A format of one byte an image: as many images as the file has bytes, each 8x8 of its value.

    `decoded` collects which files were read; it is no part of the reader's identity.
    """

    version: int = 1
    decoded: list[str] = field(default_factory=list, repr=False)
    failing: Callable[[], None] = field(default=lambda: None, repr=False)

    def find(self, root: Path, classes: object) -> tuple[Source, ...]:
        """Every file below a folder a patient; the label is in its name's first letter."""
        return tuple(
            Source(path, path.parent.name, None, int(path.name[0]), {"sex": path.parent.name[-1]})
            for path in sorted(root.rglob("*"))
            if path.is_file()
        )

    def decode(self, source: Source) -> tuple[Image, ...]:
        """The images of one file."""
        self.decoded.append(source.path.name)
        if source.path.read_bytes().startswith(b"bad"):
            raise BadData(f"{source.path.name}: is broken.")
        if len(self.decoded) > 1:
            self.failing()
        label = int(str(source.detail))
        return tuple(
            Image((np.full((1, 8, 8), value, np.float32),), label)
            for value in source.path.read_bytes()
        )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two patients with three files and four images."""
    root = tmp_path / "data"
    for name, content in {
        f"{SECRET}/0-x": b"\x00\xff",
        f"{SECRET}/1-y": b"\x33",
        "Bob/1-z": b"\xcc",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def opened(
    data: Path,
    cache: Path,
    reader: RawReader | None = None,
    *,
    preprocessing: Preprocessing = PREPROCESSING,
    key: bytes = b"k",
) -> Dataset:
    """The data set, from the cache if it is there."""
    reader = reader or RawReader()
    return open_dataset(
        reader.find(data, ()),
        reader,
        preprocessing=preprocessing,
        pseudonym_key=key,
        cache=cache,
    )


def test_images_come_with_whose_they_are(data: Path, cache: Path) -> None:
    """Every array has one row an image, in the order of patient and path."""
    dataset = opened(data, cache)
    ann, bob = pseudonym(SECRET, b"k"), pseudonym("Bob", b"k")
    assert dataset.images.shape == (4, 1, 8, 8)
    assert dataset.images.dtype == np.float32
    assert dataset.images[:, 0, 0, 0] == pytest.approx([-1, 1, -0.6, 0.6])
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert dataset.patients.tolist() == [ann, ann, ann, bob]
    assert dataset.groups["sex"].tolist() == ["1", "1", "1", "b"]
    assert dataset.sides.tolist() == [""] * 4


def test_images_stay_on_disk(data: Path, cache: Path) -> None:
    """Images and what is derived from them are memory-mapped and can't be written by accident."""
    dataset = opened(data, cache)
    features = derived(dataset, "mean", lambda images: images.mean(axis=(2, 3)), shape=(1,))
    for array in (dataset.images, features):
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_each_file_is_decoded_once(data: Path, cache: Path) -> None:
    """The second opening decodes nothing and gives the same, wherever the files have moved."""
    first_reader, second_reader = RawReader(), RawReader()
    first = opened(data, cache, first_reader)
    second = opened(data.rename(data.with_name("moved")), cache, second_reader)
    assert len(first_reader.decoded) == 3
    assert second_reader.decoded == []
    assert np.array_equal(first.images, second.images)
    assert first.fingerprint == second.fingerprint


def test_the_fingerprint_covers_everything(data: Path, cache: Path) -> None:
    """Another byte, patient, label, subgroup, side, key, size, range or reader is another entry."""
    reader = RawReader()
    sources = reader.find(data, ())

    def fingerprint(
        changed: list[Source],
        *,
        version: int = 1,
        preprocessing: Preprocessing = PREPROCESSING,
        key: bytes = b"k",
    ) -> str:
        return open_dataset(
            changed,
            RawReader(version=version),
            preprocessing=preprocessing,
            pseudonym_key=key,
            cache=cache,
        ).fingerprint

    first, *rest = sources
    found = [
        fingerprint([first, *rest]),
        fingerprint(rest),
        fingerprint([replace(first, patient="Cid"), *rest]),
        fingerprint([replace(first, detail=1), *rest]),
        fingerprint([replace(first, groups={}), *rest]),
        fingerprint([replace(first, side="test"), *rest]),
        fingerprint([first, *rest], key=b"other"),
        fingerprint([first, *rest], version=2),
        fingerprint([first, *rest], preprocessing=Preprocessing(9, Intensity(low=0, high=255))),
        fingerprint([first, *rest], preprocessing=Preprocessing(8, Intensity(low=0, high=254))),
    ]
    assert fingerprint([*rest, first]) == found[0], "the order of sources does not matter"
    first.path.write_bytes(b"\x01\xff")
    found.append(fingerprint([first, *rest]))
    assert len(set(found)) == len(found)


def test_no_identifier_is_in_the_cache(data: Path, cache: Path) -> None:
    """Neither names nor contents of the cache hold a patient as the site writes it."""
    opened(data, cache)
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in files:
        assert SECRET not in str(path)
        assert SECRET.encode() not in path.read_bytes()
    assert pseudonym(SECRET, b"k") != pseudonym(SECRET, b"other")


def test_the_cache_is_private(data: Path, cache: Path) -> None:
    """Folders of entries are for this user alone, whatever the umask."""
    before = os.umask(0)
    try:
        dataset = opened(data, cache)
    finally:
        os.umask(before)
    assert stat.S_IMODE(dataset.folder.stat().st_mode) == 0o700


class Killed(BaseException):
    """Stands for the end of the process."""


def test_killed_midway_leaves_nothing(data: Path, cache: Path) -> None:
    """No entry is there before it is whole; the next opening builds it."""

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        opened(data, cache, RawReader(failing=die))
    assert list(cache.iterdir()) == []
    assert len(opened(data, cache).images) == 4


def test_a_killed_process_blocks_nobody(data: Path, cache: Path) -> None:
    """What a kill -9 leaves behind is never taken for an entry."""
    process = multiprocessing.get_context("fork").Process(target=build_and_die, args=(data, cache))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert [path.name.startswith(".partial-") for path in cache.iterdir()] == [True]
    assert len(opened(data, cache).images) == 4


def build_and_die(data: Path, cache: Path) -> None:
    """End the process in the middle of the work, without any cleaning up."""
    opened(data, cache, RawReader(failing=lambda: os._exit(9)))


@pytest.mark.parametrize("damage", ["table.json", "images.bin", "cut", "garbled"])
def test_a_damaged_entry_is_built_again(data: Path, cache: Path, damage: str) -> None:
    """Somebody tidied up inside the cache: the entry heals."""
    folder = opened(data, cache).folder
    if damage == "cut":
        os.truncate(folder / "images.bin", 100)
    elif damage == "garbled":
        (folder / "table.json").write_text("{")
    else:
        (folder / damage).unlink()
    reader = RawReader()
    healed = opened(data, cache, reader)
    assert healed.images[:, 0, 0, 0] == pytest.approx([-1, 1, -0.6, 0.6])
    assert len(reader.decoded) == 3
    assert [path.name for path in cache.iterdir()] == [healed.folder.name]


def test_two_processes_may_build_at_once(data: Path, cache: Path) -> None:
    """The slower one takes what the faster one built."""
    faster = []

    def meanwhile() -> None:
        if not faster:
            faster.append(opened(data, cache))

    slower = opened(data, cache, RawReader(failing=meanwhile))
    assert np.array_equal(slower.images, faster[0].images)
    assert [path.name for path in cache.iterdir()] == [slower.folder.name]


def test_every_broken_file_is_told(data: Path, cache: Path) -> None:
    """All files that can't be decoded come together, up to ten, and nothing is kept."""
    for i in range(3):
        (data / "Bob" / f"0-{i}").write_bytes(b"bad")
    with pytest.raises(BadData) as caught:
        opened(data, cache)
    assert str(caught.value).splitlines() == [f"0-{i}: is broken." for i in range(3)]
    for i in range(3, 20):
        (data / "Bob" / f"0-{i}").write_bytes(b"bad")
    with pytest.raises(BadData) as caught:
        opened(data, cache)
    assert len(str(caught.value).splitlines()) == 10
    assert list(cache.iterdir()) == []


def test_a_file_that_went_away_is_bad_data(data: Path, cache: Path) -> None:
    """A file that is found but can't be read is named; its patient is not."""
    sources = RawReader().find(data, ())
    sources[0].path.unlink()
    with pytest.raises(BadData, match=r"^0-x: can't be read \(No such file"):
        open_dataset(
            sources, RawReader(), preprocessing=PREPROCESSING, pseudonym_key=b"k", cache=cache
        )


def test_no_image_is_bad_data(data: Path, cache: Path) -> None:
    """Files without a single image are refused."""
    for path in data.rglob("*-*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(BadData, match="expected at least one image"):
        opened(data, cache)


def no_room(*_: object) -> NoReturn:
    """What a full disk says."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_in_a_sentence(data: Path, cache: Path) -> None:
    """Cause and remedy are named, and nothing half-written stays."""
    with pytest.raises(BadInput, match=r"No space left.*set FEDWARD_CACHE"):
        opened(data, cache, RawReader(failing=no_room))
    assert list(cache.iterdir()) == []
    dataset = opened(data, cache)
    with pytest.raises(BadInput, match=r"No space left.*set FEDWARD_CACHE"):
        derived(dataset, "mean", no_room, shape=(1,))
    assert sorted(path.name for path in dataset.folder.iterdir()) == ["images.bin", "table.json"]


def test_a_cache_that_is_no_folder_is_said_in_a_sentence(data: Path, tmp_path: Path) -> None:
    """The cache's path and the remedy are named."""
    with pytest.raises(BadInput, match=r"the cache .*nowhere can't be written"):
        opened(data, tmp_path / "nowhere")


def test_what_is_derived_is_computed_once(data: Path, cache: Path) -> None:
    """Always in batches of one size; a second call reads the file; images changed are new work."""
    batches: list[int] = []

    def mean(images: np.ndarray) -> np.ndarray:
        batches.append(len(images))
        return np.repeat(images.mean(axis=(2, 3)), 2, axis=1)

    dataset = opened(data, cache)
    first = derived(dataset, "mean", mean, shape=(2,), batch=3)
    again = derived(dataset, "mean", mean, shape=(2,), batch=3)
    assert batches == [3, 3]
    assert first.shape == (4, 2)
    assert first[:, 1] == pytest.approx([-1, 1, -0.6, 0.6])
    assert np.array_equal(first, again)
    other = opened(data, cache, preprocessing=Preprocessing(8, Intensity(low=0, high=510)))
    assert derived(other, "mean", mean, shape=(2,))[1, 0] == pytest.approx(0)


def test_a_killed_derivation_leaves_nothing(data: Path, cache: Path) -> None:
    """Half of the features are never taken for all of them."""
    dataset = opened(data, cache)

    def die(images: np.ndarray) -> np.ndarray:
        if images[0, 0, 0, 0] > 0:
            raise Killed
        return images.mean(axis=(2, 3))

    with pytest.raises(Killed):
        derived(dataset, "mean", die, shape=(1,), batch=1)
    assert sorted(path.name for path in dataset.folder.iterdir()) == ["images.bin", "table.json"]


def test_pixels_become_minus_one_to_one() -> None:
    """Low becomes -1 and high +1, linearly; what lies outside is clipped."""
    preprocessing = Preprocessing(8, Intensity(low=-1400, high=200))
    ramp = np.linspace(-2000, 1000, 64, dtype=np.float32).reshape(1, 8, 8)
    out = preprocessing.apply((ramp,))
    assert out == pytest.approx(np.clip((ramp + 1400) / 800 - 1, -1, 1), abs=1e-5)
    assert out.dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([8, 32]))
def test_any_shape_becomes_a_square(height: int, width: int, size: int) -> None:
    """The image keeps its proportions and lies in the middle, padded with the lowest value."""
    out = Preprocessing(size, Intensity(low=0, high=1)).apply((np.ones((1, height, width), "f4"),))
    assert out.shape == (1, size, size)
    inside = out[0] > -1
    rows, columns = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    assert out[0][inside] == pytest.approx(1)
    assert rows * columns == inside.sum()
    assert rows == max(1, round(height * size / max(height, width)))
    assert columns == max(1, round(width * size / max(height, width)))
    above, left = np.argmax(inside.any(axis=1)), np.argmax(inside.any(axis=0))
    assert abs(2 * above + rows - size) <= 1
    assert abs(2 * left + columns - size) <= 1


def test_shrinking_averages() -> None:
    """Resizing is antialiased: a fine checkerboard becomes grey and no moiré."""
    board = np.indices((64, 64)).sum(axis=0) % 2
    out = Preprocessing(8, Intensity(low=0, high=1)).apply((board[None].astype(np.float32),))
    assert np.abs(out[0, 1:-1, 1:-1]).max() < 0.05


def test_a_very_long_image_fits_into_memory() -> None:
    """One row of four million pixels is not padded to a square of its length."""
    out = Preprocessing(8, Intensity(low=0, high=1)).apply((np.ones((1, 1, 4_000_000), "f4"),))
    assert (out[0] > -1).sum() == 8


def test_the_table_is_plain_json(data: Path, cache: Path) -> None:
    """No pickle is in the cache."""
    table = json.loads((opened(data, cache).folder / "table.json").read_text())
    assert table["labels"] == [0, 0, 1, 1]

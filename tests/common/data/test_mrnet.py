"""The MRNet tree: which exams and volumes are read, and in which words others are refused."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.config import MRNET_LABELS
from common.data.mrnet import MAX_VOXELS, PLANES, MrnetReader, foreground_box
from common.data.source import Image, Source
from common.errors import BadData

LABELS = MRNET_LABELS
SECRET = "Ann Smith"  # what a hospital might write into an id, and no message may repeat


def tree(folder: Path, **exams: str) -> Path:
    """A tree of these exams: `train="0007:101 0009:000"`, digits in the order of LABELS."""
    root = folder / "MRNet-v1.0"
    for part, listed in exams.items():
        pairs = [exam.split(":") for exam in listed.split()]
        for plane in PLANES:
            (root / part / plane).mkdir(parents=True)
            for exam, _ in pairs:
                np.save(root / part / plane / f"{exam}.npy", np.ones((2, 3, 4), np.uint8))
        for place, name in enumerate(LABELS):
            write(root, f"{part}-{name}.csv", [f"{exam},{bits[place]}" for exam, bits in pairs])
    return root


def write(root: Path, name: str, lines: list[str]) -> None:
    """One label file of these lines."""
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def refused(root: Path, classes: tuple[str, ...] = LABELS) -> list[str]:
    """The problems with which a tree is refused."""
    with pytest.raises(BadData) as caught:
        MrnetReader().find(root, classes)
    assert SECRET not in str(caught.value)
    return str(caught.value).splitlines()


def volume_file(folder: Path, volume: np.ndarray) -> Path:
    """One volume's file."""
    path = folder / "axial" / "0000.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, volume)
    return path


def decoded(path: Path, reader: MrnetReader | None = None) -> np.ndarray:
    """The one volume of an exam with one plane."""
    reader = reader or MrnetReader(crop_px=None)
    (image,) = reader.decode(Source(path, "0000", None, (0, 1)))
    (volume,) = image.planes
    assert image.label == (0, 1)
    assert volume.dtype == np.float32
    return volume


def undecodable(path: Path) -> str:
    """The sentence with which a file is refused; it begins with plane and file."""
    with pytest.raises(BadData) as caught:
        MrnetReader().decode(Source(path, "0000", None, (0, 1)))
    assert str(caught.value).startswith("axial/0000.npy: ")
    return str(caught.value)


# --- which exams --------------------------------------------------------------------------------


def test_each_exam_is_one_source(tmp_path: Path) -> None:
    """An exam is its own unit, with one file a plane and a 0 or 1 for each class, by id."""
    root = tree(tmp_path, train="0009:000 0007:101 0010:100 0003:110 0008:010", valid="1130:111")
    sources = MrnetReader().find(root, LABELS)
    assert [(s.patient, s.detail, s.site, s.side) for s in sources] == [
        ("0003", (1, 1, 0), None, ""),
        ("0007", (1, 0, 1), None, ""),
        ("0008", (0, 1, 0), None, ""),
        ("0009", (0, 0, 0), None, ""),
        ("0010", (1, 0, 0), None, ""),
        ("1130", (1, 1, 1), None, ""),
    ]
    assert sources[1].paths == tuple(root / "train" / plane / "0007.npy" for plane in PLANES)


def test_the_tree_is_found_by_its_name(tmp_path: Path) -> None:
    """The folder above gives the same exams as the tree itself."""
    root = tree(tmp_path, train="0007:101")
    assert MrnetReader().find(tmp_path, LABELS) == MrnetReader().find(root, LABELS)


@pytest.mark.parametrize("part", ["train", "valid"])
def test_one_part_is_enough(tmp_path: Path, part: str) -> None:
    """A hospital may have only one of the two parts."""
    root = tree(tmp_path, **{part: "0007:101"})
    assert len(MrnetReader().find(root, LABELS)) == 1


def test_the_official_split_keeps_the_parts_apart(tmp_path: Path) -> None:
    """Only on request, `train` is for training and `valid` for testing."""
    root = tree(tmp_path, train="0007:101", valid="1130:111")
    sources = MrnetReader(official_split=True).find(root, LABELS)
    assert [(s.patient, s.side) for s in sources] == [("0007", "train"), ("1130", "test")]


def test_only_the_classes_asked_for_are_read(tmp_path: Path) -> None:
    """Labels come in the study's order, and other label files may be missing or broken."""
    root = tree(tmp_path, train="0007:101 0009:110")
    (root / "train-abnormal.csv").unlink()
    sources = MrnetReader().find(root, ("meniscus", "acl"))
    assert [s.detail for s in sources] == [(1, 0), (0, 1)]


def test_planes_come_in_the_readers_order(tmp_path: Path) -> None:
    """Planes that aren't read may be missing."""
    root = tree(tmp_path, train="0007:101")
    (root / "train" / "axial" / "0007.npy").unlink()
    np.save(root / "train" / "coronal" / "0007.npy", np.full((5, 2, 2), 9, np.uint8))
    reader = MrnetReader(read_planes=("sagittal", "coronal"))
    (source,) = reader.find(root, LABELS)
    (image,) = reader.decode(source)
    assert [plane.shape for plane in image.planes] == [(2, 3, 4), (5, 2, 2)]


def test_ids_may_lack_their_zeros(tmp_path: Path) -> None:
    """Public copies write 7 for 0007; byte order marks, line ends, empty lines don't matter."""
    root = tree(tmp_path, train="0007:101 0010:000")
    (root / "train-acl.csv").write_bytes("\ufeff7,0\r\n\r\n10 , 0\r\n".encode())
    assert [s.patient for s in MrnetReader().find(root, LABELS)] == ["0007", "0010"]


def test_a_volume_without_a_label_is_left_out(tmp_path: Path) -> None:
    """Nothing can be learnt from it, and nobody is asked to delete it."""
    root = tree(tmp_path, train="0007:101")
    np.save(root / "train" / "axial" / "0008.npy", np.ones((2, 3, 4), np.uint8))
    assert [s.patient for s in MrnetReader().find(root, LABELS)] == ["0007"]


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{SECRET},1", "line 2: expected an exam's number, a comma, and 0 or 1; mend it."),
        ("../../0007,1", "line 2: expected an exam's number"),
        ("0008", "line 2: expected an exam's number"),
        ("1,0008,1", "line 2: expected an exam's number"),
        ("٠٠٠٨,1", "line 2: expected an exam's number"),
        ("1234567890,1", "line 2: expected an exam's number"),
        ("0008,2", "line 2: the label must be 0 or 1; got '2'; mend it."),
        ("0008,", "line 2: the label must be 0 or 1; got ''"),
        ("0008,1.0", "line 2: the label must be 0 or 1; got '1.0'"),
        ("7,1", "line 2: the same exam as line 1; keep one."),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    """A line that can't be is refused by file and number, with what to do."""
    root = tree(tmp_path, train="0007:101")
    write(root, "train-acl.csv", ["0007,0", line])
    (said,) = refused(root)
    assert said.startswith(f"train-acl.csv: {words}")


def test_a_header_is_named(tmp_path: Path) -> None:
    """The published files have none, so a first line of words is refused as one."""
    root = tree(tmp_path, train="0007:101")
    write(root, "train-acl.csv", ["id,label", "0007,0"])
    assert refused(root) == [
        "train-acl.csv: line 1: is a header; MRNet's label files have none, remove it."
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; expected a line `id,label` for each exam"),
        (b"\r\n,\r\n", "is empty"),
        (b"0007,0\n\xff\xfe", "is no CSV in UTF-8"),
        (b'"0007,0\n', "is no CSV in UTF-8"),
        (b"0007,0" + b"x" * 200_000, "is no CSV in UTF-8"),
    ],
)
def test_what_is_no_label_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    """An empty, foreign or broken file is refused in one sentence with its name."""
    root = tree(tmp_path, train="0007:101")
    (root / "train-acl.csv").write_bytes(content)
    (said,) = refused(root)
    assert said.startswith("train-acl.csv: ")
    assert words in said


def test_a_missing_label_file_is_named(tmp_path: Path) -> None:
    """A class without its file is refused; so is a folder where the file should be."""
    root = tree(tmp_path, train="0007:101")
    (root / "train-acl.csv").unlink()
    assert "train-acl.csv: does not exist" in refused(root)[0]
    (root / "train-acl.csv").mkdir()
    assert "train-acl.csv: can't be read" in refused(root)[0]


def test_ids_missing_in_one_file_are_refused(tmp_path: Path) -> None:
    """Each file that lacks exams is named with how many, and no label is made up."""
    root = tree(tmp_path, train="0007:101 0008:000 0009:111")
    write(root, "train-acl.csv", ["0007,0"])
    write(root, "train-meniscus.csv", ["0007,0", "0008,0"])
    said = refused(root)
    assert said[0].startswith("train-acl.csv: lacks 2 of the exams that train-abnormal.csv")
    assert said[1].startswith("train-meniscus.csv: lacks 1 of the exams that train-abnormal.csv")
    assert len(said) == 2


def test_a_missing_volume_is_named(tmp_path: Path) -> None:
    """An exam whose plane is missing is refused by the file's name."""
    root = tree(tmp_path, train="0007:101", valid="1130:000")
    (root / "valid" / "coronal" / "1130.npy").unlink()
    (said,) = refused(root)
    assert said.startswith("valid/coronal/1130.npy: does not exist; restore the volume")


def test_an_exam_in_both_parts_is_refused(tmp_path: Path) -> None:
    """It would be trained and tested on."""
    (said,) = refused(tree(tmp_path, train="0007:101", valid="0007:101"))
    assert "0007 is in train too; keep it in one part" in said


def test_all_problems_come_together_up_to_a_number(tmp_path: Path) -> None:
    """The first ten problems, of both parts, are shown and the others counted."""
    root = tree(tmp_path, train="0007:101", valid="1130:000")
    write(root, "train-acl.csv", ["0007,9"])
    write(root, "valid-acl.csv", [f"{i},9" for i in range(25)])
    said = refused(root)
    assert said[0].startswith("train-acl.csv: line 1")
    assert said[1].startswith("valid-acl.csv: line 1")
    assert len(said) == 11
    assert said[-1] == "MRNet-v1.0: 16 more problems like these."


def test_a_folder_without_a_tree_is_refused(tmp_path: Path) -> None:
    """Neither part is there: the whole path is told, with what to name instead."""
    for path in (tmp_path, tmp_path / "nowhere"):
        (said,) = refused(path)
        assert said.startswith(f"{path}: no folder `train` or `valid`")


def test_other_labels_are_refused(tmp_path: Path) -> None:
    """The set has three labels; a study that wants another is told which there are."""
    (said,) = refused(tree(tmp_path, train="0007:101"), ("acl", "fracture"))
    assert said.startswith("MRNet-v1.0: has no labels fracture; choose")


# --- volumes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">u2", "f2", ">f8"])
def test_volumes_keep_their_values(tmp_path: Path, dtype: str) -> None:
    """Any real number type in any byte order and either memory order comes back as stored."""
    stored = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for volume in (stored, np.asfortranarray(stored)):
        assert np.array_equal(decoded(volume_file(tmp_path, volume)), stored)


@pytest.mark.parametrize(
    ("shape", "crop", "kept"),
    [
        ((2, 256, 256), 224, (slice(16, 240), slice(16, 240))),
        ((1, 5, 8), 4, (slice(0, 4), slice(2, 6))),
        ((1, 3, 8), 4, (slice(0, 3), slice(2, 6))),
        ((1, 3, 3), 4, (slice(0, 3), slice(0, 3))),
        ((1, 9, 9), None, (slice(0, 9), slice(0, 9))),
    ],
)
def test_slices_are_cut_around_their_centre(
    tmp_path: Path, shape: tuple[int, int, int], crop: int | None, kept: tuple[slice, slice]
) -> None:
    """Each side loses as much on both ends; smaller sides are left as they are."""
    stored = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    cut = decoded(volume_file(tmp_path, stored), MrnetReader(crop_px=crop))
    assert np.array_equal(cut, stored[:, *kept])


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.uint8, st.tuples(*[st.integers(1, 6)] * 3), elements=st.integers(0, 3)).filter(
        lambda volume: volume.min() != volume.max()
    )
)
def test_the_foreground_box_is_as_otsu_says(levels: np.ndarray) -> None:
    """The box holds what the threshold of largest variance between both sides leaves, no more."""

    def between(threshold: int) -> float:
        above = levels > threshold
        if above.all() or not above.any():
            return -1.0
        gap = levels[above].mean() - levels[~above].mean()
        return float(above.mean() * (1 - above.mean()) * gap**2)

    best = [t for t in range(4) if between(t) > max(map(between, range(4))) - 1e-9]
    boxes = []
    for threshold in best:
        places = np.argwhere(levels > threshold)
        boxes.append(
            tuple(
                slice(int(a), int(b) + 1)
                for a, b in zip(places.min(axis=0), places.max(axis=0), strict=True)
            )
        )
    assert foreground_box(levels.astype(np.float32)) in boxes


def test_the_foreground_is_cut_out_before_the_centre(tmp_path: Path) -> None:
    """A knee off the centre is first found, then cut; a constant volume stays whole."""
    stored = np.full((6, 20, 20), 3, np.uint8)
    stored[2:4, 10:18, 1:7] = 200
    stored[2, 13, 3] = 255
    path = volume_file(tmp_path, stored)
    assert decoded(path, MrnetReader(foreground_crop=True)).shape == (2, 8, 6)
    cut = decoded(path, MrnetReader(foreground_crop=True, crop_px=4))
    assert np.array_equal(cut, stored[2:4, 12:16, 2:6])
    flat = volume_file(tmp_path, np.full((2, 3, 4), 7, np.uint8))
    assert decoded(flat, MrnetReader(foreground_crop=True)).shape == (2, 3, 4)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((1, 2, 3, 4), np.uint8),
        np.zeros((0, 4, 4), np.uint8),
        np.zeros((1, 4, 4), complex),
        np.zeros((1, 4, 4), bool),
        np.full((1, 4, 4), "x"),
        np.full((1, 4, 4), np.nan),
        np.full((1, 4, 4), 1e300),
    ],
    ids=["2-D", "4-D", "no slice", "complex", "bool", "text", "nan", "beyond float32"],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    """Other shapes and types, and values that float32 can't hold, are refused by name."""
    undecodable(volume_file(tmp_path, array))


class Planted:
    """What a pickle could do to whoever opens it."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('a pickle was opened')",))


def test_a_pickle_or_zip_is_never_opened(tmp_path: Path) -> None:
    """An .npy that numpy.load would unpickle or unzip is refused."""
    path = tmp_path / "axial" / "0000.npy"
    path.parent.mkdir()
    np.save(path, np.array([Planted()], dtype=object), allow_pickle=True)
    undecodable(path)
    np.savez(tmp_path / "b.npz", np.ones((2, 3, 4)))
    (tmp_path / "b.npz").rename(path)
    undecodable(path)


def test_a_cut_or_missing_file_is_refused(tmp_path: Path) -> None:
    """A volume must be there to its last byte."""
    path = volume_file(tmp_path, np.ones((4, 8, 8), np.uint8))
    whole = path.read_bytes()
    for kept in (0, 5, 60, len(whole) - 1):
        path.write_bytes(whole[:kept])
        assert "whole numpy array" in undecodable(path)
    path.unlink()
    undecodable(path)


def test_a_huge_claim_costs_no_memory(tmp_path: Path) -> None:
    """A header that claims a giant volume is refused before any of its bytes is read."""
    path = tmp_path / "axial" / "0000.npy"
    path.parent.mkdir()
    shape = (2, MAX_VOXELS // 2, 2)
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with path.open("wb") as file:
        file.write(b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode())
        file.truncate(file.tell() + int(np.prod(shape)))
    assert f"at most {MAX_VOXELS}" in undecodable(path)


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    """Any damage gives an image or BadData, and no other exception."""
    dice = random.Random(1)
    path = volume_file(tmp_path, np.ones((4, 8, 8), np.uint8))
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(dice.choice((1, 3))):
            damaged[dice.randrange(130)] = dice.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            (image,) = MrnetReader().decode(Source(path, "0000", None, (1,)))
        except BadData:
            continue
        assert isinstance(image, Image)

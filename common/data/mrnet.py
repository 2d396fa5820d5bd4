"""The tree of the MRNet knee data set: three planes an exam, up to three labels, no patient.

Bien et al., "Deep-learning-assisted diagnosis for knee magnetic resonance imaging", PLoS Med. 15
(2018).

    MRNet-v1.0/{train,valid}/{axial,coronal,sagittal}/0000.npy   uint8 (slices, 256, 256)
    MRNet-v1.0/{train,valid}-{abnormal,acl,meniscus}.csv         lines `id,0` or `id,1`, no header

Planes differ in their number of slices. The set names no patients (its 1,130 training exams are of
1,088), so the unit is the exam. Its ids are ordered by label: nothing may be split by their range.
"""

from __future__ import annotations

import csv
import os
import re
import struct
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from common.config import MRNET_LABELS
from common.data.source import Image, Source
from common.errors import BadData

TREE: Final = "MRNet-v1.0"
DIGITS: Final = 4  # of an exam's number
PLANES: Final = ("axial", "coronal", "sagittal")
PARTS: Final = (("train", "train"), ("valid", "test"))  # each with its side in the official split
MAX_VOXELS: Final = 256 * 512 * 512  # sixteen times the largest published volume
_ID = r"[0-9]{1,9}"
_MAX_PROBLEMS = 10  # shown at once; more would hide the first

# What numpy raises on files cut, flipped or made up.
_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    EOFError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
)


@dataclass(frozen=True, slots=True)
class MrnetReader:
    """Reads exams as one volume a plane, in the order of `read_planes`.

    `foreground_crop` cuts each volume to the box around what is brighter than its Otsu threshold;
    then slices are cut to `crop_px` pixels around their centre (None: not at all; smaller ones are
    left as they are). With `official_split`, exams of `valid` are on the test side.
    """

    read_planes: tuple[str, ...] = PLANES
    crop_px: int | None = 224
    foreground_crop: bool = False
    official_split: bool = False

    def find(self, root: Path, classes: Sequence[str]) -> tuple[Source, ...]:
        """Every exam that the label files of `classes` list, in the order of part and id.

        `root` is the tree or the folder that holds it under its name. Either of `train` and
        `valid` may be missing, and so may the label files of classes that aren't asked for.
        Volumes that no label file lists are left out: nothing can be learnt from them.
        Raises BadData with every problem found.
        """
        tree = root / TREE if (root / TREE).is_dir() else root
        unknown = sorted(set(classes) - set(MRNET_LABELS))
        if unknown:
            raise BadData(
                f"{TREE}: has no labels {', '.join(unknown)}; "
                f"choose the study's `classes` out of {', '.join(MRNET_LABELS)}."
            )
        parts = [
            (part, side)
            for part, side in PARTS
            if (tree / part).is_dir() or any((tree / f"{part}-{c}.csv").exists() for c in classes)
        ]
        problems: list[str] = []
        if not parts:
            problems.append(
                f"{root}: no folder `train` or `valid` with label files beside it; "
                f"name the folder {TREE} or the one that holds it"
            )
        sources: list[Source] = []
        part_of: dict[str, str] = {}
        for part, side in parts:
            for exam, label in sorted(_labels(tree, part, classes, problems).items()):
                if part_of.setdefault(exam, part) != part:
                    problems.append(
                        f"{part}-{classes[0]}.csv: the exam {exam} is in {part_of[exam]} too; "
                        "keep it in one part"
                    )
                paths = [tree / part / plane / f"{exam}.npy" for plane in self.read_planes]
                problems += [
                    f"{part}/{path.parent.name}/{path.name}: does not exist; restore the volume, "
                    f"or take its exam out of every {part}-*.csv"
                    for path in paths
                    if not os.path.isfile(path)
                ]
                side_kept = side if self.official_split else ""
                sources.append(
                    Source(paths[0], exam, None, label, side=side_kept, others=tuple(paths[1:]))
                )
        if problems:
            hidden = len(problems) - _MAX_PROBLEMS
            shown = problems[:_MAX_PROBLEMS]
            shown += [f"{TREE}: {hidden} more problems like these"] * (hidden > 0)
            raise BadData("\n".join(f"{problem}." for problem in shown))
        return tuple(sources)

    def decode(self, source: Source) -> tuple[Image, ...]:
        """The one image of an exam: a volume a plane, each (slices, height, width)."""
        planes = tuple(self._cropped(_read_volume(path)) for path in source.paths)
        return (Image(planes, cast("tuple[int, ...]", source.detail)),)

    def _cropped(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.foreground_crop:
            volume = volume[foreground_box(volume)]
        if self.crop_px is not None:
            top, left = (max(0, (length - self.crop_px) // 2) for length in volume.shape[1:])
            volume = volume[:, top : top + self.crop_px, left : left + self.crop_px]
        return volume


def foreground_box(volume: NDArray[np.float32]) -> tuple[slice, slice, slice]:
    """The smallest box that holds every voxel above Otsu's threshold; all of a constant volume.

    Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9 (1979).
    """
    from skimage.filters import threshold_otsu  # slow to import

    if volume.min() == volume.max():
        return (slice(None), slice(None), slice(None))
    # Flat, or it warns of thin volumes.
    inside = volume > threshold_otsu(volume.ravel())  # type: ignore[no-untyped-call]
    spans = [np.flatnonzero(inside.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    slices, rows, columns = (slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    return slices, rows, columns


def _labels(
    tree: Path, part: str, classes: Sequence[str], problems: list[str]
) -> dict[str, tuple[int, ...]]:
    """Each exam's label out of one file a class; adds to `problems` what can't be used."""
    tables: dict[str, Mapping[str, int]] = {}
    for name in classes:
        path = tree / f"{part}-{name}.csv"
        before = len(problems)
        table = _read_labels(path, problems)
        if len(problems) == before:
            tables[path.name] = table
    listed = set().union(*tables.values()) if tables else set()
    for name, exams in tables.items():
        missing = len(listed - set(exams))
        if missing:
            other = next(n for n, t in tables.items() if set(t) - set(exams))
            problems.append(
                f"{name}: lacks {missing} of the exams that {other} and the others list; "
                "add their lines, or take them out of every label file"
            )
    if len(tables) < len(classes):
        return {}  # the exams of an unreadable table would all seem to lack a label
    agreed = listed.intersection(*tables.values())
    return {exam: tuple(table[exam] for table in tables.values()) for exam in agreed}


def _read_labels(path: Path, problems: list[str]) -> dict[str, int]:
    """The lines `id,label` of one file; adds to `problems` each that isn't one."""
    labels: dict[str, int] = {}
    line_of: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                cells = [cell.strip() for cell in cells]
                if not any(cells):
                    continue
                at = f"{path.name}: line {reader.line_num}:"
                if reader.line_num == 1 and not any(re.search("[0-9]", cell) for cell in cells):
                    problems.append(f"{at} is a header; MRNet's label files have none, remove it")
                elif len(cells) != 2 or not re.fullmatch(_ID, cells[0]):
                    problems.append(f"{at} expected an exam's number, a comma, and 0 or 1; mend it")
                elif cells[1] not in ("0", "1"):
                    problems.append(f"{at} the label must be 0 or 1; got {cells[1]!r:.80}; mend it")
                else:
                    exam = cells[0].zfill(DIGITS)  # public copies lose the zeros
                    first = line_of.setdefault(exam, reader.line_num)
                    if first != reader.line_num:
                        problems.append(f"{at} the same exam as line {first}; keep one")
                    labels[exam] = int(cells[1])
    except FileNotFoundError:
        problems.append(
            f"{path.name}: does not exist; put it beside the folder of its part, "
            "or take its label out of the study's `classes`"
        )
    except OSError as fault:
        problems.append(f"{path.name}: can't be read ({fault.strerror}); mend its permissions")
    except (UnicodeDecodeError, csv.Error):
        problems.append(f"{path.name}: is no CSV in UTF-8; export it again as one")
    else:
        if not line_of and not any(problem.startswith(path.name) for problem in problems):
            problems.append(f"{path.name}: is empty; expected a line `id,label` for each exam")
    return labels


def _read_volume(path: Path) -> NDArray[np.float32]:
    """One volume as float32 (slices, height, width), in the file's own unit."""
    name = f"{path.parent.name}/{path.name}"  # the planes of an exam share their file's name
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # unlike np.load, never a zip or pickle
    except _FAULTS:
        raise BadData(
            f"{name}: expected a whole numpy array (.npy); it can't be read as one. "
            "Copy the file anew or take its exam out of the label files."
        ) from None
    # uint8 in the published set; other numbers are a hospital's own export.
    if array.ndim != 3 or not 0 < array.size <= MAX_VOXELS or array.dtype.kind not in "uif":
        raise BadData(
            f"{name}: expected numbers (slices, height, width), at most {MAX_VOXELS} of them; "
            f"got shape {array.shape} of {array.dtype}. Export the volume again."
        )
    with np.errstate(over="ignore"):  # refused below as not finite
        volume = np.array(array, dtype=np.float32)
    if not np.isfinite(volume).all():
        raise BadData(f"{name}: has values that are not finite; export the volume again.")
    return volume

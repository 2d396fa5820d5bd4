"""The folders of the data set: whose a file is, and which slice an annotation speaks of.

Patients are the folders below the tree; what they hold, one series or several, in sub-folders or
not, under whatever names, is sorted out by the headers of the slices.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import numpy as np

from common.data.dicom import SlicePosition, read_slice_position
from common.errors import BadData

TEXTS: Final = "ILD_DB_txtROIs"
MASKS: Final = "ILD_DB_volumeROIs"
LUNGS: Final = "ILD_DB_lungMasks"
PATCHES: Final = "ILD_DB_talismanTestSuite"
_EXTRA_LEVEL = "HRCT_pilot"  # its folders are patients too
_SHOWN_PROBLEMS = 10

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Series(Generic[T]):
    """What is annotated on the slices of one series."""

    name: str  # of a file, for messages
    folder: Path  # where its slices are, should their headers not say which they are
    keys: frozenset[str]  # `series_key` of its slices, as far as known
    by_number: Mapping[int, Sequence[T]]  # 1-based


def locate(root: Path, name: str) -> Path:
    """The tree `name` inside `root`, or `root` itself where it is that tree."""
    return root / name if (root / name).is_dir() else root


def files_by_patient(tree: Path) -> dict[str, list[Path]]:
    """The files of each patient's folder and below, without dot-files.

    Raises BadData where a folder can't be listed, or holds whole trees: they would pass for one
    patient.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    if not tree.is_dir():
        return files
    for folder, subfolders, names in os.walk(tree, onerror=refuse_folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for inner in {TEXTS, MASKS, LUNGS, PATCHES}.intersection(subfolders):
            raise BadData(
                f"{tree}: holds {inner} further inside; name the folder just above the tree that "
                "`data.regions` asks for."
            )
        inside = Path(folder).relative_to(tree).parts
        if inside[:1] == (_EXTRA_LEVEL,):
            inside = inside[1:]
        if inside:
            files[inside[0]] += [
                Path(folder, name) for name in sorted(names) if not name.startswith(".")
            ]
    return files


def positions(slices: Sequence[Path], problems: list[str]) -> dict[Path, SlicePosition]:
    """Where each slice stands in its series; adds to `problems` what can't be read."""
    found = {}
    for path in slices:
        try:
            found[path] = read_slice_position(path)
        except BadData as problem:
            problems.append(str(problem))
    return found


def join(
    annotated: Sequence[Series[T]], slices: Mapping[Path, SlicePosition], problems: list[str]
) -> dict[Path, list[T]]:
    """What is annotated on each of a patient's slices, joined on the slice number.

    Slices without annotation and annotations without a slice are left out, since the published set
    has both. Adds to `problems` each series whose slices nothing numbers.
    """
    claimed = {key for series in annotated for key in series.keys}
    by_slice: dict[Path, list[T]] = defaultdict(list)
    for series in annotated:
        own = {file: at for file, at in slices.items() if at.series in series.keys}
        # Where only one side's UIDs or names were changed, the folder says what belongs together.
        near = {
            file: at
            for file, at in slices.items()
            if file.parent == series.folder and at.series not in claimed
        }
        numbered = _by_number(own or near)
        if numbered is None:
            problems.append(
                f"{series.name}: InstanceNumber is missing or repeated in its slices, and their "
                "names don't follow SliceLocation; export the series again or move it away."
            )
            continue
        for number, found in series.by_number.items():
            if number in numbered:
                by_slice[numbered[number]] += found
    return by_slice


def refuse_if_any(problems: Sequence[str]) -> None:
    """Raise BadData with the first problems and the number of the others."""
    if problems:
        hidden = len(problems) - _SHOWN_PROBLEMS
        shown = [*problems[:_SHOWN_PROBLEMS], *[f"... and {hidden} more"] * (hidden > 0)]
        raise BadData("\n".join(shown))


def refuse_folder(error: OSError) -> None:
    """What `os.walk` does with a folder that it can't list: BadData that names it."""
    raise BadData(
        f"{error.filename}: the folder can't be listed ({error.strerror}); make it readable or "
        "move it away."
    ) from None


def _by_number(slices: Mapping[Path, SlicePosition]) -> dict[int | None, Path] | None:
    """The slices of one series by their 1-based number, None where that would be a guess."""
    by_instance = {at.instance_number: path for path, at in slices.items()}
    if len(by_instance) == len(slices) and None not in by_instance:
        return by_instance
    by_name: dict[int | None, Path] = {
        int(number[0]): path for path in slices if (number := re.search(r"\d+$", path.stem))
    }
    ordered = [path for _, path in sorted(by_name.items(), key=lambda item: item[0] or 0)]
    steps_mm = np.diff(np.array([slices[path].slice_location_mm for path in ordered], float))
    monotone = bool((steps_mm > 0).all() or (steps_mm < 0).all())
    return by_name if len(by_name) == len(slices) and monotone else None

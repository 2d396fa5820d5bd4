"""The masks of ILD_DB_volumeROIs and ILD_DB_lungMasks: one DICOM image of codes a slice.

    <patient>/[<series>/]roi_mask/roi_mask_<ssss>_<n>.dcm      0..17, see CODES
    <patient>/[<series>/]lung_mask/lung_mask_<ssss>_<n>.dcm    0 outside the lungs, else 255

The number of the slice is not padded here, unlike in the names of slices (CT-<ssss>-<nnnn>.dcm).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from common.data.dicom import SlicePosition, read_mask
from common.data.ild.tree import Series
from common.errors import BadData

CODES: Final = (
    "unannotated",
    "healthy",
    "emphysema",
    "ground_glass",
    "fibrosis",
    "micronodules",
    "consolidation",
    "bronchial_wall_thickening",
    "reticulation",
    "macronodules",
    "cysts",
    "peripheral_micronodules",
    "bronchiectasis",
    "air_trapping",
    "early_fibrosis",
    "increased_attenuation",
    "tuberculosis",
    "pcp",
)

Kind = Literal["roi_mask", "lung_mask"]
_MASK_NAME = re.compile(r"(?:roi_mask|lung_mask)?_?(?P<series>.*?)[_-]?(?P<number>\d+)", re.I)
_SLICE_NAME = re.compile(r"CT-(?P<series>.+)-\d+", re.I)


def masks_among(files: Sequence[Path], kind: Kind) -> list[Path]:
    """The masks of one kind, known by their folder or their name."""
    return [path for path in files if path.suffix.lower() == ".dcm" and _is_mask(path, kind)]


def slices_among(files: Sequence[Path]) -> list[Path]:
    """The DICOM files that are no masks."""
    return [
        path
        for path in files
        if path.suffix.lower() == ".dcm"
        and not _is_mask(path, "roi_mask")
        and not _is_mask(path, "lung_mask")
    ]


def mask_series(
    masks: Sequence[Path],
    slices: Mapping[Path, SlicePosition],
    problems: list[str],
    *,
    beside: tuple[Path, Path],
) -> list[Series[Path]]:
    """A patient's masks by series and slice number; adds to `problems` names without a number.

    Args:
        beside: the tree of the masks and that of the slices.
    """
    grouped: dict[tuple[Path, str], dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in masks:
        name = _MASK_NAME.fullmatch(path.stem)
        if name is None:
            problems.append(
                f"{path.name}: expected a name such as roi_mask_7605_4.dcm, with the number of "
                "the slice at its end; rename it or move it away."
            )
            continue
        in_own_folder = path.parent.name.lower() in ("roi_mask", "lung_mask")
        folder = path.parent.parent if in_own_folder else path.parent
        folder = beside[1] / folder.relative_to(beside[0])
        grouped[folder, name["series"].lower()][int(name["number"])].append(path)
    found = []
    for (folder, series), by_number in grouped.items():
        named = [
            path
            for path in slices
            if (name := _SLICE_NAME.fullmatch(path.stem)) and name["series"].lower() == series
        ]
        here = [path for path in named if path.parent == folder]
        keys = frozenset(slices[path].series for path in here or named)
        some_name = next(iter(by_number.values()))[0].name
        found.append(Series(some_name, folder, keys, by_number))
    return found


def single_masks(masks_of: Mapping[Path, Sequence[Path]], problems: list[str]) -> dict[Path, Path]:
    """The one mask of each slice; adds to `problems` slices that have several."""
    problems += [
        f"{masks[1].name}: is a second mask of the slice of {masks[0].name}; keep one."
        for masks in masks_of.values()
        if len(masks) > 1
    ]
    return {path: masks[0] for path, masks in masks_of.items()}


def read_codes(path: Path, shape: tuple[int, int]) -> NDArray[np.integer]:
    """The (height, width) codes 0..17 of a region mask; raises BadData as `read_lungs` does."""
    codes = _read(path, shape)
    if codes.min() < 0 or codes.max() >= len(CODES):
        raise BadData(
            f"{path.name}: has codes that no label has; expected 0 to {len(CODES) - 1}. "
            "Export it again or move it away."
        )
    return codes


def read_lungs(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Where the lungs are, (height, width); raises BadData where its size isn't its slice's."""
    lungs: NDArray[np.bool_] = _read(path, shape) != 0
    return lungs


def _is_mask(path: Path, kind: Kind) -> bool:
    return path.parent.name.lower() == kind or path.stem.lower().startswith(kind)


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.integer]:
    mask = read_mask(path)
    if mask.shape != shape:
        raise BadData(
            f"{path.name}: has {' x '.join(map(str, mask.shape))} pixels, its slice "
            f"{' x '.join(map(str, shape))}; export the mask again or move it away."
        )
    return mask

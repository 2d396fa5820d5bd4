"""The text-ROI tree of the interstitial-lung-disease data set of Geneva (HUG): patches in HU.

Depeursinge et al., "Building a reference multimedia database for interstitial lung diseases",
Comput. Med. Imaging Graph. 36 (2012); patch protocol of Li et al., ICARCV 2014.

    ILD_DB_txtROIs/<patient>/[<series>/]CT-<ssss>-<nnnn>.dcm     slices
    ILD_DB_txtROIs/<patient>/[<series>/]CT-INSPIRIUM-<ssss>.txt  regions of one series

A region is a polygon in millimetres from the outer corner of the first pixel, x along columns
and y along rows. Pixel (row, column) belongs to it when the pixel's centre, which is
(column + 0.5, row + 0.5) in pixels, lies inside by the even-odd rule.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from common.data.dicom import SlicePosition, read_ct_slice, read_slice_position, series_key
from common.data.source import Image, Source
from common.errors import BadData

TREE = "ILD_DB_txtROIs"
_EXTRA_LEVEL = "HRCT_pilot"  # its folders are patients too
_SHOWN_PROBLEMS = 10

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Region:
    """One annotated polygon on one slice."""

    label: int | None  # index into the study's classes; None for a label outside them
    contour_px: tuple[tuple[float, float], ...]  # (x, y), x along columns


@dataclass(frozen=True, slots=True)
class IldReader:
    """Reads square patches that lie in regions of one label.

    Patches sit on a grid anchored at the image's first pixel, `stride` pixels apart. One is kept
    when at least `min_share` (0..1] of its pixels lie in the union of the regions of one of the
    study's classes, and none in a region of any other label, studied or not.
    """

    patch_size: int = 32
    stride: int = 16
    min_share: float = 0.75

    def find(self, root: Path, classes: Sequence[str]) -> tuple[Source, ...]:
        """Every slice with a region of one of the classes, in the order of patient and path.

        `root` is the tree or the folder that holds it under its name. Slices without regions and
        regions without a slice are left out, since the published set has both.
        Raises BadData with every problem found.
        """
        tree = root / TREE if (root / TREE).is_dir() else root
        class_of = {_singular(name): index for index, name in enumerate(classes)}
        problems: list[str] = []
        sources = []
        for patient, files in sorted(_files_by_patient(tree).items()):
            for path, contours in sorted(_contours_by_slice(files, problems).items()):
                regions = tuple(Region(class_of.get(_singular(c.label)), c.px) for c in contours)
                if any(region.label is not None for region in regions):
                    sources.append(Source(path, patient, None, regions))
        if not sources and not problems:
            problems.append(
                f"{root}: no slice with a region of {', '.join(classes)}; "
                f"name the folder {TREE} or the one that holds it."
            )
        if problems:
            hidden = len(problems) - _SHOWN_PROBLEMS
            raise BadData(
                "\n".join(problems[:_SHOWN_PROBLEMS] + [f"... and {hidden} more"] * (hidden > 0))
            )
        return tuple(sources)

    def decode(self, source: Source) -> tuple[Image, ...]:
        """The patches of one slice, (1, patch_size, patch_size) in HU, row by row."""
        hounsfield = read_ct_slice(source.path).hounsfield
        size, step = self.patch_size, self.stride
        if min(hounsfield.shape) < size:
            return ()
        masks: dict[int | None, NDArray[np.bool_]] = {}
        nowhere = np.zeros(hounsfield.shape, bool)
        for region in cast("tuple[Region, ...]", source.detail):
            inside = pixels_inside(region.contour_px, hounsfield.shape)
            masks[region.label] = masks.get(region.label, nowhere) | inside
        shares = {
            label: sliding_window_view(mask, (size, size))[::step, ::step].mean(axis=(2, 3))
            for label, mask in masks.items()
        }  # each (rows of the grid, columns of the grid)
        labels_touched = sum((share > 0).astype(int) for share in shares.values())
        label_of = np.full_like(labels_touched, -1)
        for label, share in shares.items():
            if label is not None:
                label_of[(share >= self.min_share) & (labels_touched == 1)] = label
        return tuple(
            Image(
                hounsfield[None, y : y + size, x : x + size].copy(),
                int(label_of[y // step, x // step]),
            )
            for y, x in np.argwhere(label_of >= 0) * step
        )


def pixels_inside(
    contour_px: Sequence[tuple[float, float]], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """The (height, width) pixels whose centre lies inside the closed contour, even-odd rule.

    A centre exactly on an edge belongs to the polygon to its right or below, so that polygons
    that share an edge share no pixel.

    >>> pixels_inside([(1, 0), (3, 0), (3, 2), (1, 2)], (2, 4)).astype(int).tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0]]
    """
    centre_y, centre_x = (np.arange(length) + 0.5 for length in shape)
    inside = np.zeros(shape, bool)
    for (x0, y0), (x1, y1) in pairwise([*contour_px, contour_px[0]]):
        rows = np.flatnonzero((y0 <= centre_y) != (y1 <= centre_y))
        if rows.size:
            crossing_x = x0 + (centre_y[rows] - y0) * (x1 - x0) / (y1 - y0)
            inside[rows] ^= crossing_x[:, None] <= centre_x  # (crossed rows, width)
    return inside


@dataclass(frozen=True, slots=True)
class _Contour:
    """One polygon as a text gives it."""

    label: str
    slice_number: int
    px: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class _Text:
    """The polygons of one series."""

    series: str  # `series_key`
    contours: tuple[_Contour, ...]


def _files_by_patient(tree: Path) -> dict[str, list[Path]]:
    """The slices and texts of each patient folder, whatever series folders it has."""
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(tree.rglob("*")):
        inside = path.relative_to(tree).parts
        if TREE in inside:  # else the folder of a whole tree would pass for one patient
            raise BadData(f"{tree}: holds {TREE} further inside; name the folder just above it.")
        folders = inside[1:-1] if inside[0] == _EXTRA_LEVEL else inside[:-1]
        if folders and not any(part.startswith(".") for part in inside):
            files[folders[0]].append(path)
    return files


def _contours_by_slice(files: Sequence[Path], problems: list[str]) -> dict[Path, list[_Contour]]:
    """One patient's polygons by the slice they lie on; adds to `problems` what can't be read."""
    texts = _readable(files, ".txt", _read_text, problems)
    texts = {path: text for path, text in texts.items() if text.contours}
    slices = _readable(files, ".dcm", read_slice_position, problems) if texts else {}
    claimed = {text.series for text in texts.values()}
    by_slice: dict[Path, list[_Contour]] = defaultdict(list)
    for path, text in texts.items():
        own = {file: at for file, at in slices.items() if at.series == text.series}
        # Where only one side's UIDs were changed, the folder says what belongs together.
        near = {
            file: at
            for file, at in slices.items()
            if file.parent == path.parent and at.series not in claimed
        }
        numbered = _by_number(own or near)
        if numbered is None:
            problems.append(
                f"{path.name}: InstanceNumber is missing or repeated in its slices, and their "
                "names don't follow SliceLocation; export the series again or remove the text."
            )
            continue
        for contour in text.contours:
            if contour.slice_number in numbered:
                by_slice[numbered[contour.slice_number]].append(contour)
    return by_slice


def _readable(
    files: Sequence[Path], suffix: str, read: Callable[[Path], T], problems: list[str]
) -> dict[Path, T]:
    """What `read` gives for each file of this kind; adds to `problems` what it refuses."""
    found = {}
    for path in files:
        if path.suffix.lower() == suffix:
            try:
                found[path] = read(path)
            except BadData as problem:
                problems.append(str(problem))
    return found


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


def _read_text(path: Path) -> _Text:
    """A series' polygons from its `key: value` lines; raises BadData naming file and line."""
    try:
        lines = enumerate(path.read_text("latin-1").splitlines(), start=1)
    except OSError as fault:
        raise BadData(f"{path.name}: can't be opened ({fault.strerror}).") from None
    values: dict[str, str] = {}
    contours = []
    for number, line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        values[key.lower()] = value
        if key.lower() != "nb_points_on_contour":
            continue
        try:
            spacing_mm = np.array([values["spacingx"], values["spacingy"]], float)
            points_mm = [next(lines)[1].split() for _ in range(int(value))]
            contour_mm = np.array(points_mm, float)  # (points, 2)
            if not (np.isfinite(contour_mm).all() and (spacing_mm > 0).all()):
                raise ValueError
            points_px = tuple((x, y) for x, y in (contour_mm / spacing_mm).tolist())
            if not points_px:
                raise ValueError
            contours.append(_Contour(values["label"], int(values["slice_number"]), points_px))
        except (KeyError, StopIteration, ValueError):
            raise BadData(
                f"{path.name}, line {number}: a contour needs label, slice_number, SpacingX and "
                "SpacingY above it, and nb_points_on_contour lines of x and y in mm below it."
            ) from None
    return _Text(series_key(values.get("series", "")), tuple(contours))


def _singular(label: str) -> str:
    """Labels are found in the singular and in the plural."""
    return label.lower().removesuffix("s")

"""The texts of ILD_DB_txtROIs: polygons of one series, `key: value` line by line.

A region is a polygon in millimetres from the outer corner of the first pixel, x along columns and
y along rows. A key keeps its value until set again; unknown keys are passed over.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from common.data.dicom import series_key
from common.data.ild.tree import Series
from common.errors import BadData

_FAR_PX = 1e6  # no slice reaches so far; NaN is no nearer


@dataclass(frozen=True, slots=True)
class Contour:
    """One polygon as a text gives it."""

    label: str
    px: tuple[tuple[float, float], ...]  # (x, y)


def read_texts(files: Sequence[Path], problems: list[str]) -> list[Series[Contour]]:
    """The polygons of each text that has any; adds to `problems` what can't be read."""
    found = []
    for path in files:
        if path.suffix.lower() == ".txt":
            try:
                found.append(_read(path))
            except BadData as problem:
                problems.append(str(problem))
    return [text for text in found if text.by_number]


def _read(path: Path) -> Series[Contour]:
    """A series' polygons; raises BadData naming file and line."""
    try:
        lines = enumerate(path.read_text("latin-1").splitlines(), start=1)
    except OSError as fault:
        raise BadData(f"{path.name}: can't be opened ({fault.strerror}).") from None
    values: dict[str, str] = {}
    by_number: dict[int, list[Contour]] = defaultdict(list)
    for number, line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        values[key.lower()] = value
        if key.lower() != "nb_points_on_contour":
            continue
        try:
            width_mm, height_mm = float(values["spacingx"]), float(values["spacingy"])
            count = int(value)
            split = [point.split() for _, point in islice(lines, count)]
            contour_px = tuple((float(x) / width_mm, float(y) / height_mm) for x, y in split)
            near = all(-_FAR_PX < x < _FAR_PX and -_FAR_PX < y < _FAR_PX for x, y in contour_px)
            if not (0 < width_mm < math.inf and 0 < height_mm < math.inf):
                raise ValueError
            if not (len(contour_px) == count > 0 and near):
                raise ValueError
            by_number[int(values["slice_number"])].append(Contour(values["label"], contour_px))
        except (ArithmeticError, KeyError, ValueError):
            raise BadData(
                f"{path.name}, line {number}: a contour needs label, slice_number, SpacingX and "
                "SpacingY above it, and nb_points_on_contour lines of x and y in mm below it."
            ) from None
    series = frozenset([series_key(values.get("series", ""))])
    return Series(path.name, path.parent, series, by_number)

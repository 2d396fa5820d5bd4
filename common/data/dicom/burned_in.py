"""A simple test for text that was drawn into an image (PS3.15 E.3.1: clean pixel data).

Letters are flat, thin, far from their surroundings, alike in height and stand in a row. The
test looks outside the image's middle, where anatomy is and overlays are not. It is a hint: what it
finds and misses on real slices and drawn text is measured in its test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MIN_LETTERS = 4  # in a row; fewer are a side mark or a scale
MIN_HEIGHT_PX = 6
MAX_HEIGHT_SHARE = 1 / 12  # of the image
ABOVE, BELOW = 0.02, 0.45  # of the range: how far a letter, smoothed edges too, is from its level
CONTRAST = 0.3  # of the range: between a letter and what surrounds it
LEVELS = 3  # brightness levels tried on each side of the middle grey, most frequent first
MAX_CANDIDATES = 3000  # more are texture, not text


@dataclass(frozen=True, slots=True)
class _Letter:
    left: int
    right: int
    top: int
    bottom: int

    @property
    def height(self) -> int:
        return self.bottom - self.top


def shows_text(image: NDArray[np.float32]) -> bool:
    """Whether a row of letters stands outside the middle of the (height, width) image."""
    low, high = float(image.min()), float(image.max())
    if not low < high:
        return False
    grey = (image - low) / (high - low)
    return any(
        _has_row(list(_letters(side, level)), side.shape)
        for side in (grey, 1 - grey)
        for level in _levels(side)
    )


def _levels(grey: NDArray[np.float32]) -> list[float]:
    """The brightest level and the most frequent ones of the brighter half."""
    values, counts = np.unique(grey[grey > 0.5], return_counts=True)
    frequent = values[np.argsort(counts)[-LEVELS:]]
    return sorted({1.0, *map(float, frequent)})


def _letters(grey: NDArray[np.float32], level: float) -> Iterator[_Letter]:
    """Connected pixels of this level that could be letters."""
    mask = (grey >= level - BELOW) & (grey <= level + ABOVE)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    tallest = max(MIN_HEIGHT_PX, int(grey.shape[0] * MAX_HEIGHT_SHARE))
    fitting = (areas >= MIN_HEIGHT_PX) & (areas <= tallest**2)
    if fitting.sum() > MAX_CANDIDATES:
        return
    boxes = ndimage.find_objects(labels)
    for index in np.flatnonzero(fitting):
        rows, columns = boxes[index]
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not (MIN_HEIGHT_PX <= height <= tallest and width <= 1.5 * height):
            continue
        stroke = labels[rows, columns] == index + 1
        if _is_thin(stroke) and _stands_out(grey, level, rows, columns):
            yield _Letter(columns.start, columns.stop, rows.start, rows.stop)


def _is_thin(stroke: NDArray[np.bool_]) -> bool:
    """Whether no part of the (height, width) shape is thicker than a pen's stroke."""
    thickest = 2 * ndimage.distance_transform_cdt(np.pad(stroke, 1), "chessboard").max() - 1
    return bool(thickest <= max(3, 0.3 * stroke.shape[0]))


def _stands_out(grey: NDArray[np.float32], level: float, rows: slice, columns: slice) -> bool:
    """Whether what surrounds the box is much darker than the letter, and mostly even."""
    around = grey[
        max(rows.start - 2, 0) : rows.stop + 2, max(columns.start - 2, 0) : columns.stop + 2
    ]
    return bool(np.median(around) <= level - CONTRAST)


def _has_row(letters: list[_Letter], shape: tuple[int, ...]) -> bool:
    """Whether enough letters follow one another on a line, outside the image's middle."""
    letters = sorted(letters, key=lambda letter: letter.left)
    for first, letter in enumerate(letters):
        row = [letter]
        for other in letters[first + 1 :]:
            if other.left - row[-1].right > letter.height:
                break
            if _same_line(letter, other) and other.left >= row[-1].right - 2:
                row.append(other)
        if len(row) >= MIN_LETTERS and _is_outside_middle(row, shape):
            return True
    return False


def _same_line(one: _Letter, other: _Letter) -> bool:
    """Whether two letters share the foot or the head line and are of about one height."""
    slack = max(1, round(0.15 * one.height))
    aligned = min(abs(one.bottom - other.bottom), abs(one.top - other.top)) <= slack
    return aligned and 0.6 <= other.height / one.height <= 1.7


def _is_outside_middle(row: list[_Letter], shape: tuple[int, ...]) -> bool:
    down = (row[0].top + row[0].bottom) / 2 / shape[0]
    across = (row[0].left + row[-1].right) / 2 / shape[1]
    return not (0.25 < down < 0.75 and 0.25 < across < 0.75)

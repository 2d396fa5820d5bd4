"""Which patches a slice gives: annotated pixels, the grid, the share and the label rule.

Patch protocol of Li et al., "Medical image classification with convolutional neural network",
ICARCV 2014. Pixel (row, column) lies in a polygon when its centre, (column + 0.5, row + 0.5) in
pixels from the image's outer corner, lies inside by the even-odd rule.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Label = int | str
"""The index into the study's classes, or the name of a label outside them."""

Contour = Sequence[tuple[float, float]]
"""(x, y) in pixels from the image's outer corner, x along columns."""

_Extent = tuple[float, float, float, float]  # lowest x and y, highest x and y

LabelRule = Literal["one", "largest"]


@dataclass(frozen=True, slots=True)
class Region:
    """One annotated polygon on one slice."""

    label: Label
    contour_px: tuple[tuple[float, float], ...]  # (x, y), x along columns


@dataclass(frozen=True, slots=True)
class Layer:
    """The pixels of one label on one slice, inside a box that holds them all."""

    top: int
    left: int
    inside: NDArray[np.bool_]  # (height, width) of the box


@dataclass(frozen=True, slots=True)
class Rules:
    """Which patches are taken; see `IldReader`."""

    size: int
    stride: int
    min_share: float
    label_rule: LabelRule
    random_shift: int


def pixels_inside(contour_px: Contour, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The (height, width) pixels whose centre lies inside the closed contour, even-odd rule.

    A centre exactly on an edge belongs to the polygon to its right or below, so that polygons
    that share an edge share no pixel.

    >>> pixels_inside([(1, 0), (3, 0), (3, 2), (1, 2)], (2, 4)).astype(int).tolist()
    [[0, 1, 1, 0], [0, 1, 1, 0]]
    """
    (layer,) = _drawn([contour_px], [_extent(contour_px)], shape)
    return _union([layer, Layer(0, 0, np.zeros(shape, np.bool_))]).inside


def region_layers(regions: Sequence[Region], shape: tuple[int, int]) -> dict[Label, Layer]:
    """The pixels of a slice of `shape` in each label's regions, cut at the slice's border.

    Raises ValueError where a region lies wholly outside the slice.
    """
    extents = [_extent(region.contour_px) for region in regions]
    for low_x, low_y, high_x, high_y in extents:
        if high_x < 0 or high_y < 0 or low_x > shape[1] or low_y > shape[0]:
            raise ValueError("a region lies wholly outside the slice")
    of_label: dict[Label, list[Layer]] = {}
    drawn = _drawn([region.contour_px for region in regions], extents, shape)
    for region, layer in zip(regions, drawn, strict=True):
        of_label.setdefault(region.label, []).append(layer)
    return {label: _union(layers) for label, layers in of_label.items()}


def code_layers(codes: NDArray[np.integer], labels: Sequence[Label]) -> dict[Label, Layer]:
    """The pixels of each code of a (height, width) map; code 0 is no label, c is `labels[c]`."""
    rows, columns = (np.flatnonzero(codes.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return {}
    top, left = int(rows[0]), int(columns[0])
    box = codes[top : rows[-1] + 1, left : columns[-1] + 1]
    layers: dict[Label, Layer] = {}
    for code in np.flatnonzero(np.bincount(box.ravel())[1:]) + 1:
        label, inside = labels[int(code)], box == code
        if label in layers:  # the site calls two codes one class
            inside |= layers[label].inside
        layers[label] = Layer(top, left, inside)
    return layers


def within(layer: Layer, lungs: NDArray[np.bool_]) -> Layer:
    """Only the pixels inside a slice's lungs, (height, width)."""
    height, width = layer.inside.shape
    box = lungs[layer.top : layer.top + height, layer.left : layer.left + width]
    return Layer(layer.top, layer.left, layer.inside & box)


def patch_places(
    layers: Mapping[Label, Layer], shape: tuple[int, int], rules: Rules
) -> list[tuple[int, int, int]]:
    """First row, first column and label of each patch of a slice of `shape`, row by row."""
    size = rules.size
    if not layers or size > min(shape):
        return []
    rows, columns = (_near(layers.values(), shape, axis, rules) for axis in (0, 1))
    y = np.arange(rows.start, rows.stop)[:, None] * rules.stride  # (rows, 1)
    x = np.arange(columns.start, columns.stop)[None] * rules.stride  # (1, columns)
    if rules.random_shift:
        shift_y, shift_x = _shifts(layers.values(), shape, rules)[:, rows, columns]
        y = (y + shift_y).clip(0, shape[0] - size)
        x = (x + shift_x).clip(0, shape[1] - size)
    counts = np.array([_counts(layer, y, x, size) for layer in layers.values()])  # (labels, ...)
    winner, largest = counts.argmax(axis=0), counts.max(axis=0)
    rivals = counts > 0 if rules.label_rule == "one" else counts == largest
    # What isn't studied wins nothing: -1.
    class_of = np.array([label if isinstance(label, int) else -1 for label in layers])[winner]
    enough = largest / size**2 >= rules.min_share
    kept = enough & (rivals.sum(axis=0) == 1) & (class_of >= 0)
    first_row, first_column = y + 0 * x, x + 0 * y  # each (rows, columns)
    places = (values[kept].tolist() for values in (first_row, first_column, class_of))
    return list(zip(*places, strict=True))


def _near(layers: Collection[Layer], shape: tuple[int, int], axis: int, rules: Rules) -> slice:
    """Which rows or columns of the grid have patches that can touch a layer."""
    starts = [(layer.top, layer.left)[axis] for layer in layers]
    ends = [start + layer.inside.shape[axis] for start, layer in zip(starts, layers, strict=True)]
    last = (shape[axis] - rules.size) // rules.stride
    reach = rules.size + rules.random_shift
    first_near = max(0, (min(starts) - reach) // rules.stride + 1)
    last_near = min(last, (max(ends) + rules.random_shift - 1) // rules.stride)
    return slice(first_near, max(first_near, last_near + 1))


def _drawn(
    contours_px: Sequence[Contour], extents_px: Sequence[_Extent], shape: tuple[int, int]
) -> list[Layer]:
    """The pixels of each polygon, in the box around it, cut at the border of `shape`.

    Each edge is crossed by some rows; from the first pixel right of the crossing on, a row is
    turned over, so a pixel is inside after an odd number of turns.
    """
    boxes, widths, origins, size = [], [], [], 0
    for low_x, low_y, high_x, high_y in extents_px:
        top, bottom = (min(max(0, y), shape[0]) for y in (math.floor(low_y), math.ceil(high_y)))
        left, right = (min(max(0, x), shape[1]) for x in (math.floor(low_x), math.ceil(high_x)))
        width = right - left + 1  # one more, for crossings beyond the last pixel
        origins.append(size - top * width - left)  # the boxes lie in one array, one after another
        widths.append(width)
        boxes.append((top, left, size, size + (bottom - top) * width))
        size = boxes[-1][-1]
    closed = [(*contour_px, contour_px[0]) for contour_px in contours_px]
    x, y = np.array(list(chain.from_iterable(closed))).T
    polygon = np.arange(len(closed)).repeat([len(contour_px) for contour_px in contours_px])
    edge = np.arange(len(polygon)) + polygon  # each polygon has one point more than edges
    centre_y, centre_x = (np.arange(length) + 0.5 for length in shape)
    first_row = centre_y.searchsorted(np.minimum(y[edge], y[edge + 1]))
    crossed = centre_y.searchsorted(np.maximum(y[edge], y[edge + 1])) - first_row  # rows an edge
    row = np.arange(crossed.sum()) - (crossed.cumsum() - crossed - first_row).repeat(crossed)
    edge, polygon = edge.repeat(crossed), polygon.repeat(crossed)
    x0, y0, x1, y1 = x[edge], y[edge], x[edge + 1], y[edge + 1]
    column = centre_x.searchsorted(x0 + (centre_y[row] - y0) * (x1 - x0) / (y1 - y0))
    places = np.array(origins)[polygon] + row * np.array(widths)[polygon] + column
    turns = np.bincount(places, minlength=size)
    # A closed contour turns each row an even number of times, so none is left to the next row.
    turned = np.bitwise_xor.accumulate((turns & 1).astype(np.bool_))
    return [
        Layer(top, left, turned[start:end].reshape(-1, width)[:, :-1])
        for (top, left, start, end), width in zip(boxes, widths, strict=True)
    ]


def _extent(contour_px: Contour) -> _Extent:
    x, y = zip(*contour_px, strict=True)
    return min(x), min(y), max(x), max(y)


def _union(layers: Sequence[Layer]) -> Layer:
    """All pixels of several layers, in the box around theirs."""
    if len(layers) == 1:
        return layers[0]
    top, left = min(layer.top for layer in layers), min(layer.left for layer in layers)
    bottom = max(layer.top + layer.inside.shape[0] for layer in layers)
    right = max(layer.left + layer.inside.shape[1] for layer in layers)
    inside = np.zeros((bottom - top, right - left), np.bool_)
    for layer in layers:
        height, width = layer.inside.shape
        y, x = layer.top - top, layer.left - left
        inside[y : y + height, x : x + width] |= layer.inside
    return Layer(top, left, inside)


def _counts(
    layer: Layer, y: NDArray[np.int64], x: NDArray[np.int64], size: int
) -> NDArray[np.int32]:
    """How many of the layer's pixels each patch at (y, x) holds; y and x are broadcast."""
    height, width = layer.inside.shape
    top, left = y - layer.top, x - layer.left
    if top.shape[1] == left.shape[0] == 1:  # a grid: by rows, then by columns
        row, column = np.arange(height) - top, np.arange(width)[:, None] - left
        in_rows = ((row >= 0) & (row < size)).astype(np.float32)  # (rows, height)
        in_columns = ((column >= 0) & (column < size)).astype(np.float32)  # (width, columns)
        # Exact: whole numbers below 2**24.
        return (in_rows @ layer.inside.astype(np.float32) @ in_columns).astype(np.int32)
    bottom, right = (top + size).clip(0, height), (left + size).clip(0, width)
    top, left = top.clip(0, height), left.clip(0, width)
    sums = np.zeros((height + 1, width + 1), np.int32)  # of all pixels above and to the left
    np.cumsum(np.cumsum(layer.inside, axis=0, dtype=np.int32), axis=1, out=sums[1:, 1:])
    counts: NDArray[np.int32] = (
        sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    )
    return counts


def _shifts(layers: Collection[Layer], shape: tuple[int, int], rules: Rules) -> NDArray[np.int64]:
    """Each place's offset (2, rows, columns of the whole grid), drawn from the geometry alone.

    Two slices annotated alike get the same offsets, whoever they are of and whatever is on them.
    """
    annotated = _union([*layers, Layer(0, 0, np.zeros(shape, np.bool_))]).inside
    stream = hashlib.shake_128(f"{shape} ".encode() + np.packbits(annotated).tobytes())
    rows, columns = ((length - rules.size) // rules.stride + 1 for length in shape)
    drawn = np.frombuffer(stream.digest(2 * rows * columns * 4), "<u4").reshape(2, rows, columns)
    return (drawn % (2 * rules.random_shift + 1)).astype(np.int64) - rules.random_shift

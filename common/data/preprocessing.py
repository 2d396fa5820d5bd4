"""From a file's pixels to the model's input: intensities by public constants, then size and slices.

Nothing is fitted on a site's data: each step knows one image and constants that the study names.
Histogram equalisation and CLAHE are scikit-image's, median and Gaussian SciPy's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from common.config import CHANNELS, Intensity, Step
from common.errors import BadData

BLANK = -1.0
"""Where an image has no pixels, beside it and as whole slices: the lowest value after clipping."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What the model's input is made by; its `repr` names it completely (it is in the cache's key).

    **A slice whose pixels are all equal carries nothing**: `fit: pad` adds such slices, and the
    model's pooling leaves them out by that alone. So a scanner's own empty slice is left out too.

    Args:
        image_size_px: side of the result.
        intensity: pixel values that become -1 and +1.
        steps: after the intensity map and before resizing, in this order; all but min-max (of a
            whole volume) on each slice by itself.
        slices: of each volume; None: images are pictures.
        fit: how volumes of other lengths come to `slices`. resample: by `resample_slices`; pad:
            their own slices first, then blank ones (only longer volumes are resampled).
    """

    image_size_px: int
    intensity: Intensity
    steps: tuple[Step, ...] = ()
    slices: int | None = None
    fit: Literal["resample", "pad"] = "resample"

    def shape(self, planes: int) -> tuple[int, ...]:
        """The shape of one image of so many volumes (0: a picture).

        >>> Preprocessing(32, Intensity()).shape(0)
        (1, 32, 32)
        >>> Preprocessing(96, Intensity(), slices=12).shape(3)
        (3, 12, 96, 96)
        """
        size = (self.image_size_px, self.image_size_px)
        return (CHANNELS, *size) if self.slices is None else (planes, self.slices, *size)

    def apply(self, planes: tuple[NDArray[np.float32], ...]) -> NDArray[np.float32]:
        """One image as the model sees it.

        Args:
            planes: each (slices, height, width), finite, in the file's own unit; none is empty.

        Returns:
            `shape(len(planes))`, in [-1, 1], or beyond where `intensity` doesn't clip.

        Raises:
            BadData: the study wants pictures and this is none.
        """
        if self.slices is None:
            if len(planes) != 1 or len(planes[0]) != 1:
                raise BadData(
                    f"expected a picture; got {len(planes)} volume(s) of "
                    f"{', '.join(str(len(plane)) for plane in planes)} slices. "
                    "Set data.slices to read volumes, or name single pictures."
                )
            return self._fitted(planes[0], 1)
        return np.stack([self._fitted(plane, self.slices) for plane in planes])

    def _fitted(self, volume: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        """(S, H, W) in the file's unit as (count, size, size)."""
        size = self.image_size_px
        volume = _mapped(volume, self.intensity)
        for step in self.steps:
            volume = _STEPS[step](volume)
        # Before resizing, which costs more a slice, and which keeps equal pixels equal.
        if self.fit == "resample" or len(volume) > count:
            volume = resample_slices(volume, count)
        fitted = np.full((count, size, size), BLANK, dtype=np.float32)
        for square, pixels in zip(fitted, volume, strict=False):
            _resize_into(square, pixels)
        return fitted


def resample_slices(volume: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """(S, H, W) as (count, H, W): linear between the centres of neighbouring slices.

    Slice i of the result lies at (i + 1/2) S / count - 1/2 of the volume's own, its ends repeated:
    no slice is thicker than before, so a volume more than twice as long loses slices in between.

    >>> resample_slices(np.array([0, 1, 2, 3], np.float32).reshape(4, 1, 1), 2).ravel().tolist()
    [0.5, 2.5]
    """
    if len(volume) == count:
        return volume
    last = len(volume) - 1
    places = np.clip((np.arange(count) + 0.5) * len(volume) / count - 0.5, 0, last)
    resampled = np.empty((count, *volume.shape[1:]), dtype=np.float32)
    for row, place in zip(resampled, places.tolist(), strict=True):
        below = volume[int(place)]
        np.subtract(volume[min(int(place) + 1, last)], below, out=row)
        row *= place % 1
        row += below  # in this order equal pixels stay equal to the last bit
    return resampled


def _mapped(volume: NDArray[np.float32], intensity: Intensity) -> NDArray[np.float32]:
    low, high = intensity.low, intensity.high
    mapped = np.clip(volume, low, high) if intensity.clip else volume.copy()
    mapped -= low  # in place: fresh memory for a volume costs more than the arithmetic
    mapped *= 2 / (high - low)
    mapped -= 1
    return mapped


def _min_max(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """The volume's lowest value becomes -1, its highest 1; where they are equal, all is blank."""
    low, high = volume.min(), volume.max()
    if low == high:
        return np.full_like(volume, BLANK)
    volume -= low  # the map's own copy
    volume /= (high - low) / 2  # a division: x / x is 1 to the last bit
    volume -= 1
    return volume


def _equalized(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    from skimage.exposure import equalize_hist

    return _each_unit(volume, equalize_hist)


def _clahe(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    from skimage.exposure import equalize_adapthist

    return _each_unit(volume, equalize_adapthist)


def _each_unit(
    volume: NDArray[np.float32], change: Callable[[NDArray[np.floating]], NDArray[np.floating]]
) -> NDArray[np.float32]:
    """`change` of each slice, stretched to [0, 1] for it; a constant slice stays."""
    for pixels in volume:
        if pixels.min() < pixels.max():
            pixels[:] = change((_min_max(pixels) + 1) / 2) * 2 - 1
    return volume


def _median(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    from scipy.ndimage import median_filter

    smoothed: NDArray[np.float32] = median_filter(volume, size=(1, 3, 3))
    return smoothed


def _gaussian(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    smoothed: NDArray[np.float32] = gaussian_filter(volume, sigma=(0, 1, 1))
    return smoothed


_STEPS: Mapping[Step, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "min-max": _min_max,
    "equalize": _equalized,
    "clahe": _clahe,
    "median": _median,
    "gaussian": _gaussian,
}


def _resize_into(square: NDArray[np.float32], pixels: NDArray[np.float32]) -> None:
    """Fit (H, W) into the middle of a blank square, antialiased; proportions are kept."""
    size, shape = len(square), pixels.shape
    if shape == square.shape:
        square[:] = pixels
        return
    # The image is resized, then laid on the square: a square around a very long image would not
    # fit into memory.
    rows, columns = (max(1, round(side * (size / max(shape)))) for side in shape)
    top, left = (size - rows) // 2, (size - columns) // 2
    resized = Pillow.fromarray(pixels).resize((columns, rows), Pillow.Resampling.BILINEAR)
    square[top : top + rows, left : left + columns] = np.asarray(resized)

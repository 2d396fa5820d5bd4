"""Slices and masks brought to one spacing of pixels."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

T = TypeVar("T", bound=np.generic)


def resampled_shape(
    shape: tuple[int, int], pixel_spacing_mm: tuple[float, float], target_mm: float
) -> tuple[int, int]:
    """(height, width) of the same area in pixels of `target_mm`; spacings are by row and column.

    >>> resampled_shape((512, 512), (0.5, 0.75), 1.0)
    (256, 384)
    """
    height, width = (
        max(1, round(length * mm / target_mm))
        for length, mm in zip(shape, pixel_spacing_mm, strict=True)
    )
    return height, width


def resample_pixels(pixels: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """(height, width) as `shape`: bilinear, with a wider kernel where pixels become fewer."""
    if pixels.shape == shape:
        return pixels
    resized = Pillow.fromarray(pixels).resize(shape[::-1], Pillow.Resampling.BILINEAR)
    return np.asarray(resized)


def resample_mask(mask: NDArray[T], shape: tuple[int, int]) -> NDArray[T]:
    """(height, width) as `shape`: each pixel takes the one that its centre lies in."""
    if mask.shape == shape:
        return mask
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for old, new in zip(mask.shape, shape, strict=True)
    )
    resampled: NDArray[T] = mask[rows[:, None], columns]
    return resampled

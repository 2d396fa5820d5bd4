"""Images that are not DICOM: PNG, JPEG, TIFF and .npy as grey values in the file's own unit."""

from __future__ import annotations

import struct
import tokenize
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageSequence

from common.data.dicom import MAX_PIXELS, MAX_VOXELS
from common.errors import BadData

STACKS = (".npy", ".tif", ".tiff")  # suffixes of files that can hold a volume
PICTURES = (".jpeg", ".jpg", ".png", *STACKS)
_PHOTOMETRIC = 262  # TIFF 6.0, PhotometricInterpretation; 0: white is zero

# What Pillow and numpy raise on files cut, flipped or made up.
_FAULTS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    Pillow.DecompressionBombError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
)


def read_picture(path: Path) -> NDArray[np.float32]:
    """The one image in a file with a suffix of PICTURES, (height, width).

    Colour becomes luminance; deep greys keep their values. Raises BadData naming the file.
    """
    if path.suffix.lower() == ".npy":
        return _finite(path, _read_npy(path, ("height", "width")))
    with _opened(path, "PNG", "JPEG", "TIFF") as picture:
        if picture.format == "TIFF" and getattr(picture, "n_frames", 1) != 1:
            raise BadData(f"{path.name}: is a stack of images; save one image a file.")
        return _finite(path, _grey(picture, path))


def read_stack(path: Path) -> NDArray[np.float32]:
    """The volume in a file with a suffix of STACKS, (slices, height, width).

    A TIFF's pages are the slices, in their order. Raises BadData naming the file.
    """
    if path.suffix.lower() == ".npy":
        return _finite(path, _read_npy(path, ("slices", "height", "width")))
    with _opened(path, "TIFF") as picture:
        if picture.width * picture.height * getattr(picture, "n_frames", 1) > MAX_VOXELS:
            raise BadData(f"{path.name}: has more than {MAX_VOXELS} voxels; export it smaller.")
        pages = [_grey(page, path) for page in ImageSequence.Iterator(picture)]
        if len({page.shape for page in pages}) != 1:
            raise BadData(f"{path.name}: has pages of several sizes; save the slices alone.")
        return _finite(path, np.stack(pages))


@contextmanager
def _opened(path: Path, *formats: str) -> Iterator[Pillow.Image]:
    """The file as Pillow sees it by its header; pixels are decoded inside the block."""
    *others, last = formats
    wanted = f"{', '.join(others)} or {last}" if others else last
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they can quote a file's metadata
            with Pillow.open(path, formats=formats) as picture:
                yield picture
    except _FAULTS:
        raise BadData(
            f"{path.name}: expected a {wanted} image; it can't be read as one. "
            "Replace the file or remove its line."
        ) from None


def _grey(picture: Pillow.Image, path: Path) -> NDArray[np.float32]:
    """The one grey channel (H, W): colour becomes luminance, deep greys keep their values."""
    if picture.width * picture.height > MAX_PIXELS:
        raise BadData(f"{path.name}: has more than {MAX_PIXELS} pixels; export it smaller.")
    if not picture.mode.startswith(("I", "F")):  # more than 8 bits
        return np.asarray(picture.convert("L"), dtype=np.float32)
    if getattr(picture, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # Pillow inverts only 8 bits
        raise BadData(f"{path.name}: stores white as zero; export it with black as zero.")
    return np.asarray(picture, dtype=np.float32)


def _read_npy(path: Path, axes: tuple[str, ...]) -> NDArray[np.float32]:
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # unlike np.load, never a zip or pickle
    except _FAULTS:
        raise BadData(
            f"{path.name}: expected a numpy array (.npy); it can't be read as one. "
            "Replace the file or remove its line."
        ) from None
    if array.ndim != len(axes) or array.size == 0 or array.dtype.kind not in "uif":
        raise BadData(
            f"{path.name}: expected a numeric array ({', '.join(axes)}); got shape {array.shape} "
            f"of {array.dtype}. Save one grey image or volume a file."
        )
    height, width = array.shape[-2:]
    if height * width > MAX_PIXELS or array.size > MAX_VOXELS:
        raise BadData(
            f"{path.name}: has more than {MAX_PIXELS} pixels or {MAX_VOXELS} voxels; "
            "export it smaller."
        )
    with np.errstate(over="ignore"):  # infinite then, and refused
        return np.array(array, dtype=np.float32)


def _finite(path: Path, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(pixels).all():
        raise BadData(f"{path.name}: has pixels that are not finite; export it again.")
    return pixels

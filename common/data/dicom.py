"""The one door to DICOM files: greyscale pixels with their meaning, nothing that identifies.

DICOM PS3.3 C.7.6.3 (image pixel), C.8.2.1 (CT image), C.11.1 (modality LUT).

Errors name the file and the attribute at fault, never a value of the header: pydicom's own
exceptions, warnings and log lines may quote values, so they end here.
"""

from __future__ import annotations

import hashlib
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut

from common.errors import BadData

MAX_PIXELS = 8192 * 8192  # a larger claim is a broken or hostile header, not a radiograph
AIR_HU = -1024.0  # the floor of the CT scale as scanners store it; only padding lies below

# The kinds of exception that pydicom and its decoders raise on files cut, flipped or made up.
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote values


@dataclass(frozen=True, slots=True)
class SlicePosition:
    """Where a slice stands in its series, as far as its header says."""

    instance_number: int | None  # (0020,0013)
    slice_location_mm: float | None  # (0020,1041)
    series: str  # `series_key` of SeriesInstanceUID (0020,000E)


@dataclass(frozen=True, slots=True)
class Slice:
    """One axial CT slice in Hounsfield units."""

    hounsfield: NDArray[np.float32]  # (height, width), never below AIR_HU
    pixel_spacing_mm: tuple[float, float]  # between rows, between columns; (0028,0030)
    position: SlicePosition


def series_key(series_instance_uid: str) -> str:
    """A one-way key, equal where two SeriesInstanceUIDs are equal.

    >>> series_key("1.2.3") == series_key(" 1.2.3 ")
    True
    """
    return hashlib.sha256(series_instance_uid.strip(" \0").encode(errors="replace")).hexdigest()[
        :16
    ]


def read_ct_slice(path: Path) -> Slice:
    """The slice in `path`: stored values rescaled to HU, padding raised to AIR_HU.

    Raises BadData where the file is no single-frame CT image with RescaleSlope,
    RescaleIntercept and PixelSpacing.
    """
    header = _read(path)
    if _text(path, header, "Modality") != "CT":
        raise BadData(f"{path.name}: Modality must be CT; leave out what is no CT slice.")
    (slope,) = _numbers(path, header, "RescaleSlope", 1)
    (intercept,) = _numbers(path, header, "RescaleIntercept", 1)
    row_mm, column_mm = _numbers(path, header, "PixelSpacing", 2)
    if min(row_mm, column_mm) <= 0:
        raise BadData(f"{path.name}: PixelSpacing must be above 0 mm; export the file again.")
    # Padding of -2000 is sometimes stored in unsigned pixels; read as signed they give it back.
    stored = _stored_values(path, header).astype(np.int16).astype(np.float64)
    hounsfield = _float32(path, np.maximum(stored * slope + intercept, AIR_HU))
    return Slice(hounsfield, (row_mm, column_mm), _position(path, header))


def read_slice_position(path: Path) -> SlicePosition:
    """The slice's place in its series, from the header alone; raises BadData if unreadable."""
    return _position(path, _read(path, stop_before_pixels=True))


def read_grey(path: Path) -> NDArray[np.float32]:
    """The (height, width) image in `path`, of any modality, larger values brighter.

    The rescale or modality LUT is applied; MONOCHROME1 is inverted within its stored range.
    Raises BadData where the file is no single-frame greyscale image.
    """
    header = _read(path)
    stored = _stored_values(path, header)
    if _text(path, header, "PhotometricInterpretation") == "MONOCHROME1":
        (bits,) = _numbers(path, header, "BitsStored", 1)
        signed = np.issubdtype(stored.dtype, np.signedinteger)
        stored = (-1 if signed else 2 ** int(bits) - 1) - stored.astype(np.int64)
    with _faults_named(path, "RescaleSlope or ModalityLUTSequence is broken."):
        return _float32(path, apply_modality_lut(stored, header))


def _read(path: Path, *, stop_before_pixels: bool = False) -> pydicom.FileDataset:
    with _faults_named(path, "expected a DICOM file; it is none, is cut short or can't be opened."):
        return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)


def _stored_values(path: Path, header: pydicom.FileDataset) -> NDArray[np.integer]:
    """The (height, width) integers as stored, decoded only after the header's claims passed."""
    if "PixelData" not in header:
        raise BadData(f"{path.name}: PixelData is missing; leave out what is no image.")
    (rows,), (columns,) = (_numbers(path, header, side, 1) for side in ("Rows", "Columns"))
    if not (rows >= 1 and columns >= 1 and rows * columns <= MAX_PIXELS):
        raise BadData(f"{path.name}: Rows x Columns must be between 1 and {MAX_PIXELS} pixels.")
    if _numbers(path, header, "NumberOfFrames", 1, default=(1.0,)) != (1.0,):
        raise BadData(f"{path.name}: NumberOfFrames must be 1; export single frames.")
    if _text(path, header, "PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise BadData(f"{path.name}: PhotometricInterpretation must be MONOCHROME1 or MONOCHROME2.")
    if _numbers(path, header, "BitsAllocated", 1)[0] not in (8, 16):
        raise BadData(f"{path.name}: BitsAllocated must be 8 or 16.")
    with _faults_named(path, "no decoder here for its TransferSyntaxUID; save it uncompressed."):
        if not get_decoder(header.file_meta.TransferSyntaxUID).is_available:
            raise NotImplementedError
    with _faults_named(path, "PixelData is broken; export the file again."):
        stored = header.pixel_array
        if stored.shape != (rows, columns):
            raise ValueError
        return stored


def _float32(path: Path, values: NDArray[np.generic]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        narrowed = values.astype(np.float32)
    if not np.isfinite(narrowed).all():
        raise BadData(f"{path.name}: RescaleSlope and RescaleIntercept give infinite values.")
    return narrowed


def _position(path: Path, header: pydicom.FileDataset) -> SlicePosition:
    number = _numbers(path, header, "InstanceNumber", 1, default=())
    location = _numbers(path, header, "SliceLocation", 1, default=())
    return SlicePosition(
        instance_number=int(number[0]) if number else None,
        slice_location_mm=location[0] if location else None,
        series=series_key(_text(path, header, "SeriesInstanceUID")),
    )


def _text(path: Path, header: pydicom.FileDataset, keyword: str) -> str:
    """The attribute as text, empty where absent."""
    with _faults_named(path, f"{keyword} can't be read; export the file again."):
        return str(header.get(keyword) or "")


def _numbers(
    path: Path,
    header: pydicom.FileDataset,
    keyword: str,
    count: int,
    *,
    default: tuple[float, ...] | None = None,
) -> tuple[float, ...]:
    """The attribute's `count` finite numbers, or `default` where it is absent or empty."""
    with _faults_named(path, f"{keyword} is missing or broken; export the file again."):
        value = header.get(keyword)
        if default is not None and value in (None, ""):
            return default
        numbers = tuple(float(number) for number in np.atleast_1d(value))
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise ValueError
        return numbers


@contextmanager
def _faults_named(path: Path, fault: str) -> Iterator[None]:
    """Turn whatever pydicom says about a file into one sentence that quotes no value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except _FAULTS:
            raise BadData(f"{path.name}: {fault}") from None

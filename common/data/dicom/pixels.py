"""Pixels with their meaning: Hounsfield units, grey values, labels.

DICOM PS3.3 C.8.2.1 (CT image), C.11.1 (modality LUT), C.7.6.16.2.9 (rescale of a frame).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from common.data.dicom import codecs
from common.data.dicom.header import PIXEL_DATA, Header, has, numbers_of, one_way, opened, tags
from common.data.dicom.stored import PIXEL_TAGS, Stored, stored_pixels

AIR_HU = -1024.0  # the floor of the CT scale as scanners store it; only padding lies below

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue: PS3.3 C.7.6.3.1.2
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_LUMINANCE_FIRST = ("YBR_FULL", "YBR_FULL_422")

POSITION_TAGS = tags("SeriesInstanceUID", "InstanceNumber", "SliceLocation")
_SLICE_TAGS = PIXEL_TAGS | POSITION_TAGS


@dataclass(frozen=True, slots=True)
class SlicePosition:
    """Where a slice stands in its series, as far as its header says."""

    instance_number: int | None  # (0020,0013)
    slice_location_mm: float | None  # (0020,1041)
    series: str  # `series_key` of SeriesInstanceUID (0020,000E)


@dataclass(frozen=True, slots=True)
class Slice:
    """One axial CT slice, in Hounsfield units once they are asked for."""

    shape: tuple[int, int]  # (height, width)
    pixel_spacing_mm: tuple[float, float]  # between rows, between columns; (0028,0030)
    position: SlicePosition
    # (height, width) HU of these rows and columns, never below AIR_HU: patches need few of them.
    part: Callable[[slice, slice], NDArray[np.float32]]

    @property
    def hounsfield(self) -> NDArray[np.float32]:
        """All of it, (height, width) in HU, never below AIR_HU."""
        return self.part(slice(None), slice(None))


def series_key(series_instance_uid: str) -> str:
    """A one-way key, equal where two SeriesInstanceUIDs are equal.

    >>> series_key("1.2.3") == series_key(" 1.2.3 ")
    True
    """
    return one_way(series_instance_uid)


def read_ct_slice(path: Path) -> Slice:
    """The slice in `path`: stored values rescaled to HU, padding raised to AIR_HU.

    Raises BadData where the file is no single-frame CT image with RescaleSlope,
    RescaleIntercept and PixelSpacing.
    """
    with opened(path, _SLICE_TAGS, last=PIXEL_DATA) as header:
        if header.text("Modality") != "CT":
            raise header.refuse("Modality must be CT; leave out what is no CT slice.")
        header.number("RescaleSlope")
        header.number("RescaleIntercept")
        row_mm, column_mm = header.numbers("PixelSpacing", 2)
        if min(row_mm, column_mm) <= 0:
            raise header.refuse("PixelSpacing must be above 0 mm; export the file again.")
        stored, position = stored_pixels(header, frames=1), _position(header)
        unnamed = replace(header, preamble=b"", meta=Dataset())  # `part` keeps it: no identifiers
        unnamed.data.pop("SeriesInstanceUID", None)

        def part(rows: slice, columns: slice) -> NDArray[np.float32]:
            seen = replace(stored, values=stored.values[:, rows, columns])
            hounsfield: NDArray[np.float32] = grey_frames(unnamed, seen)[0]
            return hounsfield

        part(slice(1), slice(1))  # what can't be rescaled is refused now
        height, width = stored.values.shape[1:3]
        return Slice((height, width), (row_mm, column_mm), position, part)


def read_slice_position(path: Path) -> SlicePosition:
    """The slice's place in its series, from the header alone; raises BadData if unreadable."""
    with opened(path, POSITION_TAGS, last=max(POSITION_TAGS)) as header:
        return _position(header)


def read_grey(path: Path) -> NDArray[np.float32]:
    """The (height, width) image in `path`, of any modality, larger values brighter.

    The rescale or modality LUT is applied; MONOCHROME1 is inverted within its stored range; CT is
    in HU with padding raised to AIR_HU; colours become their luminance. Raises BadData where the
    file is no single-frame image.
    """
    with opened(path, PIXEL_TAGS, last=PIXEL_DATA) as header:
        grey: NDArray[np.float32] = grey_frames(header, stored_pixels(header, frames=1))[0]
        return grey


def read_mask(path: Path) -> NDArray[np.integer]:
    """The (height, width) label map in `path`: integers as stored, no rescale, no inversion.

    Raises BadData where the file is no single-frame image of one sample a pixel, or was compressed
    with loss, which invents labels at every border.
    """
    with opened(path, PIXEL_TAGS, last=PIXEL_DATA) as header:
        if header.syntax in codecs.LOSSY or header.text("LossyImageCompression") == "01":
            raise header.refuse("TransferSyntaxUID or LossyImageCompression says lossy; no mask.")
        stored = stored_pixels(header, frames=1)
        if stored.values.ndim != 3:
            raise header.refuse("SamplesPerPixel must be 1 in a mask.")
        mask: NDArray[np.integer] = stored.values[0]
        return mask


def grey_frames(header: Header, stored: Stored) -> NDArray[np.float32]:
    """(frames, height, width) grey values of `stored`, larger ones brighter, in the file's unit."""
    if stored.photometric == "PALETTE COLOR":
        return _palette_luminance(header, stored.values)
    if stored.values.ndim == 4:
        return _luminance(header, stored)
    if has(header.data, "ModalityLUTSequence"):
        return _looked_up(header, stored)
    if header.text("Modality") == "CT":
        return _hounsfield(header, stored)
    return _rescaled(header, stored.values, stored.photometric)


def _hounsfield(header: Header, stored: Stored) -> NDArray[np.float32]:
    """Rescaled values, what is padding raised to AIR_HU."""
    values = stored.values
    # Padding of -2000 is sometimes stored in unsigned pixels; read as signed they give it back.
    wrapped = values.dtype.str[1:] == "u2" and header.number("BitsStored") == 16
    if wrapped:
        values = values.view(values.dtype.str.replace("u", "i"))
    hounsfield = _rescaled(header, values, stored.photometric)
    np.maximum(hounsfield, np.float32(AIR_HU), out=hounsfield)
    padding = header.numbers("PixelPaddingValue", 1, default=())
    padding += header.numbers("PixelPaddingRangeLimit", 1, default=())
    if padding:
        ends = [end - 65536 if wrapped and end > 32767 else end for end in padding]
        rescales = _rescales(header, len(values))
        if any(slope * end + intercept > AIR_HU for slope, intercept in rescales for end in ends):
            hounsfield[(values >= min(ends)) & (values <= max(ends))] = AIR_HU
    return hounsfield


def _rescaled(header: Header, values: NDArray[np.integer], photometric: str) -> NDArray[np.float32]:
    """slope * value + intercept, frame by frame; MONOCHROME1 inverted within its stored range."""
    grey = values.astype(np.float32)
    largest = float(np.iinfo(values.dtype).max) + 1
    for frame, (slope, intercept) in zip(grey, _rescales(header, len(values)), strict=True):
        if largest * abs(slope) + abs(intercept) > _MAX_FLOAT32:
            raise header.refuse("RescaleSlope and RescaleIntercept give infinite values.")
        if photometric == "MONOCHROME1":
            signed = header.number("PixelRepresentation") == 1
            lowest_plus_highest = -1.0 if signed else 2.0 ** header.number("BitsStored") - 1
            slope, intercept = -slope, intercept + slope * lowest_plus_highest
        if slope != 1:
            frame *= np.float32(slope)
        if intercept != 0:
            frame += np.float32(intercept)
    return grey


def _rescales(header: Header, frames: int) -> list[tuple[float, float]]:
    """(slope, intercept) of each frame; (1, 0) where the header gives none."""
    found = []
    for frame in range(frames):
        item = header.data
        if not has(item, "RescaleSlope"):
            item = functional_group(header, frame, "PixelValueTransformationSequence") or item
        (slope,) = numbers_of(header, item, "RescaleSlope", 1, default=(1.0,))
        (intercept,) = numbers_of(header, item, "RescaleIntercept", 1, default=(0.0,))
        found.append((slope, intercept))
        if item is header.data:
            return found * frames
    return found


def functional_group(header: Header, frame: int, keyword: str) -> Dataset | None:
    """The item of this sequence that holds for the frame (C.7.6.16), if the file has one."""

    def find() -> Dataset | None:
        for groups, index in (
            (header.data.get("PerFrameFunctionalGroupsSequence"), frame),
            (header.data.get("SharedFunctionalGroupsSequence"), 0),
        ):
            if groups and index < len(groups) and groups[index].get(keyword):
                item = groups[index][keyword][0]
                assert isinstance(item, Dataset)
                return item
        return None

    return header.attempt(find, f"{keyword} is broken; export the file again.")


def _looked_up(header: Header, stored: Stored) -> NDArray[np.float32]:
    """Values through the modality LUT; MONOCHROME1 inverted within the range of its entries."""

    def look_up() -> NDArray[np.float32]:
        grey = apply_modality_lut(stored.values, header.data).astype(np.float32)
        if stored.photometric == "MONOCHROME1":
            bits = int(header.data.ModalityLUTSequence[0].LUTDescriptor[2])
            grey = np.float32(2**bits - 1) - grey
        return grey

    return header.attempt(look_up, "ModalityLUTSequence is broken; export the file again.")


def _luminance(header: Header, stored: Stored) -> NDArray[np.float32]:
    """What a grey print of the colours shows: (frames, height, width)."""
    if stored.photometric in _LUMINANCE_FIRST:
        return stored.values[..., 0].astype(np.float32)
    if stored.photometric == "RGB":
        return stored.values.astype(np.float32) @ LUMINANCE
    raise header.refuse("PhotometricInterpretation does not go with its TransferSyntaxUID.")


def _palette_luminance(header: Header, values: NDArray[np.integer]) -> NDArray[np.float32]:
    """Indices are no brightness: mapped to the palette's colours, then to their luminance.

    Segmented palettes, which can expand without bound, are none of the tags that are read.
    """
    if not header.syntax.is_little_endian:
        raise header.refuse("PALETTE COLOR in a big-endian TransferSyntaxUID; export it as RGB.")
    return header.attempt(
        lambda: apply_color_lut(values, header.data).astype(np.float32) @ LUMINANCE,
        "RedPaletteColorLookupTableData and its sisters are missing, segmented or broken.",
    )


def _position(header: Header) -> SlicePosition:
    number = header.numbers("InstanceNumber", 1, default=())
    location = header.numbers("SliceLocation", 1, default=())
    return SlicePosition(
        instance_number=int(number[0]) if number else None,
        slice_location_mm=location[0] if location else None,
        series=series_key(header.text("SeriesInstanceUID")),
    )

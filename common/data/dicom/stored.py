"""Pixels as a file stores them: bounded claims, then decoding (PS3.3 C.7.6.3, PS3.5 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, RLELossless

from common.data.dicom import codecs
from common.data.dicom.header import PIXEL_DATA, Header, has, tags

MAX_PIXELS = 8192 * 8192  # a larger claim is a broken or hostile header, not a radiograph
MAX_VOXELS = 1024 * 512 * 512  # of a volume

# PhotometricInterpretation and its SamplesPerPixel.
_SAMPLES = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}

PIXEL_TAGS = tags(
    *("SOPClassUID", "Modality", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "NumberOfFrames", "Rows", "Columns", "PixelSpacing"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "LossyImageCompression"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"),
    *("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData"),
    *("GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"),
    *("BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData"),
    *("ModalityLUTSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)

# Codestreams that tell their own number of bits: nothing is left in bits above.
_EXACT = frozenset({*JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes})

codecs.register()


@dataclass(frozen=True, slots=True)
class Stored:
    """Pixels as stored, unused bits cleaned (PS3.5 8.1.1)."""

    values: NDArray[np.integer]  # (frames, height, width) or (frames, height, width, 3)
    photometric: str  # PhotometricInterpretation (0028,0004) as decoded


@dataclass(frozen=True, slots=True)
class _Claims:
    """The image pixel module (PS3.3 C.7.6.3) of one file, within bounds."""

    frames: int
    rows: int
    columns: int
    photometric: str
    planar: int
    allocated: int  # bits
    stored: int  # bits
    signed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        samples = _SAMPLES[self.photometric]
        return (self.frames, self.rows, self.columns, *([samples] if samples > 1 else []))

    def options(self) -> dict[str, Any]:
        """The same under the names that pydicom's decoders use."""
        return {
            "number_of_frames": self.frames,
            "rows": self.rows,
            "columns": self.columns,
            "samples_per_pixel": _SAMPLES[self.photometric],
            "photometric_interpretation": self.photometric,
            "planar_configuration": self.planar,
            "bits_allocated": self.allocated,
            "bits_stored": self.stored,
            "pixel_representation": int(self.signed),
        }


def stored_pixels(header: Header, *, frames: int | None = None) -> Stored:
    """The file's pixels, decoded only after the header's claims have passed.

    Raises BadData where they can't be decoded, or are not of so many frames.
    """
    claims = _claims(header)
    if frames is not None and claims.frames != frames:
        raise header.refuse(f"NumberOfFrames must be {frames}; export single frames.")
    decoder = header.attempt(
        lambda: get_decoder(header.syntax),
        "no decoder here for its TransferSyntaxUID; save it uncompressed.",
    )

    def decode() -> Stored:
        element = header.data.get_item(PIXEL_DATA)
        names = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
        tables = tuple(header.data[name].value for name in names if has(header.data, name))
        options: dict[str, Any] = {
            **claims.options(),
            "pixel_keyword": "PixelData",
            "pixel_vr": element.VR or "OW",
            "extended_offsets": tables if len(tables) == 2 and all(tables) else None,
            "view_only": True,
            "correct_unused_bits": False,  # here instead, without a copy where they are clean
            "allow_excess_frames": False,
        }
        values, properties = decoder.as_array(
            element.value,
            raw=True,  # no colour conversion: only the luminance is wanted
            decoding_plugin=_plugin(header),
            **options,
        )
        values = values.reshape(claims.shape)
        if header.syntax not in _EXACT:
            values = _without_unused_bits(values, claims)
        return Stored(values, str(properties["photometric_interpretation"]))

    return header.attempt(decode, "PixelData is broken; export the file again.")


def _plugin(header: Header) -> str:
    """Which decoder: named, so that what else is installed on a machine changes nothing."""
    if not header.syntax.is_encapsulated:
        return ""
    return "pydicom" if header.syntax == RLELossless else codecs.PLUGIN


def _without_unused_bits(values: NDArray[np.integer], claims: _Claims) -> NDArray[np.integer]:
    """Values of BitsStored bits: old files keep overlays in the bits above (PS3.5 8.1.1)."""
    unused = 8 * values.itemsize - claims.stored
    if claims.allocated == 1 or unused <= 0:
        return values
    low = -(2 ** (claims.stored - 1)) if claims.signed else 0
    if (not claims.signed or low <= values.min()) and values.max() < low + 2**claims.stored:
        return values
    return (values << unused) >> unused


def _claims(header: Header) -> _Claims:
    """What the header claims of the pixels, if nothing of it is out of bounds."""
    if not has(header.data, "PixelData"):
        raise header.refuse("PixelData is missing; leave out what is no image.")
    rows, columns = header.number("Rows"), header.number("Columns")
    if not (rows >= 1 and columns >= 1 and rows * columns <= MAX_PIXELS):
        raise header.refuse(f"Rows x Columns must be between 1 and {MAX_PIXELS} pixels.")
    frames = header.number("NumberOfFrames", default=1)
    if not (frames >= 1 and (frames == 1 or frames * rows * columns <= MAX_VOXELS)):
        raise header.refuse(f"NumberOfFrames must be at least 1, of {MAX_VOXELS} pixels in all.")
    allocated = header.number("BitsAllocated")
    if allocated not in (1, 8, 16, 32):
        raise header.refuse("BitsAllocated must be 1, 8, 16 or 32.")
    stored = header.number("BitsStored")
    if not 1 <= stored <= allocated:
        raise header.refuse("BitsStored must be between 1 and BitsAllocated.")
    if header.number("HighBit", default=stored - 1) != stored - 1:
        raise header.refuse("HighBit must be BitsStored - 1; export the file again.")
    representation = header.number("PixelRepresentation")
    if representation not in (0, 1):
        raise header.refuse("PixelRepresentation must be 0 or 1.")
    photometric = header.text("PhotometricInterpretation")
    if photometric not in _SAMPLES:
        raise header.refuse(f"PhotometricInterpretation must be one of {', '.join(_SAMPLES)}.")
    if header.number("SamplesPerPixel") != _SAMPLES[photometric]:
        raise header.refuse("SamplesPerPixel does not go with PhotometricInterpretation.")
    planar = header.number("PlanarConfiguration", default=0)
    if planar not in (0, 1):
        raise header.refuse("PlanarConfiguration must be 0 or 1.")
    return _Claims(
        frames=int(frames),
        rows=int(rows),
        columns=int(columns),
        photometric=photometric,
        planar=int(planar),
        allocated=int(allocated),
        stored=int(stored),
        signed=representation == 1,
    )

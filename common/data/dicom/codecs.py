"""Compressed frames, by the codecs of `imagecodecs` (libjpeg-turbo, CharLS, OpenJPEG).

A plugin of pydicom's decoders (pydicom's guide "decoder plugins"). A frame's codestream has a size
of its own, which must be the header's before anything is decoded: a few bytes may claim gigabytes.
"""

from __future__ import annotations

import struct

import numpy as np
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

PLUGIN = "imagecodecs"
_JPEG = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
_JPEG_LS = (JPEGLSLossless, JPEGLSNearLossless)
_JPEG_2000 = (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
DECODER_DEPENDENCIES = dict.fromkeys((*_JPEG, *_JPEG_LS, *_JPEG_2000), (PLUGIN,))
LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)


def is_available(syntax: UID) -> bool:
    """Whether frames of this transfer syntax can be decoded here; part of pydicom's interface."""
    return syntax in DECODER_DEPENDENCIES


def register() -> None:
    """Make the plugin known to pydicom's decoders; once is enough."""
    for syntax in DECODER_DEPENDENCIES:
        if PLUGIN not in get_decoder(syntax).available_plugins:
            get_decoder(syntax).add_plugin(PLUGIN, (__name__, "decode_frame"))


def decode_frame(source: bytes, runner: DecodeRunner) -> bytearray:
    """One frame's pixels, colours interleaved and not converted; raises where sizes disagree."""
    import imagecodecs  # not before a file needs it: a sixth of a second

    syntax = runner.transfer_syntax
    shape = (runner.rows, runner.columns, runner.samples_per_pixel)
    if syntax in _JPEG_2000:
        frame = _container(shape, runner.get_option("j2k_precision", runner.bits_stored))
        # OpenJPEG decodes before it looks at `out`.
        imagecodecs.jpeg2k_decode(_sized_codestream(source, shape), out=frame)
        if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
            runner.set_option("photometric_interpretation", "RGB")  # as decoded
    elif syntax in _JPEG_LS:
        frame = _container(shape, runner.get_option("jls_precision", runner.bits_stored))
        imagecodecs.jpegls_decode(source, out=frame)
    else:
        frame = _container(shape, runner.bits_stored)
        space = "YCBCR" if frame.ndim == 3 else None  # in and out alike: nothing is converted
        imagecodecs.jpeg8_decode(source, colorspace=space, outcolorspace=space, out=frame)
    runner.set_option("bits_allocated", 8 * frame.itemsize)
    if frame.ndim == 3:
        runner.set_option("planar_configuration", 0)
    return bytearray(frame)


def _container(shape: tuple[int, int, int], precision: int) -> np.ndarray:
    """An array for (rows, columns, samples) of so many bits; codecs refuse any other size."""
    dtype = np.uint8 if precision <= 8 else np.uint16 if precision <= 16 else np.uint32
    return np.empty(shape if shape[2] > 1 else shape[:2], dtype)


def _sized_codestream(source: bytes, shape: tuple[int, int, int]) -> bytes:
    """The JPEG 2000 codestream in `source` (ISO/IEC 15444-1 A.5.1), if it is of this size."""
    stream = source[max(source.find(b"\xff\x4f\xff\x51"), 0) :]  # past a JP2 header, if any
    right, bottom, left, top, *_tiles, samples = struct.unpack_from(">8IH", stream, 8)
    if (bottom - top, right - left, samples) != shape:
        raise ValueError
    return stream

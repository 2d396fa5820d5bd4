"""Damaged, hostile and nonsensical files: read or refused by name, quickly and in little memory."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random

import imagecodecs
import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from common.data.dicom import (
    identity_findings,
    is_dicom,
    read_ct_slice,
    read_facts,
    read_grey,
    read_mask,
    read_slice_position,
    read_volume,
)
from common.errors import BadData

ROOT = Path(__file__).parents[4]
SECONDS, MEGABYTES = 5.0, 500
SOURCES = (
    "CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPGExtended.dcm",
    "SC_rgb_small_odd_jpeg.dcm", "SC_rgb_rle_2frame.dcm", "image_dfl.dcm", "examples_palette.dcm",
    "liver_1frame.dcm", "nested_priv_SQ.dcm", "UN_sequence.dcm", "test-SR.dcm",
)  # fmt: skip
SYNTAXES = (
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless,
    JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, UID("1.2.840.10008.1.2.2"),
    UID("1.2.840.10008.1.2.4.100"), UID("1.2.3.4.5"), UID("1.2.840.10008.1.2.4.202"),
)  # fmt: skip
READERS: tuple[Callable[[Path], object], ...] = (
    read_grey, read_ct_slice, read_mask, read_slice_position, read_facts, identity_findings,
    is_dicom, lambda path: read_volume([path]),
)  # fmt: skip

# ReferencedImageSequence and its first item, both of undefined length.
OPEN_SEQUENCE = b"\x08\0\x40\x11SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\0\xe0" + b"\xff" * 4

Damage = Callable[[bytes, Random], bytes]


def flipped(data: bytes, random: Random, *, within: int | None = None) -> bytes:
    """A few bytes anywhere, or within the first ones, are others."""
    damaged = bytearray(data)
    for _ in range(random.choice((1, 2, 4, 16, 64))):
        place = random.randrange(min(len(data), within or len(data)))
        damaged[place] = random.choice((0, 255, random.randrange(256)))
    return bytes(damaged)


def in_header(data: bytes, random: Random) -> bytes:
    """A few bytes of the header are others."""
    return flipped(data, random, within=2500)


def length_changed(data: bytes, random: Random) -> bytes:
    """Some element's length is another, be it tiny, huge or undefined."""
    damaged = bytearray(data)
    spots = [place for place in range(132, min(len(data) - 8, 4000), 2) if data[place + 1] < 0x70]
    for _ in range(random.choice((1, 1, 3))):
        place = random.choice(spots) + 4
        lengths = (0, 1, 2**16, 2**31, 2**32 - 2, 2**32 - 1, random.randrange(2**32))
        damaged[place : place + 4] = struct.pack("<L", random.choice(lengths))
    return bytes(damaged)


def cut(data: bytes, random: Random) -> bytes:
    """The file ends early."""
    return data[: random.randrange(len(data))]


def other_syntax(data: bytes, random: Random) -> bytes:
    """The transfer syntax is said to be another."""
    start = data.find(b"\x02\x00\x10\x00UI") + 8
    if start < 132 or start > len(data):
        return data
    size = struct.unpack_from("<H", data, start - 2)[0]
    syntax = random.choice(SYNTAXES).encode().ljust(size, b"\0")[:size]
    return data[:start] + syntax + data[start + size :]


def other_sizes(data: bytes, random: Random) -> bytes:
    """Attributes of the image pixel module hold other numbers."""
    damaged = bytearray(data)
    for _ in range(random.choice((1, 2, 3))):
        element = random.choice((0x02, 0x10, 0x11, 0x100, 0x101, 0x102, 0x103, 0x06))
        tag = struct.pack("<HH", 0x28, element)
        place = data.find(tag)
        if place > 0:
            value = random.choice((0, 1, 3, 7, 8, 12, 16, 24, 32, 64, 60000, 65535))
            damaged[place + 8 : place + 10] = struct.pack("<H", value)
    return bytes(damaged)


def nested(data: bytes, random: Random) -> bytes:
    """Sequences within sequences follow the header, of undefined or explicit length."""
    levels = random.choice((3, 40, 500, 10_000))
    explicit = random.random() < 0.5
    inner = b""
    if explicit:
        for _ in range(min(levels, 2000)):
            item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(inner)) + inner
            inner = b"\x08\x00\x40\x11SQ\0\0" + struct.pack("<L", len(item)) + item
    else:
        inner = OPEN_SEQUENCE * levels
        if random.random() < 0.5:
            inner += (b"\xfe\xff\x0d\xe0" + b"\0" * 4 + b"\xfe\xff\xdd\xe0" + b"\0" * 4) * levels
    end = data.find(b"\x08\x00", 300)
    return data[:end] + inner + data[end:]


def shuffled(data: bytes, random: Random) -> bytes:
    """Blocks of the file stand elsewhere or twice."""
    one, other = sorted(random.randrange(132, len(data)) for _ in range(2))
    return data[:one] + data[other:] + data[one:other] + data[other:][:200]


# At least half hit headers, lengths, transfer syntax or nesting.
DAMAGES: tuple[Damage, ...] = (
    in_header, in_header, length_changed, length_changed, other_syntax, other_sizes, nested,
    flipped, cut, shuffled,
)  # fmt: skip


def damaged_file(seed: int) -> bytes:
    """A file that is made from the seed alone."""
    random = Random(seed)
    source = get_testdata_file(random.choice(SOURCES), download=False)
    data = DAMAGES[seed % len(DAMAGES)](Path(str(source)).read_bytes(), random)
    if len(data) > 400 and random.random() < 0.3:
        data = random.choice(DAMAGES)(data, random)
    return data


def try_files(folder: Path, seeds: range) -> list[str]:
    """What goes wrong with these seeds' files, in words."""
    problems = []
    path = folder / "damaged.dcm"
    for seed in seeds:
        path.write_bytes(damaged_file(seed))
        problems += [f"seed {seed}: {problem}" for problem in outcomes(path)]
    return problems


def outcomes(path: Path) -> list[str]:
    """What happens to the file but being read or refused by name, in time and in memory."""
    problems = []
    for read in READERS:
        start = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                read(path)
        except BadData as refusal:
            if not str(refusal).startswith(path.name):
                problems.append(f"unnamed: {refusal}")
        except Exception as fault:
            problems.append(f"{type(fault).__name__}: {fault}")
        if (seconds := time.process_time() - start) > SECONDS:
            problems.append(f"{seconds:.1f} s")
    # Not by getrusage, which begins with what the parent process had.
    status = Path("/proc/self/status").read_text()
    if (megabytes := int(status.partition("VmHWM:")[2].split()[0]) // 1024) > MEGABYTES:
        problems.append(f"{megabytes} MB")
    return problems


def in_own_process(*arguments: object) -> None:
    """Run this file with the arguments: a crash, a hang or a problem fails the test."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    """Each of 1,000 files with damage of every kind: read or BadData, in 5 s and 500 MB each."""
    in_own_process("seeds", tmp_path, 0, 1000)


def image(syntax: UID, pixel_data: bytes, **attributes: object) -> bytes:
    """A file of 64 x 64 pixels of 16 bits, but for what is said otherwise."""
    data = Dataset()
    values = {
        "SOPClassUID": UID("1.2.840.10008.5.1.4.1.1.2"),
        "SOPInstanceUID": UID("1.2.3"),
        "Modality": "CT",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 64,
        "Columns": 64,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "PixelSpacing": [1, 1],
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
    }
    for keyword, value in (values | attributes).items():
        setattr(data, keyword, value)
    data.add_new(0x7FE00010, "OB" if syntax.is_encapsulated else "OW", pixel_data)
    data["PixelData"].is_undefined_length = syntax.is_encapsulated
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    file = BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def sequences(levels: int, *, explicit: bool) -> bytes:
    """A file with sequences in sequences, their lengths told or left open."""
    start = image(ExplicitVRLittleEndian, b"").partition(b"\x08\x00\x16\x00UI")[0]
    inner = b""
    if not explicit:
        return (
            start + b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * levels
        )
    for _ in range(levels):
        item = b"\xfe\xff\0\xe0" + struct.pack("<L", len(inner)) + inner
        inner = b"\x08\0\x40\x11SQ\0\0" + struct.pack("<L", len(item)) + item
    return start + inner


@cache
def inflating(megabytes: int) -> bytes:
    """A deflated data set of zeros, about a hundredth of its size until inflated."""
    start = image(DeflatedExplicitVRLittleEndian, b"").partition(b"1.2.840.10008.1.2.1.99")
    deflater = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = b"".join(deflater.compress(bytes(2**20)) for _ in range(megabytes)) + deflater.flush()
    return start[0] + start[1] + body


def hostile_files() -> dict[str, bytes]:
    """Small files that ask for much, by what they do."""
    wide = np.zeros((3000, 3000), np.uint16)
    j2k = imagecodecs.jpeg2k_encode(wide, level=0, codecformat="j2k")
    jls = imagecodecs.jpegls_encode(wide)
    return {
        "claims 60,000 x 60,000": image(ExplicitVRLittleEndian, b"", Rows=60000, Columns=60000),
        "claims 60,000 x 60,000, compressed": image(
            JPEG2000Lossless, encapsulate([j2k]), Rows=60000, Columns=60000
        ),
        "claims a billion frames": image(
            JPEG2000Lossless, encapsulate([j2k]), NumberOfFrames=10**9
        ),
        "sequences told": sequences(3000, explicit=True),
        "sequences open": sequences(10_000, explicit=False),
        "inflates to 600 MB": inflating(600),
        "inflates to millions of elements": inflating(100),
        "JPEG 2000 larger than its header": image(JPEG2000Lossless, encapsulate([j2k])),
        "JPEG-LS larger than its header": image(JPEGLSLossless, encapsulate([jls])),
    }


def oversized_files() -> dict[str, bytes]:
    """Files with more than their pixels, by what they do."""
    run = b"\x81\0" * 100_000  # PackBits: 128 zeros from two bytes
    rle = struct.pack("<16L", 2, 64, 64 + len(run), *[0] * 13) + run * 2
    native = image(ExplicitVRLittleEndian, bytes(8192))
    place = native.index(b"\xe0\x7f\x10\0OW\0\0") + 8
    return {
        "a length of 4 GB": native[:place] + b"\xfe\xff\xff\xff" + native[place + 4 :],
        "RLE larger than its header": image(RLELossless, encapsulate([rle])),
    }


def test_files_that_ask_for_much_are_refused(tmp_path: Path) -> None:
    """Giant claims, deep nesting and bombs are refused by name."""
    for name, data in hostile_files().items():
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(data)
        with pytest.raises(BadData, match=f"^{name}"):
            read_grey(path)
    with pytest.raises(BadData, match="nested deeper"):
        identity_findings(tmp_path / "sequences told.dcm")


@pytest.mark.parametrize("files", [hostile_files, oversized_files])
def test_files_that_ask_for_much_get_little(
    tmp_path: Path, files: Callable[[], dict[str, bytes]]
) -> None:
    """No reader spends more than 5 s or 500 MB on them."""
    for name, data in files().items():
        (tmp_path / f"{name}.dcm").write_bytes(data)
    in_own_process("files", *tmp_path.iterdir())


def test_a_codestream_of_another_size_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JPEG 2000 tells its size in the stream too: OpenJPEG isn't asked where the two differ."""
    stream = imagecodecs.jpeg2k_encode(np.zeros((64, 65), np.uint16), level=0, codecformat="j2k")
    (tmp_path / "a.dcm").write_bytes(image(JPEG2000Lossless, encapsulate([stream])))
    monkeypatch.setattr(imagecodecs, "jpeg2k_decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(BadData, match="PixelData is broken"):
        read_grey(tmp_path / "a.dcm")


def test_a_deflated_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    """Half of a deflated data set is none, even where its facts are in that half."""
    whole = Path(str(get_testdata_file("image_dfl.dcm", download=False))).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadData, match=r"^cut\.dcm: expected"):
        read_facts(tmp_path / "cut.dcm")


def test_what_goes_beyond_the_pixels_is_left_out(tmp_path: Path) -> None:
    """Where a file holds more than the header's pixels, those are read and no more."""
    for name, data in oversized_files().items():
        (tmp_path / name).write_bytes(data)
        assert (read_grey(tmp_path / name) == 0).all()


if __name__ == "__main__":
    mode, *arguments = sys.argv[1:]
    if mode == "seeds":
        found = try_files(Path(arguments[0]), range(*map(int, arguments[1:])))
    else:
        found = [problem for path in arguments for problem in outcomes(Path(path))]
    print(*found, sep="\n", end="\n" if found else "")

"""Pictures and stacks that are not DICOM: which values come back, and which files are refused."""

from __future__ import annotations

import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from common.data import pictures
from common.data.pictures import read_picture, read_stack
from common.errors import BadData


def decoded(path: Path) -> np.ndarray:
    """The one picture of a file."""
    pixels = read_picture(path)
    assert pixels.dtype == np.float32
    assert pixels.ndim == 2
    return pixels


def undecodable(path: Path) -> str:
    """The sentence with which a file is refused; it begins with the file's name."""
    with pytest.raises(BadData) as caught:
        read_picture(path)
    assert str(caught.value).startswith(f"{path.name}: ")
    return str(caught.value)


def no_stack(path: Path) -> str:
    """The sentence with which a file is refused as a volume; it begins with the file's name."""
    with pytest.raises(BadData) as caught:
        read_stack(path)
    assert str(caught.value).startswith(f"{path.name}: ")
    return str(caught.value)


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
DEEP = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
COLOUR = np.random.default_rng(0).integers(0, 255, (3, 4, 3), dtype=np.uint8)
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.tif", "a.tiff"])
def test_grey_images_keep_their_values(tmp_path: Path, name: str) -> None:
    """8-bit and 16-bit greys come back as stored, rows first."""
    for stored in (GREY, DEEP):
        Pillow.fromarray(stored).save(tmp_path / name)
        assert np.array_equal(decoded(tmp_path / name), stored)


@pytest.mark.parametrize(
    "stored",
    [DEEP.astype(">u2"), DEEP.astype(np.int32) - 1000, DEEP.astype(np.float32) / 7],
    ids=["big-endian", "signed", "float"],
)
def test_deep_tiffs_keep_their_values(tmp_path: Path, stored: np.ndarray) -> None:
    """No depth that TIFF knows is cut down to 8 bits."""
    Pillow.fromarray(stored).save(tmp_path / "a.tif")
    assert np.array_equal(decoded(tmp_path / "a.tif"), stored.astype(np.float32))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_becomes_luminance(tmp_path: Path, mode: str) -> None:
    """Colours are weighted as people see them; transparency and palettes don't matter."""
    picture = Pillow.fromarray(COLOUR)
    (picture.quantize(256) if mode == "P" else picture.convert(mode)).save(tmp_path / "a.png")
    assert np.abs(decoded(tmp_path / "a.png") - COLOUR @ LUMA).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_by_another_name_is_grey(tmp_path: Path, mode: str) -> None:
    """Grey with transparency and black-and-white use the range of 8 bits."""
    stored = np.where(GREY > 100, 255, 0).astype(np.uint8)
    Pillow.fromarray(stored).convert(mode).save(tmp_path / "a.png")
    assert np.array_equal(decoded(tmp_path / "a.png"), stored)


def test_a_colour_jpeg_is_read(tmp_path: Path) -> None:
    """JPEG loses a little, and no more."""
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    Pillow.fromarray(flat).save(tmp_path / "a.jpeg", quality=95)
    assert np.abs(decoded(tmp_path / "a.jpeg") - flat[0, 0] @ LUMA).max() < 3


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">u2", "i8", "f2", "<f4", ">f8"])
def test_numpy_arrays_are_read(tmp_path: Path, dtype: str) -> None:
    """Any real number type in any byte order, (height, width)."""
    np.save(tmp_path / "a.npy", GREY.astype(dtype))
    assert np.array_equal(decoded(tmp_path / "a.npy"), GREY)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(4),
        np.zeros((1, 4, 4)),
        np.zeros((0, 4)),
        np.zeros((4, 4), complex),
        np.zeros((4, 4), bool),
        np.full((4, 4), "x"),
        np.full((4, 4), np.nan),
        np.full((4, 4), 1e300),
    ],
    ids=["1-D", "3-D", "empty", "complex", "bool", "text", "nan", "beyond float32"],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    """Other shapes and types, and values that float32 can't hold, are refused by name."""
    np.save(tmp_path / "a.npy", array)
    undecodable(tmp_path / "a.npy")


def test_a_pickle_or_zip_is_never_opened(tmp_path: Path) -> None:
    """An .npy that numpy.load would unpickle or unzip is refused."""
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    undecodable(tmp_path / "a.npy")
    np.savez(tmp_path / "b.npz", GREY)
    os.rename(tmp_path / "b.npz", tmp_path / "b.npy")
    undecodable(tmp_path / "b.npy")


def png_claiming(width: int, height: int) -> bytes:
    """A PNG that says it is of any size, with no pixel in it."""
    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.mark.parametrize("header", [b"{'descr': '<f4', ]}", b"((((", b"{'shape': (3,)}", b"\xff"])
def test_a_broken_header_is_refused(tmp_path: Path, header: bytes) -> None:
    """Whatever numpy makes of a header, it ends in a sentence."""
    length = struct.pack("<H", len(header))
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\0" + length + header + bytes(64))
    undecodable(tmp_path / "a.npy")


def test_a_huge_claim_costs_no_memory(tmp_path: Path) -> None:
    """A header that claims a giant image is refused before anything is decoded."""
    for name, content in {
        "a.png": png_claiming(9000, 9000),
        "b.png": png_claiming(2**31 - 1, 2**31 - 1),
        "c.png": png_claiming(0, 5),
        "d.npy": b"\x93NUMPY\x01\0v\0{'descr': '<f4', 'fortran_order': False, "
        b"'shape': (99999999999, 99), }".ljust(118)
        + b"\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        undecodable(tmp_path / name)
    assert "has more than 67108864 pixels" in undecodable(tmp_path / "a.png")


def test_a_huge_array_is_refused(tmp_path: Path) -> None:
    """Even if the file is as large as its header says (it is sparse here)."""
    path = tmp_path / "a.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(8193, 8192))
    assert "export it smaller" in undecodable(path)


def test_a_stack_is_refused(tmp_path: Path) -> None:
    """A TIFF of several images would silently lose all but the first."""
    first = Pillow.fromarray(GREY)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[first])
    assert "stack" in undecodable(tmp_path / "a.tif")


def test_a_deep_tiff_with_white_as_zero_is_refused(tmp_path: Path) -> None:
    """Pillow would hand it over inverted without a word."""
    Pillow.fromarray(DEEP).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert "white as zero" in undecodable(tmp_path / "a.tif")


def test_only_the_named_formats_are_opened(tmp_path: Path) -> None:
    """What hides behind a picture's name, such as a program for a printer, is not run."""
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    undecodable(tmp_path / "a.png")
    Pillow.fromarray(GREY).save(tmp_path / "b.gif")
    os.rename(tmp_path / "b.gif", tmp_path / "b.png")
    undecodable(tmp_path / "b.png")
    (tmp_path / "c.jpg").mkdir()
    undecodable(tmp_path / "c.jpg")


def test_a_cut_image_is_refused(tmp_path: Path) -> None:
    """Pillow opens a file by its header alone: the rest must be there too."""
    noise = np.random.default_rng(1).integers(0, 255, (64, 64), dtype=np.uint8)
    for name in ("a.png", "a.jpg", "a.tif"):
        Pillow.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        for kept in (0, 10, len(whole) // 2, len(whole) - 100):
            (tmp_path / name).write_bytes(whole[:kept])
            undecodable(tmp_path / name)


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    """Any damage gives pixels or BadData, and no other exception."""
    dice = random.Random(1)
    Pillow.fromarray(GREY).save(tmp_path / "a.png")
    Pillow.fromarray(DEEP).save(tmp_path / "b.tif")
    Pillow.fromarray(COLOUR).save(tmp_path / "c.jpg")
    np.save(tmp_path / "d.npy", GREY)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for _ in range(50):
            damaged = bytearray(whole)
            for _ in range(dice.choice((1, 3))):
                damaged[dice.randrange(min(len(whole), 130))] = dice.randrange(256)
            path.write_bytes(bytes(damaged))
            try:
                read_picture(path)
            except BadData:
                continue


VOLUME = np.arange(2 * 3 * 4, dtype=np.uint16).reshape(2, 3, 4) * 2000


def save_pages(path: Path, volume: np.ndarray) -> Path:
    """A TIFF with one page a slice."""
    first, *others = (Pillow.fromarray(page) for page in volume)
    first.save(path, save_all=True, append_images=others)
    return path


@pytest.mark.parametrize("dtype", ["u1", "<u2", "f4"])
def test_the_pages_of_a_tiff_are_slices(tmp_path: Path, dtype: str) -> None:
    """In their order, with their values, whatever the depth; one page is one slice."""
    volume = (VOLUME // 200).astype(dtype)
    for stored in (volume, volume[:1]):
        found = read_stack(save_pages(tmp_path / "a.tif", stored))
        assert found.dtype == np.float32
        assert np.array_equal(found, stored)


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">u2", "i8", "f2", "<f4", ">f8"])
def test_an_array_of_three_axes_is_a_volume(tmp_path: Path, dtype: str) -> None:
    """Any real number type in any byte order, (slices, height, width)."""
    stored = (VOLUME // 400).astype(dtype)
    np.save(tmp_path / "a.npy", stored)
    found = read_stack(tmp_path / "a.npy")
    assert found.dtype == np.float32
    assert np.array_equal(found, stored)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4)),
        np.zeros((1, 2, 4, 4)),
        np.zeros((0, 4, 4)),
        np.zeros((2, 4, 4), bool),
        np.full((2, 4, 4), np.inf),
    ],
    ids=["2-D", "4-D", "empty", "bool", "infinite"],
)
def test_other_arrays_are_no_volume(tmp_path: Path, array: np.ndarray) -> None:
    """Other shapes and types are refused by name."""
    np.save(tmp_path / "a.npy", array)
    no_stack(tmp_path / "a.npy")


def test_pages_of_several_sizes_are_refused(tmp_path: Path) -> None:
    """A preview beside the slices would be taken for one of them."""
    slices = Pillow.fromarray(VOLUME[0])
    preview = Pillow.fromarray(VOLUME[0, :2, :2].copy())
    slices.save(tmp_path / "a.tif", save_all=True, append_images=[preview])
    assert "several sizes" in no_stack(tmp_path / "a.tif")


def test_every_page_is_checked(tmp_path: Path) -> None:
    """White as zero on one page only is refused too."""
    first, second = (Pillow.fromarray(page) for page in VOLUME)
    second.encoderinfo = {"tiffinfo": {262: 0}}
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    assert "white as zero" in no_stack(tmp_path / "a.tif")


def test_a_volume_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its header, before its slices are read."""
    np.save(tmp_path / "a.npy", VOLUME)
    save_pages(tmp_path / "b.tif", VOLUME)
    monkeypatch.setattr(pictures, "MAX_VOXELS", VOLUME.size)
    assert read_stack(tmp_path / "a.npy").size == read_stack(tmp_path / "b.tif").size
    monkeypatch.setattr(pictures, "MAX_VOXELS", VOLUME.size - 1)
    assert "export it smaller" in no_stack(tmp_path / "a.npy")
    assert "voxels; export it smaller" in no_stack(tmp_path / "b.tif")


def test_only_a_tiff_holds_a_stack(tmp_path: Path) -> None:
    """What is no TIFF under its name is refused."""
    Pillow.fromarray(GREY).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", tmp_path / "a.tif")
    assert "expected a TIFF image" in no_stack(tmp_path / "a.tif")


def test_a_damaged_stack_never_crashes(tmp_path: Path) -> None:
    """Any damage gives a volume or BadData, and no other exception."""
    dice = random.Random(2)
    path = save_pages(tmp_path / "a.tif", VOLUME)
    whole = path.read_bytes()
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(dice.choice((1, 3))):
            damaged[dice.randrange(len(whole))] = dice.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            assert read_stack(path).ndim == 3
        except BadData:
            refused += 1
    assert refused > 20

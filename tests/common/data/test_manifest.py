"""The manifest: which tables are read, which images, and in which words the others are refused."""

from __future__ import annotations

import os
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from pydicom.data import get_testdata_file

from common.data.dicom import read_grey
from common.data.manifest import MAX_PROBLEMS, ManifestReader
from common.data.source import Source
from common.errors import BadData

CLASSES = ("PA", "AP")
HEADER = "path,patient,site,label"
SECRET = "Ann-4711"  # a patient, who must be in no message


def table(folder: Path, *lines: str, header: str = HEADER, images: bool = True) -> Path:
    """A manifest of these lines; the images they name are there, unless asked otherwise."""
    path = folder / "manifest.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    for line in lines if images else ():
        image = folder / line.split(",")[0]
        if image.suffix == ".png" and image.parent == folder:
            Pillow.fromarray(np.zeros((4, 4), np.uint8)).save(image)
    return path


def refused(path: Path) -> list[str]:
    """The problems with which a manifest is refused."""
    with pytest.raises(BadData) as caught:
        ManifestReader().find(path, CLASSES)
    assert SECRET not in str(caught.value)
    return str(caught.value).splitlines()


def decoded(path: Path) -> np.ndarray:
    """The one image of a file."""
    (image,) = ManifestReader().decode(Source(path, SECRET, "north", 1))
    assert image.label == 1
    assert image.pixels.dtype == np.float32
    assert image.pixels.shape[0] == 1
    return image.pixels[0]


def undecodable(path: Path) -> str:
    """The sentence with which a file is refused; it begins with the file's name."""
    with pytest.raises(BadData) as caught:
        ManifestReader().decode(Source(path, SECRET, "north", 1))
    assert str(caught.value).startswith(f"{path.name}: ")
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_each_line_is_one_source(tmp_path: Path) -> None:
    """Path, patient, site and label come from their columns; every other is a subgroup."""
    path = table(
        tmp_path,
        "a.png, p 1 ,north,AP,train,F,",
        "b.png,p2,south,PA,,M",
        header=f" {HEADER} ,split,sex,age",
    )
    first, second = ManifestReader().find(path, CLASSES)
    assert first == Source(
        tmp_path / "a.png", "p 1", "north", 1, {"sex": "F", "age": ""}, side="train"
    )
    assert second == Source(tmp_path / "b.png", "p2", "south", 0, {"sex": "M"}, side="")


def test_a_folder_stands_for_its_manifest(tmp_path: Path) -> None:
    """A byte order mark, quotes, line ends of any kind and empty lines change nothing."""
    table(tmp_path, "a.png,p1,north,PA")
    text = f'\ufeff{HEADER},note\r\n\r\n"a.png",p1,north,PA,"a ""b"", c\nd"\r\n,,,,\r\n'
    (tmp_path / "manifest.csv").write_bytes(text.encode())
    (source,) = ManifestReader().find(tmp_path, CLASSES)
    assert source.path == tmp_path / "a.png"
    assert source.groups == {"note": 'a "b", c\nd'}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (",p1,north,PA", "line 2: path is empty"),
        ("a.png,p1", "line 2: site, label is empty; fill it in or remove the line"),
        ("a.png,p1,north,pa", "line 2: the label 'pa' is none of the study's classes (PA, AP)"),
        ("a.png,p1,St. Mary,PA", "line 2: site must be 1 to 64 letters, digits, _, . or -"),
        ("a.png,p1,../x,PA", "line 2: site must be 1 to 64 letters"),
        ("a.png,p1,north,PA,both", "line 2: split must be train, test or empty; got 'both'"),
        ("a.png,p1,north,PA,test,more", "line 2: has a cell that no column names; put quotes"),
        ("b/a.png,p1,north,PA", "line 2: the file 'b/a.png' does not exist; mend the path"),
        ("folder.png,p1,north,PA", "line 2: the file 'folder.png' does not exist"),
        ("a\x00.png,p1,north,PA", r"line 2: the file 'a\x00.png' does not exist"),
        (f"{'x' * 5000}.dcm,p1,north,PA", "line 2: the file 'xxxxx"),
        ("../a.png,p1,north,PA", "line 2: path must stay inside the manifest's folder"),
        ("b/../../a.png,p1,north,PA", "line 2: path must stay inside the manifest's folder"),
        ("/etc/hostname,p1,north,PA", "line 2: path must stay inside the manifest's folder"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    """A line that can't be is refused by its number, with the column and what to do."""
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "a.png").touch()
    path = table(tmp_path, line.replace("p1", SECRET), header=f"{HEADER},split", images=False)
    (said,) = refused(path)
    assert said.startswith(f"manifest.csv: {words}")
    assert len(said) < 400


def test_contradictions_between_lines_are_named(tmp_path: Path) -> None:
    """One path twice, one patient at two sites or on two sides: each names the other line."""
    path = table(
        tmp_path,
        f"a.png,{SECRET},north,PA,train",
        "./a.png,p2,north,PA,",
        f"b.png,{SECRET},south,PA,train",
        f"c.png,{SECRET},north,PA,",
        header=f"{HEADER},split",
    )
    Pillow.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "b.png")
    said = refused(path)
    assert len(said) == 3
    assert said[0].startswith("manifest.csv: line 3: the same path as line 2")
    assert said[1].startswith("manifest.csv: line 4: its patient is listed at another site in line")
    assert said[2].startswith("manifest.csv: line 5: its patient is on another side of `split` in")


def test_all_problems_come_together_up_to_a_number(tmp_path: Path) -> None:
    """The first ten problems are shown and the others counted."""
    said = refused(table(tmp_path, *(f"{i}.png,{SECRET},north,XX" for i in range(25))))
    assert len(said) == MAX_PROBLEMS + 1
    assert [line.split(":")[1] for line in said[:-1]] == [f" line {i}" for i in range(2, 12)]
    assert said[-1] == "manifest.csv: 15 more problems like these."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the column path, patient, site, label is missing"),
        (b"path;patient;site;label\n", "is missing; the first line must name path, patient, site,"),
        (b"path,patient,label\n", "the column site is missing"),
        (b"path,patient,site,label,label\n", "the column label is there twice"),
        (b"path,patient,site,label\n\n", "expected at least one image below the header"),
        (b'path,patient,site,label\n"a"b,c\n', "is no CSV in UTF-8"),
        (b'path,patient,site,label\n"a,b,c\n', "is no CSV in UTF-8"),
        (b"path,patient,site,label\n\xff\xfe", "is no CSV in UTF-8"),
        (b"path,patient,site,label\n" + b"x" * 200_000, "is no CSV in UTF-8"),
        (bytes(range(256)) * 9, "is no CSV in UTF-8"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    """An empty, foreign or broken file is refused in one sentence with its name."""
    path = tmp_path / "manifest.csv"
    path.write_bytes(content)
    (said,) = refused(path)
    assert said.startswith("manifest.csv: ")
    assert words in said


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The whole path is told, of a file or of a folder without a manifest."""
    for path in (tmp_path, tmp_path / "other.csv"):
        (said,) = refused(path)
        assert said.startswith(str(tmp_path))
        assert said.endswith("name a manifest.csv that exists.")


def test_a_link_placed_inside_the_folder_is_followed(tmp_path: Path) -> None:
    """Data sets kept by git-annex or DVC are links to elsewhere: the site itself made them."""
    outside = tmp_path / "store" / "x.png"
    outside.parent.mkdir()
    Pillow.fromarray(np.full((4, 4), 7, np.uint8)).save(outside)
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / "a.png").symlink_to(outside)
    path = table(inside, "a.png,p1,north,PA", images=False)
    (source,) = ManifestReader().find(path, CLASSES)
    assert decoded(source.path).mean() == 7


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


def test_a_dicom_file_is_read_by_its_door(tmp_path: Path) -> None:
    """Any other suffix is DICOM, as read_grey reads it."""
    real = get_testdata_file("CT_small.dcm")
    assert real is not None
    for name in ("a.dcm", "a", "IM.0001"):
        shutil.copy(str(real), tmp_path / name)
        assert np.array_equal(decoded(tmp_path / name), read_grey(tmp_path / name))
    (tmp_path / "notes.txt").write_text(SECRET)
    assert "DICOM" in undecodable(tmp_path / "notes.txt")


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
                ManifestReader().decode(Source(path, SECRET, "north", 1))
            except BadData as error:
                said = str(error)
                assert SECRET not in said


def test_the_real_manifest_is_read() -> None:
    """The four-site chest X-rays: 275 images of 152 patients."""
    base = os.environ.get("FEDWARD_SHARED_DATA")
    root = Path(base) if base else Path(__file__).parents[3].parent / "shared" / "data"
    path = root / "chest-xray-4-sites" / "manifest.csv"
    if not path.is_file():
        pytest.skip(f"no real data at {path.parent.name}: set FEDWARD_SHARED_DATA")
    sources = ManifestReader().find(path, CLASSES)
    assert len(sources) == 275
    assert {source.site for source in sources} == {"hannover", "radiopaedia", "eurorad", "other"}
    assert len({source.patient for source in sources}) == 152
    (image,) = ManifestReader().decode(sources[0])
    assert image.pixels.shape == (1, 224, 224)
    assert 0 <= image.pixels.min() < image.pixels.max() <= 255

"""The ready-made patches of the ILD data set: TIFFs whose names say what they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from common.data.ild import IldReader
from common.errors import BadData, BadInput

CLASSES = ("healthy", "ground_glass")
READER = IldReader(regions="patches")
SIZE = (32, 32)


def write_patch(path: Path, hounsfield: float = 0.0, *, shape: tuple[int, int] = SIZE) -> None:
    """A patch as the suite stores it: HU as signed 16 bits, kept in unsigned ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.full(shape, hounsfield, np.int16)
    stored[0, 1] += 1  # so that a transposition shows
    Pillow.fromarray(stored.view(np.uint16)).save(path)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Three patches of two patients, one of a label that isn't studied."""
    suite = tmp_path / "ILD_DB_talismanTestSuite"
    write_patch(suite / "ground_glass_patch12_patient9_3.tif", -650)
    write_patch(suite / "healthy_patch1_patient15_1.tif", -870)
    write_patch(suite / "consolidation_patch1_patient9_1.tif", 40)
    return suite


def test_names_say_class_and_patient(suite: Path) -> None:
    """Studied patches come in the order of the patients, from the suite or the folder above it."""
    for root in (suite, suite.parent):
        found = READER.find(root, CLASSES)
        assert [(s.patient, s.detail) for s in found] == [("15", 0), ("9", 1)]


def test_pixels_are_hounsfield_units(suite: Path) -> None:
    """Unsigned values are read as the signed ones that they are; padding is air."""
    write_patch(suite / "healthy_patch2_patient15_1.tif", -2000)
    first, second, third = (READER.decode(s)[0].planes[0] for s in READER.find(suite, CLASSES))
    assert first.shape == (1, *SIZE)
    assert first.dtype == np.float32
    assert (first[0, 0, 0], first[0, 0, 1], first[0, 1, 0]) == (-870, -869, -870)
    assert (second == -1024).all()
    assert third[0, 5, 5] == -650


@pytest.mark.parametrize("dtype", ["<i2", ">u2", "<i4"])
def test_signed_and_big_endian_files_are_read_alike(suite: Path, dtype: str) -> None:
    """How a TIFF stores 16 bits doesn't matter."""
    values = np.full(SIZE, -870).astype(np.int16)
    stored = values.view(np.uint16).astype(dtype) if "u" in dtype else values.astype(dtype)
    path = suite / "healthy_patch1_patient15_1.tif"
    mode = {"<i2": "I;16S", ">u2": "I;16B", "<i4": "I;32S"}[dtype]
    Pillow.frombytes("I;16B" if "u" in dtype else "I", SIZE, stored.tobytes(), "raw", mode).save(
        path
    )
    assert (READER.decode(READER.find(suite, CLASSES)[0])[0].planes[0] == -870).all()


def test_singular_and_the_sites_names_count(suite: Path) -> None:
    """`micronodule` is `micronodules`, and a site's own name is what it stands for."""
    write_patch(suite / "micronodule_patch1_patient3_1.tif")
    reader = IldReader(regions="patches", labels=(("consolidation", "micronodules"),))
    found = reader.find(suite, ("micronodules",))
    assert [source.path.name[:5] for source in found] == ["micro", "conso"]


def test_patches_of_nobody_are_refused_by_name(suite: Path) -> None:
    """Patient -1 can be neither split off nor protected; of other labels it doesn't matter."""
    write_patch(suite / "healthy_patch7_patient-1_2.tif")
    write_patch(suite / "cysts_patch7_patient-1_2.tif")
    with pytest.raises(BadData) as refusal:
        READER.find(suite, CLASSES)
    (line,) = str(refusal.value).splitlines()
    assert line.startswith("healthy_patch7_patient-1_2.tif: is of no known patient (-1)")
    assert line.endswith("move it out of the folder.")


def test_names_that_say_nothing_are_refused(suite: Path) -> None:
    """A TIFF that is no patch is named; other kinds of files and dot-files are passed over."""
    write_patch(suite / "overview.TIF")
    (suite / "._healthy_patch1_patient15_1.tif").write_bytes(b"junk")
    (suite / "README.txt").write_text("junk")
    with pytest.raises(BadData, match=r"^overview\.TIF: expected a name such as [^\n]*$"):
        READER.find(suite, CLASSES)


def test_a_patch_of_another_size_is_refused(suite: Path) -> None:
    """Its size and the wanted one are said."""
    write_patch(suite / "healthy_patch1_patient15_1.tif", shape=(32, 16))
    with pytest.raises(BadData, match=r"^healthy_patch1_patient15_1\.tif: has 32 x 16 .* 32 x 32"):
        READER.decode(READER.find(suite, CLASSES)[0])


@pytest.mark.parametrize("kind", ["junk", "cut", "8 bits", "floats", "colour"])
def test_what_is_no_16_bit_tiff_is_refused(suite: Path, kind: str) -> None:
    """A broken file or another kind of picture is named, since HU would be a guess."""
    path = suite / "healthy_patch1_patient15_1.tif"
    match kind:
        case "junk":
            path.write_bytes(b"II*\0junk")
        case "cut":
            path.write_bytes(path.read_bytes()[:600])
        case "8 bits":
            Pillow.new("L", SIZE).save(path)
        case "floats":
            Pillow.new("F", SIZE).save(path)
        case "colour":
            Pillow.new("RGB", SIZE).save(path)
    with pytest.raises(BadData, match=r"^healthy_patch1_patient15_1\.tif: expected a TIFF of one"):
        READER.decode(READER.find(suite, CLASSES)[0])


@pytest.mark.parametrize(
    "reader",
    [
        IldReader(regions="patches", lung_mask=True),
        IldReader(regions="patches", random_shift=1),
        IldReader(regions="patches", pixel_spacing_mm=0.7),
    ],
)
def test_settings_that_need_slices_are_refused(suite: Path, reader: IldReader) -> None:
    """What can't be done to ready-made patches isn't passed over in silence."""
    with pytest.raises(BadInput, match="need whole slices"):
        reader.find(suite, CLASSES)


def test_an_empty_suite_is_refused(tmp_path: Path) -> None:
    """Nothing found is said with what was looked for."""
    with pytest.raises(BadData, match="healthy, ground_glass in ILD_DB_talismanTestSuite"):
        READER.find(tmp_path, CLASSES)

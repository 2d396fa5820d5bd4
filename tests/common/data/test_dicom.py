"""The DICOM door: values with their meaning, errors that quote nothing, nothing that identifies."""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLSLossless

from common.data.dicom import (
    AIR_HU,
    MAX_PIXELS,
    read_ct_slice,
    read_grey,
    read_slice_position,
    series_key,
)
from common.errors import BadData

ROOT = Path(__file__).parents[3]
SHARED_DICOM = Path(os.environ.get("FEDWARD_SHARED_DATA", ROOT / "../shared/data")) / "dicom"
needs_real_files = pytest.mark.skipif(
    not SHARED_DICOM.is_dir(), reason="no real DICOM files: set FEDWARD_SHARED_DATA"
)
SECRET = "Tell^Wilhelm"


def shipped(name: str) -> Path:
    """One of the files that pydicom ships."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Path(str(get_testdata_file(name, download=False)))


def ct_file(path: Path, stored: np.ndarray, **attributes: object) -> Path:
    """A CT slice with these stored values; an attribute given as None is left out."""
    image = pydicom.Dataset()
    values: dict[str, object] = {
        "Modality": "CT",
        "PatientName": SECRET,
        "SeriesInstanceUID": "1.2.3",
        "InstanceNumber": 7,
        "SliceLocation": -12.5,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "PixelSpacing": [0.5, 0.75],
        "BitsAllocated": 8 * stored.itemsize,
        "BitsStored": 8 * stored.itemsize,
        "HighBit": 8 * stored.itemsize - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": stored.tobytes(),
    }
    for keyword, value in (values | attributes).items():
        if value is not None:
            setattr(image, keyword, value)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    image.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    image.save_as(path, enforce_file_format=True)
    return path


STORED = np.array([[0, 24, 1024], [2024, 1000, 4000]], np.uint16)


def test_ct_values_are_rescaled_to_hounsfield_units(tmp_path: Path) -> None:
    """Stored values times slope plus intercept are Hounsfield units, as float32."""
    got = read_ct_slice(ct_file(tmp_path / "a.dcm", STORED, RescaleSlope=2))
    assert got.hounsfield.tolist() == [[-1024, -976, 1024], [3024, 976, 6976]]
    assert got.hounsfield.dtype == np.float32
    assert got.pixel_spacing_mm == (0.5, 0.75)
    assert (got.position.instance_number, got.position.slice_location_mm) == (7, -12.5)
    assert got.position.series == series_key("1.2.3") != series_key("1.2.4")


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_padding_becomes_air(tmp_path: Path, dtype: type) -> None:
    """Padding of -2000 reads as air, stored signed or wrapped into unsigned pixels."""
    stored = np.array([[-2000, 100]], np.int16).view(dtype)
    got = read_ct_slice(ct_file(tmp_path / "a.dcm", stored))
    assert got.hounsfield.tolist() == [[AIR_HU, -924]]


def test_position_needs_no_pixels(tmp_path: Path) -> None:
    """A slice's place is read from a header whose pixels are missing; absent hints are None."""
    file = ct_file(tmp_path / "a.dcm", STORED, PixelData=None, InstanceNumber=None)
    position = read_slice_position(file)
    assert position.instance_number is None
    assert position.slice_location_mm == -12.5


def test_nothing_that_identifies_is_returned(tmp_path: Path) -> None:
    """Neither the name nor the UID of the header is in what a slice says of itself."""
    got = read_ct_slice(ct_file(tmp_path / "a.dcm", STORED))
    assert SECRET not in repr(asdict(got))
    assert "1.2.3" not in repr(asdict(got))


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    """Where the file stores bright as small, larger values come out brighter all the same."""
    plain = ct_file(tmp_path / "a.dcm", STORED, BitsStored=12, HighBit=11)
    inverted = ct_file(
        tmp_path / "b.dcm", 4095 - STORED, BitsStored=12, HighBit=11,
        PhotometricInterpretation="MONOCHROME1",
    )  # fmt: skip
    assert read_grey(plain).tolist() == (STORED - 1024.0).tolist()
    assert read_grey(inverted).tolist() == read_grey(plain).tolist()


def test_signed_monochrome1_is_inverted_within_its_range(tmp_path: Path) -> None:
    """The smallest signed value becomes the largest and the other way round."""
    stored = np.array([[-128, -1, 0, 127]], np.int8)
    file = ct_file(
        tmp_path / "a.dcm", stored, PhotometricInterpretation="MONOCHROME1", RescaleIntercept=0
    )
    assert read_grey(file).tolist() == [[127, 0, -1, -128]]


def test_a_file_without_rescale_is_read_as_stored(tmp_path: Path) -> None:
    """An X-ray has no rescale: its stored values are its grey values."""
    file = ct_file(
        tmp_path / "a.dcm", STORED, Modality="DX", RescaleSlope=None, RescaleIntercept=None
    )
    assert read_grey(file).tolist() == STORED.tolist()


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("Modality", "MR"),
        ("RescaleSlope", None),
        ("RescaleIntercept", None),
        ("PixelSpacing", None),
        ("PixelSpacing", [0.0, 1.0]),
        ("PixelSpacing", [1.0]),
        ("Rows", None),
        ("Rows", 0),
        ("NumberOfFrames", 2),
        ("PhotometricInterpretation", "RGB"),
        ("BitsAllocated", 32),
        ("PixelData", None),
        ("PixelData", b"\0\0"),
        ("RescaleSlope", "1e300"),
    ],
)
def test_each_broken_claim_is_refused_by_name(tmp_path: Path, keyword: str, value: object) -> None:
    """A missing or impossible attribute is named with the file; no value of the header is."""
    file = ct_file(tmp_path / "slice-7.dcm", STORED, **{keyword: value})
    with pytest.raises(BadData) as refusal:
        read_ct_slice(file)
    assert str(refusal.value).startswith("slice-7.dcm: ")
    assert keyword in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)
    assert refusal.value.__cause__ is None
    assert SECRET not in str(refusal.value)


def test_a_giant_claim_is_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows x Columns above the bound is refused without asking pydicom for pixels."""
    file = ct_file(tmp_path / "a.dcm", STORED, Rows=65535, Columns=65535)
    monkeypatch.setattr(pydicom.Dataset, "pixel_array", property(lambda _: pytest.fail("decoded")))
    with pytest.raises(BadData, match=str(MAX_PIXELS)):
        read_grey(file)


def test_a_compressed_file_without_decoder_says_so(tmp_path: Path) -> None:
    """A transfer syntax that nothing installed can decode is named as the reason."""
    with pytest.raises(BadData, match="TransferSyntaxUID"):
        read_grey(shipped("MR_small_jpeg_ls_lossless.dcm"))
    assert pydicom.dcmread(
        shipped("MR_small_jpeg_ls_lossless.dcm")
    ).file_meta.TransferSyntaxUID == (JPEGLSLossless)


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_bigendian.dcm",
     "MR_small_implicit.dcm", "MR_small_expb.dcm"],
)  # fmt: skip
def test_every_encoding_of_an_image_reads_alike(name: str) -> None:
    """The same image, compressed or in another byte order, gives the same grey values."""
    assert (read_grey(shipped(name)) == read_grey(shipped("MR_small.dcm"))).all()


def test_pydicoms_own_ct_slice_is_in_hounsfield_units() -> None:
    """pydicom's CT example has its spacing and soft tissue where soft tissue belongs."""
    got = read_ct_slice(shipped("CT_small.dcm"))
    assert got.hounsfield.shape == (128, 128)
    assert got.pixel_spacing_mm == (0.661468, 0.661468)
    assert got.hounsfield.min() == -896
    assert got.hounsfield.max() == 1167


@pytest.mark.parametrize("name", ["rtplan.dcm", "reportsi.dcm", "no_meta.dcm", "MR_truncated.dcm"])
def test_what_holds_no_whole_image_is_refused(name: str) -> None:
    """Plans, reports, files without DICOM's preamble and truncated ones are refused by name."""
    with pytest.raises(BadData, match=rf"^{name}: "):
        read_grey(shipped(name))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A path that isn't there is bad data, not a crash."""
    with pytest.raises(BadData, match=r"^gone\.dcm: "):
        read_ct_slice(tmp_path / "gone.dcm")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(flips=[(138, 1)], kept=1.0)  # a number one byte long: an exception class of pydicom's own
@given(
    flips=st.lists(st.tuples(st.integers(0, 2200), st.integers(0, 255)), min_size=1, max_size=12),
    kept=st.floats(0, 1) | st.just(1.0),
)
def test_damaged_files_are_read_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, flips: list[tuple[int, int]], kept: float
) -> None:
    """Whatever bytes are flipped or cut off, the outcome is an image or BadData, no other word."""
    damaged = bytearray(shipped("MR_small_RLE.dcm").read_bytes())
    for place, byte in flips:
        damaged[place] = byte
    file = tmp_path / "damaged.dcm"
    file.write_bytes(damaged[: int(kept * len(damaged))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (read_grey, read_ct_slice, read_slice_position):
            with contextlib.suppress(BadData):
                read(file)
    assert caplog.records == []


@needs_real_files
@pytest.mark.parametrize("vendor", ["ct_ge", "ct_philips"])
def test_real_ct_slices_show_air_and_tissue(vendor: str) -> None:
    """Real slices of two vendors hold air near -1000 HU, soft tissue near 0 HU."""
    for file in sorted((SHARED_DICOM / vendor).iterdir())[::9]:
        if file.name == "DIRFILE":
            continue
        got = read_ct_slice(file)
        assert got.hounsfield.shape == (512, 512)
        assert -1024 <= got.hounsfield.min() <= -990
        assert 0.01 < (np.abs(got.hounsfield) < 150).mean() < 0.9
        assert 200 < got.hounsfield.max() < 4000
        assert 0.3 < got.pixel_spacing_mm[0] < 1
        assert got.position.instance_number is not None


@needs_real_files
def test_a_stray_file_among_real_slices_is_refused_by_name() -> None:
    """The directory file among the Philips slices is refused by name by both readers."""
    for read in (read_ct_slice, read_grey):
        with pytest.raises(BadData, match=r"^DIRFILE: "):
            read(SHARED_DICOM / "ct_philips" / "DIRFILE")


@needs_real_files
@pytest.mark.parametrize("vendor", ["mr_ge", "mr_philips", "mr_siemens"])
def test_real_mr_slices_read_as_grey_and_not_as_ct(vendor: str) -> None:
    """MR slices of three vendors are grey images, and no CT slices."""
    file = min((SHARED_DICOM / vendor).iterdir())
    assert read_grey(file).std() > 0
    with pytest.raises(BadData, match="Modality"):
        read_ct_slice(file)

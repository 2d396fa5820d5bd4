"""Pixels through the DICOM door: values with their meaning, errors that quote nothing."""

from __future__ import annotations

import contextlib
import inspect
import re
import warnings
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from common.data.dicom import (
    AIR_HU,
    MAX_PIXELS,
    read_ct_slice,
    read_grey,
    read_mask,
    read_slice_position,
    read_volume,
    series_key,
)
from common.data.dicom.codecs import PLUGIN
from common.data.dicom.header import PIXEL_DATA, opened
from common.data.dicom.stored import PIXEL_TAGS, stored_pixels
from common.errors import BadData

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
    kept = inspect.getclosurevars(got.part).nonlocals  # what computes its pixels later
    said = f"{asdict(got)} {kept} {kept['unnamed'].data}"
    assert "Rescale Slope" in said
    assert SECRET not in said
    assert "1.2.3" not in said


@pytest.mark.parametrize(
    ("dtype", "attributes"),
    [
        (np.uint16, {"RescaleSlope": 2}),
        (np.int16, {"RescaleSlope": 0.5, "PixelPaddingValue": 1000}),
        (np.uint16, {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}),
    ],
)
def test_a_part_of_a_slice_is_that_part_of_it(
    tmp_path: Path, dtype: type, attributes: dict[str, object]
) -> None:
    """Hounsfield units of some rows and columns are those of the whole slice, to the last bit."""
    stored = np.random.default_rng(0).integers(0, 4096, (20, 30)).astype(dtype)
    stored[3:9, 5:9] = 1000
    got = read_ct_slice(ct_file(tmp_path / "a.dcm", stored, **attributes))
    part = got.part(slice(2, 11), slice(4, 30))
    assert got.shape == got.hounsfield.shape == (20, 30)
    assert np.array_equal(part, got.hounsfield[2:11, 4:30])


def test_what_cannot_be_rescaled_is_refused_at_once(tmp_path: Path) -> None:
    """A rescale that gives infinite values is refused before any pixel is asked for."""
    with pytest.raises(BadData, match="infinite"):
        read_ct_slice(ct_file(tmp_path / "a.dcm", STORED, RescaleSlope="1e38"))


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


def test_a_length_is_not_taken_for_a_kind_of_value(tmp_path: Path) -> None:
    """In implicit VR the length of the pixels may read as two letters: still a length."""
    stored = np.arange(8353, dtype=np.uint16)[None]  # 16,706 bytes, "BA" when written down
    image = pydicom.dcmread(ct_file(tmp_path / "a.dcm", stored))
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    image.save_as(tmp_path / "b.dcm", implicit_vr=True, little_endian=True)
    assert (read_grey(tmp_path / "b.dcm") == stored.astype(np.float32) - 1024).all()


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
        ("BitsAllocated", 24),
        ("BitsStored", 17),
        ("HighBit", 14),
        ("PixelRepresentation", 2),
        ("SamplesPerPixel", 3),
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
    monkeypatch.setattr(Decoder, "as_array", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(BadData, match=str(MAX_PIXELS)):
        read_grey(file)


def test_a_syntax_without_decoder_says_so(tmp_path: Path) -> None:
    """A transfer syntax that nothing here decodes, as video, is named as the reason."""
    file = ct_file(tmp_path / "a.dcm", STORED)
    data = file.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.100")
    file.write_bytes(
        data.replace(b"UI\x14\x001.2.840.10008.1.2.4.1", b"UI\x17\x001.2.840.10008.1.2.4.1")
    )
    with pytest.raises(BadData, match="TransferSyntaxUID"):
        read_grey(file)


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
     "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_expb.dcm",
     "MR_small_padded.dcm"],
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


def test_unused_bits_are_cleaned(tmp_path: Path) -> None:
    """An overlay in the bits above BitsStored is no part of the value, signed or not."""
    plain = np.array([[1, -5, 2047, -2048]], np.int16)
    dirty = (plain & 0x0FFF) | 0x3000
    file = ct_file(
        tmp_path / "a.dcm", dirty, BitsStored=12, HighBit=11, Modality="MR", RescaleIntercept=0
    )
    assert read_grey(file).tolist() == plain.tolist()
    unsigned = ct_file(
        tmp_path / "b.dcm", dirty.astype(np.uint16), BitsStored=12, HighBit=11, Modality="MR",
        RescaleIntercept=0,
    )  # fmt: skip
    assert read_grey(unsigned).tolist() == (plain & 0x0FFF).tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32])
def test_every_depth_and_sign_reads_as_stored(tmp_path: Path, dtype: type) -> None:
    """8, 16 and 32 bits, signed or not, give the numbers that were written."""
    ends = np.iinfo(dtype)
    stored = np.array([[ends.min, 0, 1, ends.max]], dtype)
    file = ct_file(tmp_path / "a.dcm", stored, Modality="MR", RescaleIntercept=0)
    assert read_grey(file).tolist() == stored.astype(np.float32).tolist()
    assert (read_mask(file) == stored).all()


@pytest.mark.parametrize(
    ("padding", "limit", "expected"),
    [(3000, None, [AIR_HU, 0, AIR_HU, 2976]), (3000, 4000, [AIR_HU, 0, AIR_HU, AIR_HU])],
)
def test_declared_padding_of_ct_becomes_air(
    tmp_path: Path, padding: int, limit: int | None, expected: list[float]
) -> None:
    """PixelPaddingValue, or the range that it and its limit span, reads as air."""
    stored = np.array([[0, 1024, 3000, 4000]], np.uint16)
    file = ct_file(
        tmp_path / "a.dcm", stored, PixelPaddingValue=padding, PixelPaddingRangeLimit=limit
    )
    assert read_ct_slice(file).hounsfield.tolist() == [expected]


def test_declared_padding_wraps_as_the_pixels_do(tmp_path: Path) -> None:
    """Padding of -500 in unsigned pixels is padding, though air is far below."""
    stored = np.array([[-500, 100]], np.int16).view(np.uint16)
    file = ct_file(tmp_path / "a.dcm", stored, PixelPaddingValue=65036, RescaleIntercept=0)
    assert read_ct_slice(file).hounsfield.tolist() == [[AIR_HU, 100]]


def test_colours_become_their_luminance(tmp_path: Path) -> None:
    """Red, green, blue and white show as a grey print would show them."""
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    file = ct_file(
        tmp_path / "a.dcm", colours[..., 0], Modality="OT", SamplesPerPixel=3,
        PhotometricInterpretation="RGB", PlanarConfiguration=0, PixelData=colours.tobytes(),
    )  # fmt: skip
    assert read_grey(file) == pytest.approx(np.array([[76.245, 149.685, 29.07, 255]]))


def test_a_lookup_table_gives_the_values(tmp_path: Path) -> None:
    """The modality LUT maps stored values; MONOCHROME1 is inverted within the LUT's range."""
    table = Dataset()
    table.LUTDescriptor = [4, 0, 8]
    table.ModalityLUTType = "US"
    table.add_new("LUTData", "OW", bytes([10, 0, 20, 0, 40, 0, 80, 0]))
    stored = np.array([[0, 1, 2, 3]], np.uint8)
    file = ct_file(tmp_path / "a.dcm", stored, Modality="DX", ModalityLUTSequence=[table])
    assert read_grey(file).tolist() == [[10, 20, 40, 80]]
    file = ct_file(
        tmp_path / "b.dcm", stored, Modality="DX", ModalityLUTSequence=[table],
        PhotometricInterpretation="MONOCHROME1",
    )  # fmt: skip
    assert read_grey(file).tolist() == [[245, 235, 215, 175]]


def test_a_mask_is_read_as_stored(tmp_path: Path) -> None:
    """Labels are neither rescaled nor inverted."""
    labels = np.array([[0, 3, 17]], np.uint8)
    file = ct_file(tmp_path / "a.dcm", labels, PhotometricInterpretation="MONOCHROME1")
    assert read_mask(file).tolist() == labels.tolist()


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEGLSNearLossless_08.dcm"])
def test_a_mask_compressed_with_loss_is_refused(name: str) -> None:
    """Rounding would invent labels."""
    with pytest.raises(BadData, match="lossy"):
        read_mask(shipped(name))


def test_a_mask_in_colour_is_refused() -> None:
    """Three samples a pixel are no labels."""
    with pytest.raises(BadData, match="SamplesPerPixel"):
        read_mask(shipped("SC_rgb_small_odd.dcm"))


# What pydicom and pydicom-data ship in two encodings: the same image with and without compression.
PAIRS = [
    ("693_J2KR.dcm", "693_UNCR.dcm", 0), ("MR2_J2KR.dcm", "MR2_UNCR.dcm", 0),
    ("RG1_J2KR.dcm", "RG1_UNCR.dcm", 0), ("RG3_J2KR.dcm", "RG3_UNCR.dcm", 0),
    ("US1_J2KR.dcm", "US1_UNCR.dcm", 0), ("693_J2KI.dcm", "693_UNCI.dcm", 1),
    ("RG3_J2KI.dcm", "RG3_UNCI.dcm", 1), ("US1_J2KI.dcm", "US1_UNCI.dcm", 1),
    ("JPEG-lossy.dcm", "JPEG-LL.dcm", 40), ("JPGExtended.dcm", "JPEG-LL.dcm", 40),
    ("image_dfl.dcm", "image_dfl.dcm", 0), ("OBXXXX1A_rle.dcm", "OBXXXX1A.dcm", 0),
    ("SC_rgb_rle_16bit.dcm", "SC_rgb_16bit.dcm", 0),
    ("SC_rgb_rle_32bit.dcm", "SC_rgb_32bit.dcm", 0),
    ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb.dcm", 0), ("SC_rgb_expb_16bit.dcm", "SC_rgb_16bit.dcm", 0),
    ("SC_ybr_full_uncompressed.dcm", "SC_rgb.dcm", 2), ("color-px.dcm", "color-pl.dcm", 0),
    ("SC_ybr_full_422_uncompressed.dcm", "SC_ybr_full_uncompressed.dcm", 1),
    ("SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb.dcm", 4), ("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb.dcm", 4),
]  # fmt: skip


@pytest.mark.parametrize(("compressed", "plain", "tolerance"), PAIRS)
def test_compressed_images_are_those_that_were_compressed(
    compressed: str, plain: str, tolerance: float
) -> None:
    """JPEG (8, 12 bits, lossless), JPEG 2000, RLE and colours agree with their plain sisters."""
    got, want = read_grey(shipped(compressed)), read_grey(shipped(plain))
    assert np.abs(got - want).max() <= tolerance
    assert want.std() > 0


# The files of pydicom and pydicom-data that are no readable images, and a word that says why.
REFUSED = {
    "expected a DICOM file": (
        "ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm", "OT-PAL-8-face.dcm", "README",
        "README.txt", "crayons.icc", "no_meta.dcm", "rtplan.dump", "rtstruct.dcm", "rtstruct.dump",
        "test1.json", "test_PN.json", "zipMR.gz",
    ),
    "TransferSyntaxUID is missing": ("meta_missing_tsyntax.dcm",),
    "PixelData is missing": (
        "DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-empty.dcm", "DICOMDIR-implicit",
        "DICOMDIR-nooffset", "DICOMDIR-nopatient", "DICOMDIR-reordered", "UN_sequence.dcm",
        "emri_small_jpeg_2k_lossless_too_short.dcm", "empty_charset_LEI.dcm",
        "no_meta_group_length.dcm", "priv_SQ.dcm", "reportsi.dcm",
        "reportsi_with_empty_number_tags.dcm", "rtplan.dcm", "rtplan_truncated.dcm", "test-SR.dcm",
        "waveform_ecg.dcm",
    ),
    "PixelData is broken": ("JPEG2000-embedded-sequence-delimiter.dcm", "MR_truncated.dcm"),
    "Rows is missing": ("nested_priv_SQ.dcm",),
    "NumberOfFrames is missing or broken": ("badVR.dcm",),
    "RedPaletteColorLookupTableData": ("gdcm-US-ALOKA-16.dcm",),  # segmented
    "PALETTE COLOR in a big-endian": (
        "OBXXXX1A_expb.dcm", "OBXXXX1A_expb_2frame.dcm", "gdcm-US-ALOKA-16_big.dcm",
    ),
}  # fmt: skip
WHY_REFUSED = {name: why for why, names in REFUSED.items() for name in names}


def shipped_files() -> list[Path]:
    """Every file of pydicom and pydicom-data; the headers of a file-set are without pixels."""
    folders = [Path(pydicom.__file__).parent / "data" / "test_files"]
    if spec := find_spec("data_store"):  # the module of pydicom-data
        folders.append(Path(str(spec.origin)).parent / "data")
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: path.name)
def test_every_shipped_file_is_read_right_or_refused_by_name(path: Path) -> None:
    """What pydicom's other decoders make of the file is what the door makes of it."""
    why = WHY_REFUSED.get(path.name) or (
        "PixelData is missing" if re.fullmatch(r"IM\w{6}", path.name) else None
    )
    if why:
        with pytest.raises(BadData, match=rf"^{re.escape(path.name)}: {why}"):
            read_volume([path])
        return
    volume = read_volume([path])
    assert np.isfinite(volume).all()
    assert volume.max() > volume.min()
    with opened(path, PIXEL_TAGS, last=PIXEL_DATA) as header:
        stored = stored_pixels(header).values
    others = [name for name in get_decoder(header.syntax).available_plugins if name != PLUGIN]
    if header.syntax.is_encapsulated and not others:
        return  # JPEG lossless and JPEG-LS have no other decoder here: see PAIRS
    with contextlib.suppress(RuntimeError):  # Pillow reads no 12 bits
        image = pydicom.dcmread(path)
        options = {"decoding_plugin": others[0]} if header.syntax.is_encapsulated else {}
        want, _ = get_decoder(header.syntax).as_array(image, raw=True, **options)
        assert (stored == want.reshape(stored.shape)).all()


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


@pytest.mark.parametrize("vendor", ["ct_ge", "ct_philips"])
def test_real_ct_slices_show_air_and_tissue(shared_data: Path, vendor: str) -> None:
    """Real slices of two vendors hold air near -1000 HU, soft tissue near 0 HU."""
    for file in sorted((shared_data / "dicom" / vendor).iterdir()):
        if file.name == "DIRFILE":
            continue
        got = read_ct_slice(file)
        assert got.hounsfield.shape == (512, 512)
        assert -1024 <= got.hounsfield.min() <= -990
        assert 0.005 < (np.abs(got.hounsfield) < 150).mean() < 0.9
        assert 200 < got.hounsfield.max() < 4000
        assert 0.3 < got.pixel_spacing_mm[0] < 1
        assert got.position.instance_number is not None
        assert (got.hounsfield == plain_hounsfield(file)).all()


def plain_hounsfield(file: Path) -> np.ndarray:
    """The slice as pydicom alone gives it, in float64."""
    image = pydicom.dcmread(file)
    rescaled = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
    return np.maximum(rescaled, AIR_HU).astype(np.float32)


def test_a_stray_file_among_real_slices_is_refused_by_name(shared_data: Path) -> None:
    """The file without an image among the Philips slices is refused by name by all readers."""
    for read in (read_ct_slice, read_grey, read_mask):
        with pytest.raises(BadData, match=r"^DIRFILE: "):
            read(shared_data / "dicom" / "ct_philips" / "DIRFILE")


@pytest.mark.parametrize("vendor", ["mr_ge", "mr_philips", "mr_siemens"])
def test_real_mr_slices_read_as_grey_and_not_as_ct(shared_data: Path, vendor: str) -> None:
    """MR slices of three vendors are grey images, and no CT slices."""
    for file in sorted((shared_data / "dicom" / vendor).iterdir()):
        image = pydicom.dcmread(file)
        slope, intercept = image.get("RescaleSlope", 1), image.get("RescaleIntercept", 0)
        want = image.pixel_array * float(slope) + float(intercept)
        assert np.allclose(read_grey(file), want, rtol=1e-6)
        with pytest.raises(BadData, match="Modality"):
            read_ct_slice(file)

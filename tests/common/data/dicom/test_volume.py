"""Volumes: slices in anatomical order whatever their files are called, or a refusal by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from common.data.dicom import read_grey, read_volume
from common.errors import BadData

AXIAL = (1, 0, 0, 0, 1, 0)


def slice_file(path: Path, value: int, **attributes: object) -> Path:
    """A 2 x 3 MR slice whose pixels all have this value; attributes given as None are left out."""
    image = Dataset()
    values: dict[str, object] = {
        "Modality": "MR",
        "SeriesInstanceUID": "1.2.3",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 2,
        "Columns": 3,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "PixelData": np.full((2, 3), value, np.uint16).tobytes(),
    }
    for keyword, setting in (values | attributes).items():
        if setting is not None:
            setattr(image, keyword, setting)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.4")
    image.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    image.save_as(path, enforce_file_format=True)
    return path


def order(volume: np.ndarray) -> list[int]:
    """The value of each slice."""
    return [int(value) for value in volume[:, 0, 0]]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    angles=st.tuples(*[st.floats(-0.7, 0.7)] * 2),
    shuffle=st.permutations(range(5)),
    gap_mm=st.floats(0.1, 10),
)
def test_slices_ascend_along_their_normal(
    tmp_path: Path, angles: tuple[float, float], shuffle: list[int], gap_mm: float
) -> None:
    """Oblique slices in any order of files come out from one end to the other."""
    row = np.array([np.cos(angles[0]), np.sin(angles[0]), 0])
    column = np.array([0, np.cos(angles[1]), np.sin(angles[1])])
    column -= row * (row @ column)
    column /= np.linalg.norm(column)
    normal = np.cross(row, column)
    normal *= np.sign(normal[np.abs(normal).argmax()])
    files = [
        slice_file(
            tmp_path / f"{name}.dcm",
            place,
            # Position moves within the plane too, which says nothing about the order.
            ImagePositionPatient=(np.round(place * gap_mm * normal - 50 * name * row, 6)).tolist(),
            ImageOrientationPatient=np.round([*row, *column], 6).tolist(),
            InstanceNumber=name,
        )
        for name, place in enumerate(shuffle)
    ]
    assert order(read_volume(files)) == [0, 1, 2, 3, 4]


def test_order_is_towards_the_head_however_the_rows_run(tmp_path: Path) -> None:
    """Where the image is stored upside down, its normal turns over and the order stays."""
    files = [
        slice_file(
            tmp_path / f"{place}.dcm",
            place,
            ImagePositionPatient=[0, 0, place],
            ImageOrientationPatient=[1, 0, 0, 0, -1, 0],
        )
        for place in (2, 0, 1)
    ]
    assert order(read_volume(files)) == [0, 1, 2]


@pytest.mark.parametrize(
    "hints",
    [
        [{"SliceLocation": place, "InstanceNumber": 9 - place} for place in range(3)],
        [{"InstanceNumber": place, "SliceLocation": place or None} for place in range(3)],
        [
            {"ImagePositionPatient": [0, 0, -place], "SliceLocation": place} for place in range(3)
        ],  # a position without orientation has no normal
    ],
)
def test_the_next_hint_is_taken_where_positions_are_missing(
    tmp_path: Path, hints: list[dict[str, object]]
) -> None:
    """Without positions SliceLocation orders, without that InstanceNumber; all must have it."""
    files = [
        slice_file(tmp_path / f"{name}.dcm", place, **hints[place])
        for name, place in enumerate((1, 2, 0))
    ]
    assert order(read_volume(files)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("other", "keyword"),
    [
        ({"ImagePositionPatient": [5, 5, 0]}, "ImagePositionPatient"),
        ({"SeriesInstanceUID": "1.2.4"}, "SeriesInstanceUID"),
        ({"Rows": 3, "Columns": 2}, "Rows and Columns"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]}, "ImageOrientationPatient"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient, SliceLocation and InstanceNumber"),
        ({"ImagePositionPatient": [0, 0]}, "ImagePositionPatient"),
        ({"NumberOfFrames": 2}, "NumberOfFrames"),
        ({"PixelData": None}, "PixelData"),
        ({"PhotometricInterpretation": "CMYK"}, "PhotometricInterpretation"),
    ],
)
def test_what_is_no_stack_is_refused_by_name(
    tmp_path: Path, other: dict[str, object], keyword: str
) -> None:
    """Two at one place, series or sizes that differ, slices that cross: file and attribute."""
    place: dict[str, object] = {
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": list(AXIAL),
    }
    first = slice_file(tmp_path / "first.dcm", 0, **place)
    second = {**place, "ImagePositionPatient": [0, 0, 1], **other}
    with pytest.raises(BadData, match=keyword) as refusal:
        read_volume([first, slice_file(tmp_path / "second.dcm", 1, **second)])
    assert "first.dcm" in str(refusal.value) or "second.dcm" in str(refusal.value)
    assert "1.2.4" not in str(refusal.value)


def test_no_file_is_no_volume() -> None:
    """An empty series is bad data, not a crash."""
    with pytest.raises(BadData, match="at least one"):
        read_volume([])


def test_one_slice_is_a_volume_of_one(tmp_path: Path) -> None:
    """A single-frame file alone is a stack of one slice."""
    file = slice_file(tmp_path / "a.dcm", 7)
    assert read_volume([file]).shape == (1, 2, 3)
    assert (read_volume([file])[0] == read_grey(file)).all()


def enhanced(path: Path, places: list[float | None], slopes: list[float]) -> Path:
    """A multi-frame file of 1 x 2 pixels; frame i holds i + 1, at this height, of this slope."""
    frames = []
    for place, slope in zip(places, slopes, strict=True):
        rescale = Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, 10
        frame = Dataset()
        frame.PixelValueTransformationSequence = [rescale]
        if place is not None:
            position = Dataset()
            position.ImagePositionPatient = [0, 0, place]
            frame.PlanePositionSequence = [position]
        frames.append(frame)
    orientation, shared = Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(AXIAL)
    shared.PlaneOrientationSequence = [orientation]
    stored = np.repeat(np.arange(1, len(places) + 1, dtype=np.uint16), 2)
    return slice_file(
        path, 0, Rows=1, Columns=2, NumberOfFrames=len(places), PixelData=stored.tobytes(),
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=frames,
    )  # fmt: skip


def test_frames_have_their_own_rescale_and_place(tmp_path: Path) -> None:
    """An enhanced file's frames are rescaled one by one and put in anatomical order."""
    file = enhanced(tmp_path / "a.dcm", [20, 0, 10], [1, 2, 3])
    assert order(read_volume([file])) == [2 * 2 + 10, 3 * 3 + 10, 1 + 10]


def test_frames_without_places_stay_in_their_order(tmp_path: Path) -> None:
    """Frames of a loop have no place: they come as stored."""
    file = enhanced(tmp_path / "a.dcm", [None, 0, 10], [1, 1, 1])
    assert order(read_volume([file])) == [11, 12, 13]


def test_two_frames_at_one_place_are_refused(tmp_path: Path) -> None:
    """A file of several stacks is no volume; the frames are named."""
    file = enhanced(tmp_path / "a.dcm", [0, 10, 0], [1, 1, 1])
    with pytest.raises(BadData, match=r"a\.dcm, frame 1 and a\.dcm, frame 3: ImagePosition"):
        read_volume([file])


@pytest.mark.parametrize("kind", ["jpeg_2k_lossless", "jpeg_ls_lossless", "RLE", "big_endian"])
def test_multi_frame_files_read_alike_in_every_encoding(kind: str) -> None:
    """The same ten frames, compressed or not, are the same volume."""
    pytest.importorskip("data_store", reason="needs pydicom-data")
    plain, other = (
        Path(str(get_testdata_file(name, download=False)))
        for name in ("emri_small.dcm", f"emri_small_{kind}.dcm")
    )
    volume = read_volume([plain])
    assert volume.shape == (10, 64, 64)
    assert (read_volume([other]) == volume).all()


@pytest.mark.parametrize("vendor", ["mr_ge", "mr_philips"])
def test_real_series_of_several_stacks_are_refused(shared_data: Path, vendor: str) -> None:
    """Two vendors' multi-echo series have several slices at one place: no single volume."""
    with pytest.raises(BadData, match="ImagePositionPatient puts both at one place"):
        read_volume(sorted((shared_data / "dicom" / vendor).iterdir()))


@pytest.mark.parametrize("vendor", ["ct_ge", "ct_philips", "mr_siemens"])
def test_real_series_come_in_order_of_their_positions(
    shared_data: Path, tmp_path: Path, vendor: str
) -> None:
    """Three vendors' slices, renamed and shuffled, give the volume that their positions say."""
    folder = shared_data / "dicom" / vendor
    files = sorted(path for path in folder.iterdir() if path.name != "DIRFILE")
    headers = {path: pydicom.dcmread(path, stop_before_pixels=True) for path in files}
    by_height = sorted(files, key=lambda path: along_normal(headers[path]))
    renamed = [
        tmp_path / str(number) for number in np.random.default_rng(0).permutation(len(files))
    ]
    for old, new in zip(files, renamed, strict=True):
        shutil.copy(old, new)
    volume = read_volume(sorted(renamed))
    assert (volume == np.stack([read_grey(path) for path in by_height])).all()


def along_normal(header: Dataset) -> float:
    """The slice's place in mm on its normal, pointing left, back or up."""
    orientation = np.array(header.ImageOrientationPatient, float)
    normal = np.cross(orientation[:3], orientation[3:])
    normal *= np.sign(normal[np.abs(normal).argmax()])
    return float(normal @ np.array(header.ImagePositionPatient, float))

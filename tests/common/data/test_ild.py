"""The ILD text-ROI reader against a plain extraction, and the quirks of the published tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from common.data.ild import IldReader, Region, pixels_inside
from common.data.source import Image, Source
from common.errors import BadData

CLASSES = ("healthy", "fibrosis")
SPACING_MM = (0.5, 0.8)  # x, y: unequal, so that a swap of the axes shows
Contour = Sequence[tuple[float, float]]


def square(x: float, y: float, side: float) -> Contour:
    """An axis-parallel square with its upper left corner at (x, y), in pixels."""
    return ((x, y), (x + side, y), (x + side, y + side), (x, y + side))


def write_slice(
    path: Path,
    *,
    instance: int | None,
    shape: tuple[int, int] = (96, 96),
    series: str = "1.2.3",
    location_mm: float | None = None,
) -> None:
    """A CT slice whose stored value at (row, column) is 100 row + column + 1024."""
    image = pydicom.Dataset()
    image.Modality, image.SeriesInstanceUID = "CT", series
    if instance is not None:
        image.InstanceNumber = instance
    if location_mm is not None:
        image.SliceLocation = location_mm
    image.Rows, image.Columns = shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = 0
    image.PixelSpacing = [SPACING_MM[1], SPACING_MM[0]]
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    rows, columns = np.indices(shape)
    image.PixelData = (100 * rows + columns + 1024).astype("<u2").tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    image.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)


def write_text(
    path: Path, regions: Sequence[tuple[str, int, Contour]], *, series: str = "1.2.3"
) -> None:
    """The regions (label, slice number, contour in pixels) as the published texts state them."""
    lines = ["Study: 1.2", f"Series: {series}", "SpacingX: 0.5", "SpacingY: 0.8", "SpacingZ: 10.0"]
    for label, number, contour in regions:
        lines += [f"label: {label}", "localisation: diffuse", f"slice_number: {number}"]
        lines += [f"nb_points_on_contour: {len(contour)}"]
        lines += [f"{x * SPACING_MM[0]} {y * SPACING_MM[1]}" for x, y in contour]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def corner(image: Image) -> tuple[int, int]:
    """Where a patch of `write_slice` was cut: its first row and column."""
    return divmod(int(image.pixels[0, 0, 0]), 100)


def corners(reader: IldReader, root: Path) -> list[tuple[str, int, tuple[int, int]]]:
    """Patient, label and place of every patch under `root`."""
    return [
        (source.patient, image.label, corner(image))
        for source in reader.find(root, CLASSES)
        for image in reader.decode(source)
    ]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of one patient with three slices and one healthy region on the second."""
    tree = tmp_path / "ILD_DB_txtROIs"
    for number in (1, 2, 3):
        write_slice(tree / "8" / f"CT-7605-{number:04d}.dcm", instance=number)
    write_text(tree / "8" / "CT-INSPIRIUM-7605.txt", [("healthy", 2, square(16, 32, 32))])
    return tree


# --- the rules, against a plain extraction ----------------------------------------------------


def plainly_inside(x: float, y: float, contour: Contour) -> bool:
    """Even-odd rule, one point at a time: how many edges does a ray to the left cross?"""
    crossings = 0
    for i in range(len(contour)):
        (x0, y0), (x1, y1) = contour[i - 1], contour[i]
        if (y0 > y) != (y1 > y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) < x:
            crossings += 1
    return crossings % 2 == 1


def plain_patches(
    regions: Sequence[Region], shape: tuple[int, int], reader: IldReader
) -> list[tuple[tuple[int, int], int]]:
    """Place and label of each patch, one pixel at a time."""
    size, found = reader.patch_size, []
    inside = {
        (row, column): {
            region.label
            for region in regions
            if plainly_inside(column + 0.5, row + 0.5, region.contour_px)
        }
        for row in range(shape[0])
        for column in range(shape[1])
    }
    for top in range(0, shape[0] - size + 1, reader.stride):
        for left in range(0, shape[1] - size + 1, reader.stride):
            pixels = [inside[top + i, left + j] for i in range(size) for j in range(size)]
            labels = set().union(*pixels)
            if len(labels) == 1 and None not in labels:
                (label,) = labels
                if sum(label in pixel for pixel in pixels) >= reader.min_share * size * size:
                    found.append(((top, left), label))
    return found


# Steps of odd and unequal lengths, so that no edge runs exactly through a pixel's centre.
steps = st.integers(-4, 40)
points = st.tuples(steps.map(lambda step: step * 0.7310586), steps.map(lambda step: step * 0.61257))
contours = st.lists(points, min_size=3, max_size=7).map(tuple)
regions = st.builds(Region, st.sampled_from([0, 1, None]), contours)


@settings(max_examples=80, deadline=None)
@given(contour=contours, shape=st.tuples(st.integers(1, 24), st.integers(1, 24)))
def test_pixels_inside_follow_the_even_odd_rule(contour: Contour, shape: tuple[int, int]) -> None:
    """A pixel is inside when its centre is, for any polygon, crossing itself or the border."""
    plain = [
        [plainly_inside(column + 0.5, row + 0.5, contour) for column in range(shape[1])]
        for row in range(shape[0])
    ]
    assert pixels_inside(contour, shape).tolist() == plain


def test_polygons_with_a_common_edge_share_no_pixel() -> None:
    """Where an edge runs exactly through pixel centres, each pixel belongs to one side of it."""
    left = pixels_inside(((0, 0), (2.5, 0), (2.5, 4), (0, 4)), (4, 6))
    right = pixels_inside(((2.5, 0), (6, 0), (6, 4), (2.5, 4)), (4, 6))
    assert (left ^ right).all()
    assert right[:, 2].all()


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    annotated=st.lists(regions, min_size=1, max_size=4),
    min_share=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
)
def test_patches_are_those_of_a_plain_extraction(
    tmp_path: Path, annotated: list[Region], min_share: float
) -> None:
    """Size, stride, share and the one-label rule decide alike, pixel by pixel or in bulk."""
    file, shape = tmp_path / "CT-0001-0001.dcm", (22, 29)
    if not file.exists():
        write_slice(file, instance=1, shape=shape)
    reader = IldReader(patch_size=6, stride=3, min_share=min_share)
    images = reader.decode(Source(file, "8", None, tuple(annotated)))
    assert [(corner(image), image.label) for image in images] == plain_patches(
        annotated, shape, reader
    )


# --- the rules, one by one ----------------------------------------------------------------------


def test_a_patch_needs_three_quarters_of_its_pixels(tree: Path) -> None:
    """With 24 of 32 columns inside a patch is kept, with 23 it isn't."""
    text = tree / "8" / "CT-INSPIRIUM-7605.txt"
    for columns, expected in ((24, [("8", 0, (32, 16))]), (23, [])):
        x = 16 + 32 - columns
        contour = ((x, 32), (48, 32), (48, 64), (x, 64))
        write_text(text, [("healthy", 2, contour), ("fibrosis", 3, square(0, 0, 32))])
        found = corners(IldReader(), tree)
        assert [patch for patch in found if patch[1] == 0] == expected


def test_regions_of_one_label_count_together(tree: Path) -> None:
    """Two regions of one label fill a patch that neither fills alone, and overlaps count once."""
    halves = [((16, 32), (32, 32), (32, 64), (16, 64)), ((30, 32), (48, 32), (48, 64), (30, 64))]
    text = tree / "8" / "CT-INSPIRIUM-7605.txt"
    write_text(text, [("healthy", 2, half) for half in halves])
    assert corners(IldReader(), tree) == [("8", 0, (32, 16))]


@pytest.mark.parametrize("other", ["fibrosis", "consolidation"])
def test_a_patch_that_touches_another_label_is_dropped(tree: Path, other: str) -> None:
    """One pixel of another label, studied or not, is enough to drop a patch."""
    text = tree / "8" / "CT-INSPIRIUM-7605.txt"
    write_text(text, [("healthy", 2, square(16, 32, 32)), (other, 2, square(47, 63, 1))])
    (source,) = IldReader().find(tree, CLASSES)
    assert IldReader().decode(source) == ()
    write_text(text, [("healthy", 2, square(16, 32, 32)), (other, 2, square(48, 64, 1))])
    assert corners(IldReader(), tree) == [("8", 0, (32, 16))]


def test_patches_hold_the_slice_in_hounsfield_units(tree: Path) -> None:
    """A patch is (1, 32, 32) float32, cut where the region's millimetres say."""
    (source,) = IldReader().find(tree, CLASSES)
    (image,) = IldReader().decode(source)
    rows, columns = np.indices((32, 32))
    assert image.pixels.dtype == np.float32
    assert (image.pixels[0] == 100 * (rows + 32) + columns + 16).all()


def test_a_slice_smaller_than_a_patch_has_none(tmp_path: Path) -> None:
    """A slice with fewer than 32 rows gives no patch and no error."""
    write_slice(tmp_path / "a.dcm", instance=1, shape=(31, 96))
    source = Source(tmp_path / "a.dcm", "8", None, (Region(0, tuple(square(0, 0, 96))),))
    assert IldReader().decode(source) == ()


# --- the tree's quirks -------------------------------------------------------------------------


def test_the_tree_or_the_folder_above_it_is_a_root(tree: Path) -> None:
    """Both give the same sources; a folder two levels up is refused, since patients would merge."""
    assert IldReader().find(tree.parent, CLASSES) == IldReader().find(tree, CLASSES)
    with pytest.raises(BadData, match="folder just above"):
        IldReader().find(tree.parent.parent, CLASSES)


def test_patients_are_folders_whatever_series_they_hold(tree: Path) -> None:
    """Series in sub-folders belong to the patient above; HRCT_pilot is a level, not a patient."""
    for folder, series in (("8/CT-series-5652", "5"), ("8/CT--0002", "6"), ("HRCT_pilot/200", "7")):
        write_slice(tree / folder / "CT-1-0001.dcm", instance=1, series=series)
        write_text(tree / folder / "Tho-1.txt", [("fibrosis", 1, square(0, 0, 32))], series=series)
    found = corners(IldReader(), tree)
    assert sorted(found) == sorted(
        [("8", 0, (32, 16)), *[("8", 1, (0, 0))] * 2, ("200", 1, (0, 0))]
    )


def test_the_order_is_that_of_patient_and_path(tree: Path) -> None:
    """Sources come sorted, whatever the order in which the files were written."""
    for patient in ("9", "10", "7"):
        write_slice(tree / patient / "CT-1-0001.dcm", instance=1)
        write_text(tree / patient / "CT-INSPIRIUM-1.txt", [("healthy", 1, square(0, 0, 32))])
    assert [s.patient for s in IldReader().find(tree, CLASSES)] == ["10", "7", "8", "9"]


def test_slices_are_found_by_instance_number_not_by_name(tree: Path) -> None:
    """A name that says another number than InstanceNumber is overruled."""
    folder = tree / "8"
    for name, number in (("CT-7605-0001", 2), ("CT-7605-0002", 1), ("odd name", 4)):
        write_slice(folder / f"{name}.dcm", instance=number)
    found = IldReader().find(tree, CLASSES)
    assert [source.path.name for source in found] == ["CT-7605-0001.dcm"]


def test_names_number_slices_when_slice_locations_agree(tree: Path) -> None:
    """Without InstanceNumber the names count, if they rise or fall with SliceLocation."""
    for number in (1, 2, 3):
        file = tree / "8" / f"CT-7605-{number:04d}.dcm"
        write_slice(file, instance=None, location_mm=-10.0 * number)
    (source,) = IldReader().find(tree, CLASSES)
    assert source.path.name == "CT-7605-0002.dcm"


@pytest.mark.parametrize("locations", [(None, None, None), (0.0, 10.0, 5.0), (0.0, 0.0, 5.0)])
def test_slices_that_nothing_numbers_are_refused(
    tree: Path, locations: tuple[float | None, ...]
) -> None:
    """Without InstanceNumber, names that SliceLocation doesn't confirm would be a guess."""
    for number, location in enumerate(locations, start=1):
        file = tree / "8" / f"CT-7605-{number:04d}.dcm"
        write_slice(file, instance=None, location_mm=location)
    with pytest.raises(BadData, match=r"^CT-INSPIRIUM-7605\.txt: InstanceNumber"):
        IldReader().find(tree, CLASSES)


def test_texts_find_their_series_among_several_in_one_folder(tree: Path) -> None:
    """Two series with the same slice numbers in one folder are told apart by their headers."""
    for number in (1, 2, 3):
        write_slice(tree / "8" / f"CT-9999-{number:04d}.dcm", instance=number, series="9")
    write_text(
        tree / "8" / "CT-INSPIRIUM-9999.txt", [("fibrosis", 3, square(0, 0, 32))], series="9"
    )
    found = IldReader().find(tree, CLASSES)
    assert [source.path.name for source in found] == ["CT-7605-0002.dcm", "CT-9999-0003.dcm"]


def test_a_text_of_an_unknown_series_takes_the_slices_beside_it(tree: Path) -> None:
    """Where only one side's UIDs were replaced, the folder pairs text and slices."""
    text = tree / "8" / "CT-INSPIRIUM-7605.txt"
    write_text(text, [("healthy", 2, square(16, 32, 32))], series="other")
    assert corners(IldReader(), tree) == [("8", 0, (32, 16))]


def test_a_text_never_takes_slices_that_another_text_names(tree: Path) -> None:
    """A text whose own slices are missing stays without any, rather than mark another series."""
    write_text(
        tree / "8" / "CT-INSPIRIUM-1.txt", [("fibrosis", 3, square(0, 0, 32))], series="gone"
    )
    assert corners(IldReader(), tree) == [("8", 0, (32, 16))]


def test_missing_slices_and_texts_are_left_out(tree: Path) -> None:
    """Regions without a slice and slices without regions are the published set's, no error."""
    (tree / "8" / "CT-7605-0003.dcm").unlink()
    write_text(
        tree / "8" / "CT-INSPIRIUM-7605.txt",
        [("healthy", 3, square(0, 0, 32)), ("healthy", 2, square(16, 32, 32))],
    )
    write_slice(tree / "9" / "CT-1-0001.dcm", instance=1)
    assert corners(IldReader(), tree) == [("8", 0, (32, 16))]


def test_files_of_the_file_system_are_ignored(tree: Path) -> None:
    """Dot-files of a Mac and other kinds of files are passed over."""
    (tree / "8" / "._CT-7605-0002.dcm").write_bytes(b"junk")
    (tree / "8" / "._CT-INSPIRIUM-7605.txt").write_bytes(b"nb_points_on_contour: junk")
    (tree / "8" / "notes.txt").write_text("nothing of note")
    (tree / ".DS_Store").write_bytes(b"junk")
    assert corners(IldReader(), tree) == [("8", 0, (32, 16))]


def test_labels_match_in_singular_and_plural(tree: Path) -> None:
    """`micronodule` in a text is the study's `micronodules`."""
    text = tree / "8" / "CT-INSPIRIUM-7605.txt"
    write_text(text, [("Micronodule", 2, square(16, 32, 32))])
    (source,) = IldReader().find(tree, ("healthy", "micronodules"))
    assert [image.label for image in IldReader().decode(source)] == [1]


def test_a_key_keeps_its_value_until_set_again(tree: Path) -> None:
    """The second contour of a slice needs no second label or slice number."""
    text = tree / "8" / "CT-INSPIRIUM-7605.txt"
    first = text.read_text()
    text.write_text(first + "\nnb_points_on_contour: 4\n32 51.2\n48 51.2\n48 76.8\n32 76.8\n")
    assert corners(IldReader(), tree) == [("8", 0, (32, 16)), ("8", 0, (64, 64))]


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ("nb_points_on_contour: 4", "nb_points_on_contour: 5"),
        ("nb_points_on_contour: 4", "nb_points_on_contour: many"),
        ("nb_points_on_contour: 4", "nb_points_on_contour: 0"),
        ("SpacingX: 0.5", ""),
        ("SpacingX: 0.5", "SpacingX: 0"),
        ("SpacingY: 0.8", "SpacingY: nan"),
        ("SpacingY: 0.8", "SpacingY: -0.8"),
        ("label: healthy", ""),
        ("slice_number: 2", "slice_number: two"),
        ("8.0 25.6", "8.0"),
        ("8.0 25.6", "8.0 inf"),
        ("8.0 25.6\n24.0 25.6\n24.0 51.2\n8.0 51.2", "8 25 1\n24 25 1\n24 51 1\n8 51 1"),
    ],
)
def test_a_broken_contour_is_refused_with_its_line(tree: Path, said: str, instead: str) -> None:
    """What a contour lacks is said with the text's name and line."""
    text = tree / "8" / "CT-INSPIRIUM-7605.txt"
    assert said in text.read_text()
    text.write_text(text.read_text().replace(said, instead, 1))
    with pytest.raises(BadData, match=r"^CT-INSPIRIUM-7605\.txt, line 9: "):
        IldReader().find(tree, CLASSES)


def test_a_text_that_cannot_be_opened_is_refused(tree: Path) -> None:
    """A folder where a text should be is named, not a crash."""
    (tree / "8" / "folder.txt").mkdir()
    with pytest.raises(BadData, match=r"^folder\.txt: can't be opened"):
        IldReader().find(tree, CLASSES)


def test_all_problems_of_a_tree_come_at_once(tree: Path) -> None:
    """Every broken file is named, up to ten, and the rest counted."""
    for number in range(13):
        (tree / "8" / f"CT-7605-1{number:03d}.dcm").write_bytes(b"junk")
    with pytest.raises(BadData) as refusal:
        IldReader().find(tree, CLASSES)
    lines = str(refusal.value).splitlines()
    assert [line.split(":")[0] for line in lines[:10]] == [
        f"CT-7605-1{n:03d}.dcm" for n in range(10)
    ]
    assert lines[10:] == ["... and 3 more"]


def test_a_root_without_regions_is_refused(tmp_path: Path) -> None:
    """An empty or missing folder is refused with what was looked for."""
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BadData, match="healthy, fibrosis"):
            IldReader().find(root, CLASSES)

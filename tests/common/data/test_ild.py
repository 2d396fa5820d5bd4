"""The ILD reader against a plain extraction, and the quirks of the published trees."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from common.data.ild import IldReader, Region, pixels_inside
from common.data.ild.patches import Layer, Rules, patch_places, region_layers
from common.data.source import Image, Source
from common.errors import BadData, BadInput

CLASSES = ("healthy", "fibrosis")
SPACING_MM = (0.5, 0.8)  # x, y: unequal, so that a swap of the axes shows
Contour = Sequence[tuple[float, float]]
Labels = Mapping[tuple[int, int], set[int | str]]  # of the regions that a pixel lies in
Places = list[tuple[tuple[int, int], int]]  # first row and column, label


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
    stored: NDArray[np.integer] | None = None,
) -> None:
    """A CT slice whose stored value at (row, column) is 100 row + column + 1024 if not given."""
    if stored is None:
        rows, columns = np.indices(shape)
        stored = 100 * rows + columns + 1024
    image = pydicom.Dataset()
    image.Modality, image.SeriesInstanceUID = "CT", series
    if instance is not None:
        image.InstanceNumber = instance
    if location_mm is not None:
        image.SliceLocation = location_mm
    image.Rows, image.Columns = stored.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = 0
    image.PixelSpacing = [SPACING_MM[1], SPACING_MM[0]]
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    image.PixelData = stored.astype("<u2").tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    image.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)


def write_mask(path: Path, codes: NDArray[np.integer]) -> None:
    """A mask of a slice: the same kind of file, its values are the codes."""
    write_slice(path, instance=None, stored=codes)


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
    return divmod(int(image.planes[0][0, 0, 0]), 100)


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


def plain_labels(regions: Sequence[Region], shape: tuple[int, int]) -> Labels:
    """The labels of the regions that each pixel lies in."""
    return {
        (row, column): {
            region.label
            for region in regions
            if plainly_inside(column + 0.5, row + 0.5, region.contour_px)
        }
        for row in range(shape[0])
        for column in range(shape[1])
    }


def plain_label(pixels: Labels, place: tuple[int, int], reader: IldReader) -> int | None:
    """The label of the patch at `place` by the reader's rules, None where it is no patch."""
    size = range(reader.patch_size)
    inside = [label for i in size for j in size for label in pixels[place[0] + i, place[1] + j]]
    counts = {label: inside.count(label) for label in inside}
    if not counts or (reader.label_rule == "one" and len(counts) > 1):
        return None
    largest = [label for label, count in counts.items() if count == max(counts.values())]
    if len(largest) > 1 or isinstance(largest[0], str):
        return None
    share = max(counts.values()) / reader.patch_size**2
    return largest[0] if share >= reader.min_share else None


def plain_grid(shape: tuple[int, int], reader: IldReader) -> Iterator[tuple[int, int]]:
    """Every place of the grid, row by row."""
    for top in range(0, shape[0] - reader.patch_size + 1, reader.stride):
        for left in range(0, shape[1] - reader.patch_size + 1, reader.stride):
            yield top, left


def plain_patches(pixels: Labels, shape: tuple[int, int], reader: IldReader) -> Places:
    """Place and label of each patch, one pixel at a time."""
    labels = [(place, plain_label(pixels, place, reader)) for place in plain_grid(shape, reader)]
    return [(place, label) for place, label in labels if label is not None]


def places(images: Sequence[Image]) -> Places:
    """Place and label of each patch that was read."""
    return [(corner(image), image.label) for image in images if isinstance(image.label, int)]


def wholly_outside(contour: Contour, shape: tuple[int, int]) -> bool:
    """Whether the contour and an image of this shape lie side by side."""
    (low_x, low_y), (high_x, high_y) = np.min(contour, axis=0), np.max(contour, axis=0)
    return bool(high_x < 0 or high_y < 0 or low_x > shape[1] or low_y > shape[0])


# Steps of odd and unequal lengths, so that no edge runs exactly through a pixel's centre.
steps = st.integers(-4, 40)
points = st.tuples(steps.map(lambda step: step * 0.7310586), steps.map(lambda step: step * 0.61257))
contours = st.lists(points, min_size=3, max_size=7).map(tuple)
regions = st.builds(Region, st.sampled_from([0, 1, "cyst", "pcp"]), contours)
shares = st.sampled_from([0.2, 0.25, 0.5, 0.75, 1.0])
rules = st.builds(
    IldReader,
    patch_size=st.just(6),
    stride=st.just(3),
    min_share=shares,
    label_rule=st.sampled_from(["one", "largest"]),
)
in_one_folder = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


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


@in_one_folder
@given(annotated=st.lists(regions, min_size=1, max_size=4), reader=rules)
def test_patches_are_those_of_a_plain_extraction(
    tmp_path: Path, annotated: list[Region], reader: IldReader
) -> None:
    """Size, stride, share and either label rule decide alike, pixel by pixel or in bulk."""
    file, shape = tmp_path / "CT-0001-0001.dcm", (22, 29)
    assume(not any(wholly_outside(region.contour_px, shape) for region in annotated))
    if not file.exists():
        write_slice(file, instance=1, shape=shape)
    images = reader.decode(Source(file, "8", None, tuple(annotated)))
    assert places(images) == plain_patches(plain_labels(annotated, shape), shape, reader)


@in_one_folder
@given(
    annotated=st.lists(regions, min_size=1, max_size=4),
    reader=rules,
    limit=st.integers(1, 5),
)
def test_shifted_patches_keep_the_rules_where_they_land(
    tmp_path: Path, annotated: list[Region], reader: IldReader, limit: int
) -> None:
    """Each place of the grid gives at most one patch, within reach, with the label it has there."""
    file, shape = tmp_path / "CT-0001-0001.dcm", (22, 29)
    assume(not any(wholly_outside(region.contour_px, shape) for region in annotated))
    if not file.exists():
        write_slice(file, instance=1, shape=shape)
    # Without overlaps in the grid, it is plain which place a patch comes from.
    reader = replace(reader, random_shift=limit, patch_size=4, stride=11)
    pixels = plain_labels(annotated, shape)
    found = places(reader.decode(Source(file, "8", None, tuple(annotated))))
    origins = [
        place
        for (top, left), label in found
        for place in plain_grid(shape, reader)
        if max(abs(top - place[0]), abs(left - place[1])) <= limit
    ]
    assert len(origins) == len(set(origins)) == len(found)
    assert all(label == plain_label(pixels, place, reader) for place, label in found)
    # No place near the regions is passed over: boxes as large as the slice give the same patches.
    layers = region_layers(annotated, shape)
    whole = {label: Layer(0, 0, np.zeros(shape, bool)) for label in layers}
    for label, layer in layers.items():
        height, width = layer.inside.shape
        box = whole[label].inside[layer.top : layer.top + height, layer.left : layer.left + width]
        box[:] = layer.inside
    dense = Rules(4, 1, 0.05, reader.label_rule, limit)
    landed = patch_places(layers, shape, dense)
    assert landed == patch_places(whole, shape, dense)
    reader = replace(reader, min_share=0.05)
    assert all(label == plain_label(pixels, (y, x), reader) for y, x, label in landed)


codes = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 3, 4, 14, 17]),
        *[st.integers(0, side) for side in (20, 26, 14, 14)],
    ),
    min_size=1,
    max_size=5,
)  # code, first row and column, height and width of rectangles laid on one another


def code_map(rectangles: Sequence[tuple[int, ...]], shape: tuple[int, int]) -> NDArray[np.integer]:
    """A map of codes with these rectangles."""
    drawn = np.zeros(shape, int)
    for code, top, left, height, width in rectangles:
        drawn[top : top + height, left : left + width] = code
    return drawn


def labels_of_codes(
    drawn: NDArray[np.integer], label_of: Mapping[int, int | str], lungs: NDArray[np.bool_]
) -> Labels:
    """The label of each pixel of a map that is inside the lungs."""
    return {
        (row, column): {label_of.get(int(code), f"code {code}")} if code and inside else set()
        for (row, column), code, inside in zip(
            np.ndindex(drawn.shape), drawn.flat, lungs.flat, strict=True
        )
    }


@in_one_folder
@given(drawn=codes, lungs=st.none() | codes, reader=rules)
def test_patches_of_masks_are_those_of_a_plain_extraction(
    tmp_path: Path,
    drawn: list[tuple[int, ...]],
    lungs: list[tuple[int, ...]] | None,
    reader: IldReader,
) -> None:
    """The same rules on label maps, inside the lungs where asked for, through a whole tree."""
    shape = (22, 29)
    slices, masks = tmp_path / "ILD_DB_volumeROIs" / "8", tmp_path / "ILD_DB_lungMasks" / "8"
    if not slices.exists():
        write_slice(slices / "CT-7605-0004.dcm", instance=4, shape=shape)
    write_mask(slices / "roi_mask" / "roi_mask_7605_4.dcm", code_map(drawn, shape))
    inside = np.ones(shape, bool)
    if lungs is not None:
        inside = code_map(lungs, shape) > 0
        write_mask(masks / "lung_mask" / "lung_mask_7605_4.dcm", 255 * inside)
    reader = replace(
        reader,
        regions="masks",
        lung_mask=lungs is not None,
        labels=(("early_fibrosis", "fibrosis"),),
    )
    (source,) = reader.find(tmp_path, CLASSES)
    pixels = labels_of_codes(code_map(drawn, shape), {1: 0, 4: 1, 14: 1}, inside)
    assert places(reader.decode(source)) == plain_patches(pixels, shape, reader)


@in_one_folder
@given(annotated=st.lists(regions, min_size=1, max_size=4), lungs=codes, reader=rules)
def test_polygons_count_inside_the_lungs_only(
    tmp_path: Path, annotated: list[Region], lungs: list[tuple[int, ...]], reader: IldReader
) -> None:
    """With lung masks a region is what of it lies in the lungs."""
    file, mask, shape = tmp_path / "CT-0001-0001.dcm", tmp_path / "lung_mask_0001_1.dcm", (22, 29)
    assume(not any(wholly_outside(region.contour_px, shape) for region in annotated))
    if not file.exists():
        write_slice(file, instance=1, shape=shape)
    inside = code_map(lungs, shape) > 0
    write_mask(mask, 255 * inside)
    reader = replace(reader, lung_mask=True)
    images = reader.decode(Source(file, "8", None, tuple(annotated), others=(mask,)))
    pixels = plain_labels(annotated, shape)
    cut = {at: labels if inside[at] else set() for at, labels in pixels.items()}
    assert places(images) == plain_patches(cut, shape, reader)


def plain_bilinear(line: Sequence[float], count: int) -> list[float]:
    """A line of pixels at `count` places: means weighted by a triangle as wide as needed."""
    scale = len(line) / count
    width = max(scale, 1.0)
    resampled = []
    for i in range(count):
        weights = [
            max(0.0, 1 - abs((j + 0.5) - (i + 0.5) * scale) / width) for j in range(len(line))
        ]
        weighted = sum(w * value for w, value in zip(weights, line, strict=True))
        resampled.append(weighted / sum(weights))
    return resampled


@pytest.mark.parametrize("spacing_mm", [0.31, 0.5, 0.8, 1.3])
@pytest.mark.parametrize("regions_of", ["text", "masks"])
def test_slices_are_resampled_to_one_spacing_first(
    tmp_path: Path, spacing_mm: float, regions_of: str
) -> None:
    """Pixels by a triangle filter, masks by the nearest pixel, polygons scaled, then the rules."""
    shape, generator = (31, 43), np.random.default_rng(3)
    stored = generator.integers(0, 2000, shape)
    new = (round(31 * 0.8 / spacing_mm), round(43 * 0.5 / spacing_mm))  # rows are SPACING_MM[1]
    y, x = new[0] / 31, new[1] / 43
    file, mask = tmp_path / "CT-0001-0001.dcm", tmp_path / "roi_mask_0001_1.dcm"
    lung_mask = tmp_path / "lung_mask_0001_1.dcm"
    write_slice(file, instance=1, stored=stored)
    drawn = code_map([(1, 2, 3, 17, 30), (4, 12, 20, 17, 20), (17, 29, 0, 2, 9)], shape)
    lungs = code_map([(1, 1, 1, 27, 38)], shape) > 0
    write_mask(mask, drawn)
    write_mask(lung_mask, 255 * lungs)
    nearest = np.ix_(
        [int((i + 0.5) * 31 / new[0]) for i in range(new[0])],
        [int((j + 0.5) * 43 / new[1]) for j in range(new[1])],
    )
    reader = IldReader(
        patch_size=5, stride=2, pixel_spacing_mm=spacing_mm, lung_mask=True, regions=regions_of
    )
    if regions_of == "text":
        annotated = (
            Region(0, ((2.1, 3.3), (33.2, 5.1), (20.7, 29.9))),
            Region(1, ((41.1, 3.3), (37.7, 29.3), (31.7, 26.9))),
        )
        detail, others = annotated, (lung_mask,)
        scaled = [
            Region(r.label, tuple((px * x, py * y) for px, py in r.contour_px)) for r in annotated
        ]
        pixels = plain_labels(scaled, new)
        pixels = {at: found if lungs[nearest][at] else set() for at, found in pixels.items()}
    else:
        detail, others = ("", 0, "b", "c", 1, *"efghijklmnopq"), (mask, lung_mask)
        pixels = labels_of_codes(drawn[nearest], {1: 0, 4: 1}, lungs[nearest])
    images = reader.decode(Source(file, "8", None, detail, others=others))
    expected = plain_patches(pixels, new, reader)
    assert len(expected) > 3
    assert [image.label for image in images] == [label for _, label in expected]
    rows = [plain_bilinear(row, new[1]) for row in (stored - 1024.0).tolist()]
    columns = [plain_bilinear(column, new[0]) for column in zip(*rows, strict=True)]
    hounsfield = np.array(columns).T
    for image, ((top, left), _) in zip(images, expected, strict=True):
        plain = hounsfield[None, top : top + 5, left : left + 5]
        np.testing.assert_allclose(image.planes[0], plain, atol=0.01)


def test_a_spacing_that_gives_too_many_pixels_is_refused(tree: Path) -> None:
    """A PixelSpacing far above the wanted one is no way to fill the memory."""
    reader = IldReader(pixel_spacing_mm=1e-4)
    (source,) = reader.find(tree, CLASSES)
    with pytest.raises(BadData, match=r"^CT-7605-0002\.dcm: would have more than"):
        reader.decode(source)


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


def test_the_largest_label_takes_a_patch_that_several_touch(tree: Path) -> None:
    """By the rule `largest` a studied label wins with more pixels than any other, by none in a tie.

    Labels that aren't studied are weighed one by one.
    """
    text = tree / "8" / "CT-INSPIRIUM-7605.txt"
    healthy = ("healthy", 2, square(16, 32, 32))  # 32 x 32, minus what the others take below
    for others, expected in (
        ([("cyst", 2, square(16, 32, 31))], [0]),
        ([("fibrosis", 2, square(16, 32, 32))], []),
        ([("cyst", 2, square(16, 32, 33))], []),
        ([("cyst", 2, square(16, 32, 25)), ("pcp", 2, square(23, 39, 25))], [0]),
    ):
        write_text(text, [healthy, *others])
        (source,) = IldReader().find(tree, CLASSES)
        images = IldReader(label_rule="largest").decode(source)
        assert [image.label for image in images] == expected


def test_shifts_depend_on_the_regions_outline_alone(tree: Path) -> None:
    """Other pixels and another patient get the same offsets; another outline gets others."""
    generator = np.random.default_rng(0)
    for patient in ("9", "10"):
        folder, noise = tree / patient, generator.integers(0, 50, (96, 96))
        rows, columns = np.indices((96, 96))
        write_slice(folder / "CT-1-0001.dcm", instance=1, stored=100 * rows + columns + 1024)
        write_slice(folder / "CT-1-0002.dcm", instance=2, stored=noise)
        write_text(
            folder / "CT-INSPIRIUM-1.txt",
            [("healthy", 1, square(0, 0, 96)), ("healthy", 2, square(0, 0, 96))],
        )
    write_text(tree / "8" / "CT-INSPIRIUM-7605.txt", [("healthy", 2, square(0, 0, 95))])
    reader = IldReader(random_shift=7)
    by_slice = {s.path: reader.decode(s) for s in reader.find(tree, CLASSES)}
    of = {f"{path.parent.name}/{path.stem[-1]}": images for path, images in by_slice.items()}
    assert places(of["9/1"]) == places(of["10/1"]) != places(of["8/2"])
    cut = [image.planes[0] for image in of["9/2"]]
    (noisy,) = (s for s in reader.find(tree / "..", CLASSES) if s.path.match("9/CT-1-0002.dcm"))
    whole = IldReader(patch_size=96).decode(noisy)[0].planes[0]
    corners_of = [place for place, _ in places(of["9/1"])]
    assert all(
        (patch == whole[:, y : y + 32, x : x + 32]).all()
        for patch, (y, x) in zip(cut, corners_of, strict=True)
    )
    offsets = np.array(corners_of) - np.array(list(plain_grid((96, 96), reader)))
    assert len(np.unique(offsets)) > 5
    assert np.abs(offsets).max() <= 7


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
    assert image.planes[0].dtype == np.float32
    assert (image.planes[0][0] == 100 * (rows + 32) + columns + 16).all()


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


def test_the_sites_own_names_stand_for_the_studys_classes(tree: Path) -> None:
    """`GGO` in a text is `fibrosis` where site.yaml says so; the study's own names still count."""
    text = tree / "8" / "CT-INSPIRIUM-7605.txt"
    write_text(text, [("ggos", 2, square(16, 32, 32)), ("fibrosis", 3, square(16, 32, 32))])
    reader = IldReader(labels=(("GGO", "fibrosis"),))
    assert corners(reader, tree) == [("8", 1, (32, 16))] * 2


def test_folders_that_link_elsewhere_are_not_entered_twice(tree: Path) -> None:
    """A link to a folder above is passed over, not followed for ever."""
    (tree / "8" / "loop").symlink_to(tree)
    assert corners(IldReader(), tree) == [("8", 0, (32, 16))]


# --- masks --------------------------------------------------------------------------------------

HEALTHY = np.zeros((96, 96), int)
HEALTHY[32:64, 16:48] = 1
MASKS = IldReader(regions="masks")


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """A tree of one patient with three slices; the second has a mask with one healthy region."""
    volumes = tmp_path / "ILD_DB_volumeROIs"
    for number in (1, 2, 3):
        write_slice(volumes / "8" / f"CT-7605-{number:04d}.dcm", instance=number)
    write_mask(volumes / "8" / "roi_mask" / "roi_mask_7605_2.dcm", HEALTHY)
    return volumes


def test_masks_and_slices_are_joined_on_the_slice_number(volumes: Path) -> None:
    """InstanceNumber says which slice a mask is of; what lacks the other half is left out."""
    folder = volumes / "8"
    (folder / "CT-7605-0003.dcm").unlink()
    write_mask(folder / "roi_mask" / "roi_mask_7605_3.dcm", HEALTHY)
    write_slice(folder / "CT-7605-0001.dcm", instance=2)
    write_slice(folder / "CT-7605-0002.dcm", instance=1)
    (source,) = MASKS.find(volumes, CLASSES)
    assert [path.name for path in source.paths] == ["CT-7605-0001.dcm", "roi_mask_7605_2.dcm"]
    assert places(MASKS.decode(source)) == [((32, 16), 0)]


def test_masks_find_their_series_among_several(volumes: Path) -> None:
    """By the digits in the names, else by the folder; sub-folders and HRCT_pilot as for texts."""
    folder = volumes / "8"
    for number in (1, 2):  # a second series beside the first, some with irregular names
        write_slice(folder / f"CT-9999-{number:04d}.dcm", instance=number, series="9")
    write_slice(folder / "odd.dcm", instance=3, series="9")
    write_mask(folder / "roi_mask" / "roi_mask_9999_3.dcm", HEALTHY)
    for place, series in (
        ("57/CT-series-5652", "5"),
        ("57/CT--0002", "6"),
        ("HRCT_pilot/200", "7"),
    ):
        write_slice(volumes / place / "IM-1.dcm", instance=1, series=series)
        write_mask(volumes / place / "roi_mask" / f"roi_mask_{series}_1.dcm", HEALTHY)
    found = [
        (source.patient, *(path.relative_to(volumes).as_posix() for path in source.paths))
        for source in MASKS.find(volumes, CLASSES)
    ]
    assert found == [
        ("200", "HRCT_pilot/200/IM-1.dcm", "HRCT_pilot/200/roi_mask/roi_mask_7_1.dcm"),
        ("57", "57/CT--0002/IM-1.dcm", "57/CT--0002/roi_mask/roi_mask_6_1.dcm"),
        ("57", "57/CT-series-5652/IM-1.dcm", "57/CT-series-5652/roi_mask/roi_mask_5_1.dcm"),
        ("8", "8/CT-7605-0002.dcm", "8/roi_mask/roi_mask_7605_2.dcm"),
        ("8", "8/odd.dcm", "8/roi_mask/roi_mask_9999_3.dcm"),
    ]


def test_a_mask_never_takes_slices_that_another_mask_names(volumes: Path) -> None:
    """A mask whose own series is missing stays without slice."""
    write_mask(volumes / "8" / "roi_mask" / "roi_mask_1111_3.dcm", HEALTHY)
    (source,) = MASKS.find(volumes, CLASSES)
    assert source.path.name == "CT-7605-0002.dcm"


@pytest.mark.parametrize("folder", ["8", "other"])
def test_lung_masks_are_taken_from_the_tree_beside(tree: Path, folder: str) -> None:
    """Slices without a lung mask are left out; the mask's slices aren't needed a second time."""
    write_text(
        tree / "8" / "CT-INSPIRIUM-7605.txt",
        [("healthy", number, square(16, 32, 32)) for number in (2, 3)],
    )
    lungs = np.zeros((96, 96), int)
    lungs[32:64, 16:40] = 255  # 24 of the region's 32 columns
    masks = tree.parent / "ILD_DB_lungMasks" / "8" / folder / "lung_mask"
    write_mask(masks / "lung_mask_7605_2.dcm", lungs)
    write_slice(masks / ".." / "CT-7605-0002.dcm", instance=2)
    for root in (tree, tree.parent):
        assert corners(IldReader(lung_mask=True), root) == [("8", 0, (32, 16))]
    assert corners(IldReader(lung_mask=True, min_share=0.76), tree) == []


def test_the_lung_mask_decides_with_masks_too(volumes: Path) -> None:
    """Regions of a label map are cut to the lungs, and decoding names all three files."""
    lungs = volumes.parent / "ILD_DB_lungMasks" / "8" / "lung_mask"
    write_mask(lungs / "lung_mask_7605_2.dcm", 0 * HEALTHY)
    reader = replace(MASKS, lung_mask=True)
    (source,) = reader.find(volumes.parent, CLASSES)
    assert [path.name for path in source.paths] == [
        "CT-7605-0002.dcm",
        "roi_mask_7605_2.dcm",
        "lung_mask_7605_2.dcm",
    ]
    assert reader.decode(source) == ()
    write_mask(lungs / "lung_mask_7605_2.dcm", 255 * HEALTHY)
    assert places(reader.decode(source)) == [((32, 16), 0)]


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
        ("8.0 25.6", "nan 25.6"),
        ("8.0 25.6", "8.0 -1e300"),
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
    """A link to nowhere is named, not a crash."""
    (tree / "8" / "link.txt").symlink_to("nowhere")
    with pytest.raises(BadData, match=r"^link\.txt: can't be opened"):
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


def test_a_region_outside_its_slice_is_refused(tree: Path) -> None:
    """One wholly outside has the wrong spacing or slice; one across the border is cut there."""
    text = tree / "8" / "CT-INSPIRIUM-7605.txt"
    write_text(text, [("healthy", 2, square(16, 32, 32)), ("cyst", 2, square(97, 0, 32))])
    (source,) = IldReader().find(tree, CLASSES)
    with pytest.raises(BadData, match=r"^CT-7605-0002\.dcm: a region lies wholly outside its 96 x"):
        IldReader().decode(source)
    write_text(text, [("healthy", 2, square(-8, -8, 40)), ("healthy", 2, square(80, 80, 40))])
    assert corners(IldReader(), tree) == [("8", 0, (0, 0))]


@pytest.mark.parametrize("kind", ["roi", "lung"])
def test_a_mask_of_another_size_than_its_slice_is_refused(volumes: Path, kind: str) -> None:
    """Both sizes are said, and which file to mend."""
    lungs = volumes.parent / "ILD_DB_lungMasks" / "8" / "lung_mask"
    write_mask(lungs / "lung_mask_7605_2.dcm", np.ones((96, 96), int))
    folder = lungs if kind == "lung" else volumes / "8" / "roi_mask"
    write_mask(folder / f"{kind}_mask_7605_2.dcm", np.ones((96, 48), int))
    reader = replace(MASKS, lung_mask=True)
    (source,) = reader.find(volumes, CLASSES)
    sentence = rf"^{kind}_mask_7605_2\.dcm: has 96 x 48 pixels, its slice 96 x 96"
    with pytest.raises(BadData, match=sentence):
        reader.decode(source)


def test_codes_without_a_label_are_refused(volumes: Path) -> None:
    """A mask knows 17 labels; another number is no mask of this kind."""
    write_mask(volumes / "8" / "roi_mask" / "roi_mask_7605_2.dcm", 18 * HEALTHY)
    (source,) = MASKS.find(volumes, CLASSES)
    with pytest.raises(BadData, match=r"^roi_mask_7605_2\.dcm: has codes .* 0 to 17"):
        MASKS.decode(source)


def test_classes_that_no_mask_shows_are_refused(volumes: Path) -> None:
    """A class that no code stands for would never come, unless the site has a name for it."""
    with pytest.raises(BadData, match="classes: honeycombing is no label of the masks"):
        MASKS.find(volumes, ("healthy", "honeycombing"))
    named = replace(MASKS, labels=(("reticulation", "honeycombing"),))
    assert len(named.find(volumes, ("healthy", "honeycombing"))) == 1


def test_labels_for_no_class_are_refused(tree: Path) -> None:
    """A mapping to a class that the study hasn't got would lose images silently."""
    with pytest.raises(BadInput, match=r"^labels: .* got ground_glas\."):
        IldReader(labels=(("GGO", "ground_glas"),)).find(tree, CLASSES)


def test_masks_that_name_no_slice_are_refused(volumes: Path) -> None:
    """A name without a number, and a second mask of one slice, are said by name."""
    folder = volumes / "8" / "roi_mask"
    write_mask(folder / "roi_mask_last.dcm", HEALTHY)
    write_mask(folder / "roi_mask_7605_02.dcm", HEALTHY)
    with pytest.raises(BadData) as refusal:
        MASKS.find(volumes, CLASSES)
    first, second = str(refusal.value).splitlines()
    assert first.startswith("roi_mask_last.dcm: expected a name such as roi_mask_7605_4.dcm")
    assert second.startswith(
        "roi_mask_7605_2.dcm: is a second mask of the slice of roi_mask_7605_0"
    )


def test_missing_trees_are_said(tree: Path, volumes: Path) -> None:
    """Lung masks that are asked for and absent, and a folder that holds other trees only."""
    with pytest.raises(BadData, match=r"nothing annotated .* and in ILD_DB_lungMasks"):
        IldReader(lung_mask=True).find(tree, CLASSES)
    (tree.parent / "elsewhere").mkdir()
    volumes.rename(tree.parent / "elsewhere" / volumes.name)
    with pytest.raises(BadData, match="holds ILD_DB_volumeROIs further inside"):
        IldReader().find(tree.parent / "elsewhere", CLASSES)


def test_a_folder_that_cannot_be_listed_is_refused(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patients don't vanish because somebody took away the right to look."""
    scandir = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith("8"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(BadData, match=r"8: the folder can't be listed \(Permission denied\)"):
        IldReader().find(tree, CLASSES)

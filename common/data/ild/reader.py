"""The interstitial-lung-disease data set of Geneva (HUG): labelled patches of CT slices, in HU.

Depeursinge et al., "Building a reference multimedia database for interstitial lung diseases",
Comput. Med. Imaging Graph. 36 (2012).

    ILD_DB_txtROIs/<patient>/[<series>/]CT-<ssss>-<nnnn>.dcm       slices
    ILD_DB_txtROIs/<patient>/[<series>/]CT-INSPIRIUM-<ssss>.txt    regions of one series
    ILD_DB_volumeROIs/<patient>/...    the same slices, regions as masks (`masks.py`)
    ILD_DB_lungMasks/<patient>/...     the same slices, lungs as masks (`masks.py`)
    ILD_DB_talismanTestSuite/          ready-made patches (`talisman.py`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from common.data.dicom import MAX_PIXELS, Slice, read_ct_slice
from common.data.ild.masks import (
    CODES,
    mask_series,
    masks_among,
    read_codes,
    read_lungs,
    single_masks,
    slices_among,
)
from common.data.ild.patches import (
    Label,
    LabelRule,
    Layer,
    Region,
    Rules,
    code_layers,
    patch_places,
    region_layers,
    within,
)
from common.data.ild.spacing import resample_mask, resample_pixels, resampled_shape
from common.data.ild.talisman import find_patches, read_patch
from common.data.ild.text import read_texts
from common.data.ild.tree import (
    LUNGS,
    MASKS,
    PATCHES,
    TEXTS,
    files_by_patient,
    join,
    locate,
    positions,
    refuse_if_any,
)
from common.data.source import Image, Source
from common.errors import BadData, BadInput

Regions = Literal["text", "masks", "patches"]

TREE: Final = TEXTS
TREES: Final[Mapping[Regions, str]] = MappingProxyType(
    {"text": TEXTS, "masks": MASKS, "patches": PATCHES}
)
"""The folder of each kind of annotation."""


@dataclass(frozen=True, slots=True)
class IldReader:
    """Reads square patches that lie in regions of one label.

    Patches sit on a grid anchored at the image's first pixel, `stride` pixels apart. One is kept
    when at least `min_share` of its pixels lie in the union of the regions of one of the study's
    classes, and the label rule allows it. Labels that aren't studied count in that rule.

    Args:
        patch_size: side, in pixels.
        stride: in pixels.
        min_share: in (0, 1].
        regions: text (polygons), masks (label maps) or patches (ready-made: of the other
            arguments only `patch_size` and `labels` apply).
        label_rule: one: no pixel of any other label. largest: no other label has as many pixels.
        random_shift: each place of the grid is moved by up to so many pixels each way, and the
            rules decide where it lands. The offsets follow from the outline of the slice's
            regions and the place alone: they are fitted to nothing and tell of nobody.
        pixel_spacing_mm: slices, regions and masks are resampled to it first; None: not.
        lung_mask: regions count only inside the lung masks; slices without one are left out.
        labels: the site's own names of labels, each with the study's class.
    """

    patch_size: int = 32
    stride: int = 16
    min_share: float = 0.75
    regions: Regions = "text"
    label_rule: LabelRule = "one"
    random_shift: int = 0
    pixel_spacing_mm: float | None = None
    lung_mask: bool = False
    labels: tuple[tuple[str, str], ...] = ()

    def find(self, root: Path, classes: Sequence[str]) -> tuple[Source, ...]:
        """Every slice annotated with one of the classes, in the order of patient and path.

        With masks, whose pixels aren't read here, every slice that has one. `root` is the tree or
        the folder that holds it under its name. Slices without annotation and annotations without
        a slice are left out, since the published set has both.
        Raises BadData with every problem found, BadInput where the settings don't fit together.
        """
        class_of = _class_of_label(classes, self.labels)
        problems: list[str] = []
        if self.regions == "patches":
            self._check_ready_made()
            sources = find_patches(locate(root, PATCHES), class_of, problems)
        else:
            if self.regions == "masks":
                problems += _unknown_to_masks(classes, class_of)
            sources = self._find_slices(root, class_of, problems)
        if not sources and not problems:
            name, lungs = TREES[self.regions], f" and in {LUNGS}" * self.lung_mask
            problems.append(
                f"{root}: nothing annotated with {', '.join(classes)} in {name}{lungs}; "
                f"name the folder {name} or the one that holds it."
            )
        refuse_if_any(problems)
        return sources

    def decode(self, source: Source) -> tuple[Image, ...]:
        """The patches of one source, (1, patch_size, patch_size) in HU, row by row."""
        if self.regions == "patches":
            pixels = read_patch(source.path, self.patch_size)
            return (Image((pixels[None],), cast("int", source.detail)),)
        image = read_ct_slice(source.path)
        shape = self._shape(source.path, image)
        layers = self._layers(source, image, shape)
        size = self.patch_size
        rules = Rules(size, self.stride, self.min_share, self.label_rule, self.random_shift)
        places = patch_places(layers, shape, rules)
        if not places:
            return ()
        rows, columns = _box(places, size)
        if shape == image.shape:
            hounsfield = image.part(rows, columns)
        else:
            hounsfield = resample_pixels(image.hounsfield, shape)[rows, columns]
        return tuple(
            Image((_square(hounsfield, top - rows.start, left - columns.start, size),), label)
            for top, left, label in places
        )

    def _find_slices(
        self, root: Path, class_of: Mapping[str, int], problems: list[str]
    ) -> tuple[Source, ...]:
        tree = locate(root, TREES[self.regions])
        lung_tree = _lung_tree(root)
        lung_files = files_by_patient(lung_tree) if self.lung_mask else {}
        label_of_code = tuple(_label(name, class_of) for name in CODES)
        sources = []
        for patient, files in sorted(files_by_patient(tree).items()):
            texts = read_texts(files, problems) if self.regions == "text" else []
            masks = masks_among(files, "roi_mask") if self.regions == "masks" else []
            if not texts and not masks:
                continue
            slices = positions(slices_among(files), problems)
            annotated: dict[Path, tuple[object, tuple[Path, ...]]] = {}
            for path, contours in join(texts, slices, problems).items():
                regions = tuple(Region(_label(c.label, class_of), c.px) for c in contours)
                if any(isinstance(region.label, int) for region in regions):
                    annotated[path] = regions, ()
            roi_series = mask_series(masks, slices, problems, beside=(tree, tree))
            for path, mask in single_masks(join(roi_series, slices, problems), problems).items():
                annotated[path] = label_of_code, (mask,)
            if self.lung_mask:
                lungs = masks_among(lung_files.get(patient, ()), "lung_mask")
                lung_series = mask_series(lungs, slices, problems, beside=(lung_tree, tree))
                lung_of = single_masks(join(lung_series, slices, problems), problems)
                annotated = {
                    path: (detail, (*others, lung_of[path]))
                    for path, (detail, others) in annotated.items()
                    if path in lung_of
                }
            sources += [
                Source(path, patient, None, detail, others=others)
                for path, (detail, others) in sorted(annotated.items())
            ]
        return tuple(sources)

    def _layers(self, source: Source, image: Slice, shape: tuple[int, int]) -> dict[Label, Layer]:
        """What is annotated on a slice, in pixels of `shape`."""
        stored = image.shape
        if self.regions == "text":
            regions = cast("tuple[Region, ...]", source.detail)
            try:
                layers = region_layers(_scaled(regions, stored, shape), shape)
            except ValueError:
                raise BadData(
                    f"{source.path.name}: a region lies wholly outside its {stored[0]} x "
                    f"{stored[1]} pixels; mend the text's SpacingX, SpacingY or slice_number."
                ) from None
        else:
            codes = resample_mask(read_codes(source.others[0], stored), shape)
            layers = code_layers(codes, cast("tuple[Label, ...]", source.detail))
        if self.lung_mask:
            lungs = resample_mask(read_lungs(source.others[-1], stored), shape)
            layers = {label: within(layer, lungs) for label, layer in layers.items()}
        return layers

    def _shape(self, path: Path, image: Slice) -> tuple[int, int]:
        """Height and width of a slice at the spacing that patches are taken from."""
        stored = image.shape
        if self.pixel_spacing_mm is None:
            return stored
        shape = resampled_shape(stored, image.pixel_spacing_mm, self.pixel_spacing_mm)
        if shape[0] * shape[1] > MAX_PIXELS:
            raise BadData(
                f"{path.name}: would have more than {MAX_PIXELS} pixels at "
                f"{self.pixel_spacing_mm} mm; raise data.pixel_spacing_mm or mend PixelSpacing."
            )
        return shape

    def _check_ready_made(self) -> None:
        if self.lung_mask or self.random_shift or self.pixel_spacing_mm is not None:
            raise BadInput(
                "data.lung_mask, data.random_shift_px and data.pixel_spacing_mm need whole slices; "
                "got one of them with `data.regions: patches`. Remove it or read text or masks."
            )


def _lung_tree(root: Path) -> Path:
    """The lung masks inside `root`, or beside it where it is the slices' tree."""
    return root / LUNGS if (root / LUNGS).is_dir() else root.parent / LUNGS


def _class_of_label(classes: Sequence[str], labels: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The class of each label that is studied, by `_singular` of the label."""
    class_of = {_singular(name): index for index, name in enumerate(classes)}
    wrong = sorted({ours for _, ours in labels if _singular(ours) not in class_of})
    if wrong:
        raise BadInput(
            f"labels: expected each to be one of the study's classes ({', '.join(classes)}); got "
            f"{', '.join(wrong)}. Mend it in site.yaml."
        )
    return class_of | {_singular(theirs): class_of[_singular(ours)] for theirs, ours in labels}


def _label(name: str, class_of: Mapping[str, int]) -> Label:
    return class_of.get(_singular(name), _singular(name))


def _singular(label: str) -> str:
    """Labels are found in the singular and in the plural."""
    return label.lower().removesuffix("s")


def _unknown_to_masks(classes: Sequence[str], class_of: Mapping[str, int]) -> list[str]:
    """A sentence for each class that no code of a mask stands for."""
    known = {_label(name, class_of) for name in CODES[1:]}
    return [
        f"classes: {name} is no label of the masks ({', '.join(CODES[1:])}); mend it in the study "
        "or name it in the site's `labels`."
        for index, name in enumerate(classes)
        if index not in known
    ]


def _square(hounsfield: NDArray[np.float32], top: int, left: int, size: int) -> NDArray[np.float32]:
    """A patch as a plane of one slice, (1, size, size), a copy of its own."""
    return hounsfield[None, top : top + size, left : left + size].copy()


def _box(places: Sequence[tuple[int, int, int]], size: int) -> tuple[slice, slice]:
    """The rows and columns that hold all patches."""
    tops, lefts, _ = zip(*places, strict=True)
    return slice(min(tops), max(tops) + size), slice(min(lefts), max(lefts) + size)


def _scaled(
    regions: Sequence[Region], stored: tuple[int, int], shape: tuple[int, int]
) -> Sequence[Region]:
    """Regions of a slice of size `stored` on the same slice resampled to `shape`."""
    if stored == shape:
        return regions
    y, x = shape[0] / stored[0], shape[1] / stored[1]
    return [
        Region(region.label, tuple((px * x, py * y) for px, py in region.contour_px))
        for region in regions
    ]

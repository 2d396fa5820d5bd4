"""A lung-CT phantom in the text-ROI tree of the ILD data set: five tissue patterns, DICOM files.

The patterns follow their description in words (Hansell et al., "Fleischner Society: glossary of
terms for thoracic imaging", Radiology 246, 2008): emphysema is low attenuation without walls,
ground glass a haze through which vessels stay visible, fibrosis a network of walls around dark
cells, micronodules are small round dots. Nothing here is measured on patients: results on it are
phantom results. The trees are the ones that `common.data.ild` reads, with quirks of the real set
(patients with two series in folders of their own, irregular names here and there):

    <directory>/phantom.json                              label, hash and parameters
    <directory>/hospital-<h>/ILD_DB_txtROIs/<patient>/    slices and polygons
    <directory>/hospital-<h>/ILD_DB_volumeROIs/<patient>/ the same slices, label maps
    <directory>/hospital-<h>/ILD_DB_lungMasks/<patient>/  the same slices, lung masks

Each patient has a random stream of its own, keyed by seed, hospital and place in the hospital, so
no patient's files depend on how many others there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from common.data.ild import pixels_inside
from common.data.ild.masks import CODES
from common.data.ild.tree import LUNGS, MASKS, TEXTS
from common.errors import BadInput

REAL_SIZE: Final = 110  # patients: about as many as the published set has
CARD: Final = "phantom.json"

Field = NDArray[np.float64]  # (height, width), in HU unless said otherwise


@dataclass(frozen=True, slots=True)
class Style:
    """How a hospital's images look, and which forms of the patterns it sees."""

    kernel: str  # DICOM ConvolutionKernel
    slice_thickness_mm: float
    blur_px: float
    sharpening: float  # overshoot at edges, 0 = none
    noise_hu: float  # standard deviation in a slice of 1 mm; a thicker one has less by its root
    offset_hu: float  # error of the calibration
    spacing_mm: float  # of pixels
    vessel_hu: float  # contrast of vessels: with or without contrast agent
    coarseness: float  # factor on the lengths of all patterns


@dataclass(frozen=True, slots=True)
class Constants:
    """All that shapes the images besides the parameters: lengths in px, attenuation in HU."""

    version: int = 2  # raised whenever the code below changes what is written

    # Hospitals: hospital h has style h modulo their number.
    usual: Style = Style("STANDARD", 1.0, 0.8, 0.4, 30.0, 0.0, 0.7, 380.0, 1.0)
    styles: tuple[Style, ...] = (
        Style("LUNG", 1.0, 0.6, 0.8, 30.0, -75.0, 0.85, 500.0, 0.8),
        Style("DETAIL", 1.25, 1.3, 0.0, 56.0, -45.0, 0.6, 600.0, 1.0),
        Style("BONE", 1.0, 0.4, 1.4, 90.0, 0.0, 0.75, 250.0, 1.5),
        Style("STANDARD", 2.0, 0.9, 0.4, 17.0, 75.0, 0.8, 200.0, 0.65),
        Style("SOFT", 1.5, 1.4, 0.0, 12.0, 45.0, 0.6, 700.0, 1.3),
    )
    favoured_weight: float = 4.0  # a hospital's favoured pattern, against 1 for each other
    size_decay: float = 0.2  # hospital h has 1 / (1 + size_decay h) of the first one's patients

    # Healthy lung in the chest.
    lung_hu: float = -865.0
    wall_hu: float = 40.0
    grain_px: float = 1.0
    grain_hu: float = 35.0
    vessel_px: float = 4.0

    # Patterns at severity 1.
    hole_px: float = 4.0
    hole_hu: float = -970.0
    haze_px: float = 9.0
    haze_hu: float = 260.0
    network_px: float = 3.2
    network_hu: float = 480.0
    nodule_px: float = 1.4
    nodule_hu: float = 600.0
    nodules_per_px: float = 0.008

    # Differences between patients, and between the regions of one.
    lung_sd_hu: float = 15.0  # depth of inspiration
    texture_sd: float = 0.15  # of the logarithm of all lengths
    severity: tuple[float, float] = (0.45, 1.0)  # range of the patients' means
    severity_sd: float = 0.12
    overlap: float = 0.15  # standard deviation of the severity of a second pattern in a region

    # Regions: a half-window of `reach_px` holds the largest outline.
    radius_px: tuple[float, float] = (30.0, 40.0)
    roughness: float = 0.12
    reach_px: int = 64
    lung: tuple[float, float] = (0.42, 0.47)  # its half axes in the image, as shares of its side

    # Quirks: one in so many patients of a hospital.
    two_series_every: int = 7
    odd_names_every: int = 5

    spacing_sd: float = 0.05  # between patients, of the logarithm
    slice_distance_mm: float = 10.0


CONSTANTS: Final = Constants()


@dataclass(frozen=True, slots=True)
class IldPhantom:
    """The parameters of a phantom: the same ones give the same bytes.

    `shift` scales how much hospitals differ in class mix and in all that `Style` lists; at 0
    they don't, and with `equal_sizes` they also have the same number of patients, give or take
    one. `label_noise` is the chance of each region to be labelled as one of the other patterns.
    Raises BadInput with every parameter out of its range.
    """

    patients: int = 110  # at least one a hospital
    hospitals: int = 5  # 1..1000
    seed: int = 0  # 0 or more
    slices_per_patient: int = 3  # 2..99; one of them is left without a region
    slice_size_px: int = 256  # 224..1024
    shift: float = 1.0  # 0..2
    equal_sizes: bool = False
    label_noise: float = 0.0  # 0..0.05

    def __post_init__(self) -> None:
        bounds = {
            "hospitals": (1, 1000),
            "patients": (self.hospitals, 100_000),
            "seed": (0, 2**63 - 1),
            "slices_per_patient": (2, 99),
            "slice_size_px": (224, 1024),
            "shift": (0, 2),
            "label_noise": (0, 0.05),
        }
        problems = [
            f"{name} must be {low} to {high}; got {getattr(self, name)}"
            for name, (low, high) in bounds.items()
            if not low <= getattr(self, name) <= high
        ]
        if problems:
            raise BadInput(f"ILD phantom: {'; '.join(problems)}.")

    @property
    def label(self) -> Literal["phantom", "scaled phantom"]:
        """What results on it are to be called."""
        return "phantom" if self.patients <= REAL_SIZE else "scaled phantom"

    @property
    def ceiling(self) -> dict[str, float]:
        """The AUROC, by pattern, that a perfect reader of the slices can expect on these labels.

        With the pattern's true share p among K and the chance e of a wrong label, of the regions
        labelled so (a share l = p (1 - e) + (1 - p) e / (K - 1)) the share a = p (1 - e) / l truly
        are, of the others b = p e / (1 - l). A score that equals the truth ranks such a pair
        rightly with probability a (1 - b) and ties with a b + (1 - a) (1 - b): its AUROC is
        (1 + a - b) / 2. Regions count alike here, however many patches they hold.
        """
        mains = [
            pattern
            for hospital, size in enumerate(_hospital_sizes(self))
            for pattern in _main_patterns(self, hospital, size)
        ]
        others, wrong = len(PATTERNS) - 1, self.label_noise
        ceilings = {}
        for pattern in PATTERNS:
            main = mains.count(pattern) / len(mains)
            true = (
                main / 2 + (1 - main) / 2 / others
            )  # half of a patient's regions are the main one
            labelled = true * (1 - wrong) + (1 - true) * wrong / others
            right, left = true * (1 - wrong) / labelled, true * wrong / (1 - labelled)
            ceilings[pattern] = (1 + right - left) / 2
        return ceilings

    @property
    def sha256(self) -> str:
        """The hash over the parameters and the generator's constants."""
        frozen = {"parameters": asdict(self), "constants": asdict(CONSTANTS)}
        return hashlib.sha256(json.dumps(frozen, sort_keys=True).encode()).hexdigest()


def write_ild_phantom(directory: Path, phantom: IldPhantom) -> None:
    """Write the phantom's trees to `directory`: all of them, or nothing.

    Does nothing where `directory` already holds this very phantom.
    Raises BadInput where it holds anything else or can't be written.
    """
    card = {"label": phantom.label, "sha256": phantom.sha256, "parameters": asdict(phantom)}
    text = json.dumps(card, indent=2, sort_keys=True) + "\n"
    if _holds(directory, text):
        return
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise BadInput(f"{directory}: expected an empty or new folder, or this very phantom.")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{directory.name}-", dir=directory.parent
        ) as work:
            trees = Path(work) / "trees"
            for hospital, size in enumerate(_hospital_sizes(phantom)):
                folder = trees / f"hospital-{hospital + 1}"
                for place, pattern in enumerate(_main_patterns(phantom, hospital, size)):
                    _write_patient(folder, phantom, (hospital, place), main_pattern=pattern)
            (trees / CARD).write_text(text)
            trees.rename(directory)
    except OSError as fault:
        if not _holds(directory, text):  # else another process was faster
            raise BadInput(f"{directory}: can't be written ({fault.strerror}).") from fault


def _holds(directory: Path, card: str) -> bool:
    return (directory / CARD).is_file() and (directory / CARD).read_text() == card


def _hospital_sizes(phantom: IldPhantom) -> list[int]:
    """Patients of each hospital: at least one, the rest by largest remainder."""
    decay = 0.0 if phantom.equal_sizes else CONSTANTS.size_decay
    weights = 1 / (1 + decay * np.arange(phantom.hospitals))
    shares = weights / weights.sum() * (phantom.patients - phantom.hospitals)
    sizes = 1 + np.floor(shares).astype(int)
    missing = phantom.patients - sizes.sum()
    sizes[np.argsort(np.floor(shares) - shares, kind="stable")[:missing]] += 1
    return [int(size) for size in sizes]


def _main_patterns(phantom: IldPhantom, hospital: int, count: int) -> list[str]:
    """Each patient's main pattern: always the one furthest behind the hospital's mix."""
    weights = np.ones(len(PATTERNS))
    weights[hospital % len(PATTERNS)] += phantom.shift * (CONSTANTS.favoured_weight - 1)
    given = np.zeros(len(PATTERNS))
    chosen = []
    for place in range(count):
        pattern = int(np.argmax((place + 1) * weights / weights.sum() - given))
        given[pattern] += 1
        chosen.append(list(PATTERNS)[pattern])
    return chosen


# --- images ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Patient:
    """What all slices of one patient share."""

    lung_hu: float
    severity: float
    zoom: float  # factor on all lengths of texture in pixels


@dataclass(frozen=True, slots=True)
class _Lesion:
    """A region of one pattern: a star-shaped outline around a centre."""

    pattern: str
    centre_px: tuple[float, float]  # x, y
    radius_px: float
    phases: tuple[float, ...]  # of the outline's waves

    def outline_px(self, angle: Field) -> Field:
        """The distance of the outline from the centre at each angle."""
        waves = [np.cos((k + 2) * angle + phase) for k, phase in enumerate(self.phases)]
        outline: Field = self.radius_px * (1 + CONSTANTS.roughness * np.mean(waves, axis=0))
        return outline


def _slice_hu(
    rng: Generator, patient: _Patient, style: Style, *, lesions: list[_Lesion], size_px: int
) -> Field:
    """One slice as the hospital shows it."""
    y, x = np.mgrid[:size_px, :size_px] + 0.5
    grain = CONSTANTS.grain_hu * _noise(rng, size_px, CONSTANTS.grain_px)
    ridges = np.exp(-((_noise(rng, size_px, CONSTANTS.vessel_px * patient.zoom) / 0.1) ** 2))
    density = _step(3 * _noise(rng, size_px, 3 * CONSTANTS.vessel_px))
    hu = patient.lung_hu + grain + style.vessel_hu * ridges * density
    scale = patient.zoom * style.coarseness
    for lesion in lesions:
        cx, cy = lesion.centre_px
        reach = CONSTANTS.reach_px
        window = (slice(int(cy) - reach, int(cy) + reach), slice(int(cx) - reach, int(cx) + reach))
        dx, dy = x[window] - cx, y[window] - cy
        inside = _step(lesion.outline_px(np.arctan2(dy, dx)) + 3 - np.hypot(dx, dy))
        severity = np.clip(rng.normal(patient.severity, CONSTANTS.severity_sd), 0.1, 1.0)
        other = list(PATTERNS)[rng.integers(len(PATTERNS))]
        tissue = PATTERNS[lesion.pattern](rng, hu[window], severity, scale)
        overlap = min(abs(rng.normal(0, CONSTANTS.overlap)), 1.0)
        tissue = PATTERNS[other](rng, tissue, overlap, scale)
        hu[window] += inside * (tissue - hu[window])
    hu += _step((_from_middle(size_px) - 1) * size_px / 4) * (CONSTANTS.wall_hu - hu)
    return _scanned(rng, hu, style)


def _from_middle(size_px: int) -> Field:
    """How far each pixel's centre is from the middle; 1 where the lung ends."""
    y, x = np.mgrid[:size_px, :size_px] + 0.5
    half_width, half_height = CONSTANTS.lung
    middle = size_px / 2
    distance: Field = np.hypot(
        (x - middle) / (half_width * size_px), (y - middle) / (half_height * size_px)
    )
    return distance


def _healthy(_rng: Generator, lung: Field, _severity: float, _scale: float) -> Field:
    return lung


def _emphysema(rng: Generator, lung: Field, severity: float, scale: float) -> Field:
    """Dark areas without walls; severity is their share of the area."""
    holes = _noise(rng, len(lung), CONSTANTS.hole_px * scale)
    return lung + _step(4 * (holes - 1.6 + 2 * severity)) * (CONSTANTS.hole_hu - lung)


def _ground_glass(rng: Generator, lung: Field, severity: float, scale: float) -> Field:
    """A haze that adds to what is there, so vessels stay visible."""
    unevenness = _noise(rng, len(lung), CONSTANTS.haze_px * scale)
    return lung + severity * CONSTANTS.haze_hu * (1 + 0.25 * unevenness)


def _fibrosis(rng: Generator, lung: Field, severity: float, scale: float) -> Field:
    """Walls along the zero lines of a random field, around cells of air."""
    walls = np.exp(-((_noise(rng, len(lung), CONSTANTS.network_px * scale) / 0.35) ** 2))
    return lung + severity * CONSTANTS.network_hu * walls


def _micronodules(rng: Generator, lung: Field, severity: float, scale: float) -> Field:
    """Round dots of soft tissue; severity is their number."""
    width_px = CONSTANTS.nodule_px * scale
    dots = rng.random(lung.shape) < CONSTANTS.nodules_per_px * severity
    peaks = 2 * np.pi * width_px**2 * _filtered(dots.astype(float), _gaussian(len(lung), width_px))
    return lung + CONSTANTS.nodule_hu * np.clip(peaks, 0, 1)


PATTERNS: Final[Mapping[str, Callable[[Generator, Field, float, float], Field]]] = MappingProxyType(
    {
        "healthy": _healthy,
        "emphysema": _emphysema,
        "ground_glass": _ground_glass,
        "fibrosis": _fibrosis,
        "micronodules": _micronodules,
    }
)


def _scanned(rng: Generator, hu: Field, style: Style) -> Field:
    """The image after the reconstruction kernel, with noise of the kernel's colour."""
    size_px = len(hu)
    sharpened = 1 + style.sharpening * (1 - _gaussian(size_px, 1.5))
    kernel = _gaussian(size_px, style.blur_px) * sharpened
    noise = _filtered(rng.standard_normal(hu.shape), kernel)
    noise *= style.noise_hu / np.sqrt(style.slice_thickness_mm) / noise.std()
    return _filtered(hu, kernel) + noise + style.offset_hu


def _noise(rng: Generator, size_px: int, sigma_px: float) -> Field:
    """White noise smoothed by a Gaussian, of unit variance."""
    field = _filtered(rng.standard_normal((size_px, size_px)), _gaussian(size_px, sigma_px))
    return field / float(field.std())


def _gaussian(size_px: int, sigma_px: float) -> Field:
    """The transfer function of a Gaussian blur, on the grid of `rfft2`."""
    rows, columns = np.fft.fftfreq(size_px), np.fft.rfftfreq(size_px)
    transfer: Field = np.exp(-2 * (np.pi * sigma_px) ** 2 * (rows[:, None] ** 2 + columns**2))
    return transfer


def _filtered(field: Field, transfer: Field) -> Field:
    filtered: Field = np.fft.irfft2(np.fft.rfft2(field) * transfer, s=field.shape)
    return filtered


def _step(x: Field) -> Field:
    """A soft step from 0 to 1."""
    return 0.5 + 0.5 * np.tanh(x / 2)


# --- files ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Series:
    """One series of a patient; its slices are numbered from 1."""

    folder: str  # in the patient's folder; empty for that folder itself
    digits: int  # four, in the names of its files
    slices: int
    odd_names: bool

    def slice_name(self, number: int) -> str:
        """The file of a slice."""
        return f"CT-{'' if self.odd_names else self.digits}-{number:04d}.dcm"

    @property
    def text_name(self) -> str:
        """The file of the series' polygons."""
        return f"{'Tho' if self.odd_names else 'CT-INSPIRIUM'}-{self.digits}.txt"


def _write_patient(
    hospital_folder: Path, phantom: IldPhantom, key: tuple[int, int], *, main_pattern: str
) -> None:
    """One patient's series in a hospital's three trees; all slices but one have regions."""
    hospital, place = key
    rng = np.random.default_rng((phantom.seed, hospital, place))
    style = _style(phantom, hospital)
    spacing_mm = round(style.spacing_mm * rng.lognormal(0, CONSTANTS.spacing_sd), 6)
    patient = _Patient(
        lung_hu=rng.normal(CONSTANTS.lung_hu, CONSTANTS.lung_sd_hu),
        severity=rng.uniform(*CONSTANTS.severity),
        zoom=rng.lognormal(0, CONSTANTS.texture_sd) * CONSTANTS.usual.spacing_mm / spacing_mm,
    )
    digits = int(rng.integers(1000, 10_000))
    slices, size_px = phantom.slices_per_patient, phantom.slice_size_px
    bare = int(rng.integers(slices))
    patterns = _region_patterns(rng, main_pattern, 2 * (slices - 1))
    pairs = [() if at == bare else (patterns.pop(), patterns.pop()) for at in range(slices)]
    # A stream of its own: other labels move no pixel.
    labels = np.random.default_rng((phantom.seed, hospital, place, 1))
    number = 100_000 * (hospital + 1) + place + 1
    for series in _series(place, digits, slices):
        header = _header(phantom.seed, number, series.digits, style, spacing_mm)
        drawn = []
        for _ in range(series.slices):
            lesions = _lesions(rng, pairs.pop(0), size_px)
            hu = _slice_hu(rng, patient, style, lesions=lesions, size_px=size_px)
            regions = [
                _Region(_label(labels, lesion.pattern, phantom.label_noise), lesion, spacing_mm)
                for lesion in lesions
            ]
            drawn.append((hu, regions))
        _write_series(hospital_folder, Path(str(number), series.folder), series, header, drawn)


def _series(place: int, digits: int, slices: int) -> list[_Series]:
    """A patient's only series, or for some two in folders of their own; some have odd names."""
    odd = place % CONSTANTS.odd_names_every == CONSTANTS.odd_names_every - 1
    if place % CONSTANTS.two_series_every != CONSTANTS.two_series_every - 1:
        return [_Series("", digits, slices, odd)]
    second = 1000 + (digits + 4321) % 9000
    first_half = (slices + 1) // 2
    return [
        _Series(f"CT-series-{digits}", digits, first_half, odd),
        _Series(f"CT-series-{second}", second, slices - first_half, odd),
    ]


def _label(rng: Generator, pattern: str, noise: float) -> str:
    """The pattern's name, or with probability `noise` that of another one."""
    wrong, others = rng.random() < noise, [name for name in PATTERNS if name != pattern]
    other = others[rng.integers(len(others))]
    return other if wrong else pattern


class _Region:
    """A lesion's outline as the annotator drew it: a polygon in mm from the image's corner."""

    def __init__(self, label: str, lesion: _Lesion, spacing_mm: float) -> None:
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        outline_px = lesion.outline_px(angle)
        x_px = lesion.centre_px[0] + outline_px * np.cos(angle)
        y_px = lesion.centre_px[1] + outline_px * np.sin(angle)
        self.label = label
        self.contour_mm = np.round(np.stack([x_px, y_px], axis=1) * spacing_mm, 2)  # (24, 2)

    def lines(self, slice_number: int) -> list[str]:
        """The region as the text states it."""
        return [
            f"label: {self.label}",
            "localization: diffuse",
            f"slice_number: {slice_number}",
            f"nb_points_on_contour: {len(self.contour_mm)}",
            *(f"{x:.2f} {y:.2f}" for x, y in self.contour_mm),
        ]


def _write_series(
    hospital_folder: Path,
    below: Path,
    series: _Series,
    header: Dataset,
    drawn: list[tuple[Field, list[_Region]]],
) -> None:
    """A series three times: with polygons, with label maps, with lung masks."""
    texts, maps, lungs = (hospital_folder / tree / below for tree in (TEXTS, MASKS, LUNGS))
    for folder in (texts, maps / "roi_mask", lungs / "lung_mask"):
        folder.mkdir(parents=True)
    spacing_mm = float(header.PixelSpacing[0])
    lines = [
        f"Study: {header.StudyInstanceUID}",
        f"Series: {header.SeriesInstanceUID}",
        f"SpacingX: {spacing_mm}",
        f"SpacingY: {spacing_mm}",
        f"SpacingZ: {CONSTANTS.slice_distance_mm}",
    ]
    for number, (hu, regions) in enumerate(drawn, start=1):
        name, ending = series.slice_name(number), f"{series.digits}_{number}.dcm"
        _write_slice(texts / name, header, hu, slice_number=number)
        for folder in (maps, lungs):
            _same_file(texts / name, folder / name)
        lung = np.where(_from_middle(len(hu)) < 1, 255, 0).astype(np.uint8)
        _write_mask(lungs / "lung_mask" / f"lung_mask_{ending}", header, lung)
        if not regions:
            continue
        codes = np.zeros(hu.shape, np.uint8)
        for region in regions:
            contour_px = [(x / spacing_mm, y / spacing_mm) for x, y in region.contour_mm.tolist()]
            codes[pixels_inside(contour_px, hu.shape)] = CODES.index(region.label)
            lines += region.lines(number)
        _write_mask(maps / "roi_mask" / f"roi_mask_{ending}", header, codes)
    (texts / series.text_name).write_text("\n".join(lines) + "\n")


def _same_file(path: Path, other: Path) -> None:
    """The same bytes under another name, without writing them again where links are known."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def _style(phantom: IldPhantom, hospital: int) -> Style:
    """The usual style at shift 0, the hospital's own at shift 1."""
    usual, own = CONSTANTS.usual, CONSTANTS.styles[hospital % len(CONSTANTS.styles)]

    def moved(start: float, end: float, least: float = 0.0) -> float:
        return max(least, start + phantom.shift * (end - start))

    return Style(
        kernel=own.kernel if phantom.shift else usual.kernel,
        slice_thickness_mm=moved(usual.slice_thickness_mm, own.slice_thickness_mm, least=0.5),
        blur_px=moved(usual.blur_px, own.blur_px),
        sharpening=moved(usual.sharpening, own.sharpening),
        noise_hu=moved(usual.noise_hu, own.noise_hu),
        offset_hu=moved(usual.offset_hu, own.offset_hu, least=-1000.0),
        spacing_mm=moved(usual.spacing_mm, own.spacing_mm, least=0.3),
        vessel_hu=moved(usual.vessel_hu, own.vessel_hu),
        coarseness=moved(usual.coarseness, own.coarseness, least=0.3),
    )


def _region_patterns(rng: Generator, main_pattern: str, count: int) -> list[str]:
    """Half of the regions show the main pattern, the others two more, in random order."""
    others = rng.permutation([name for name in PATTERNS if name != main_pattern])
    cycle = (main_pattern, others[0], main_pattern, others[1], main_pattern, others[0])
    return [str(name) for name in rng.permutation(np.resize(cycle, count))]


def _lesions(rng: Generator, patterns: tuple[str, ...], size_px: int) -> list[_Lesion]:
    """The first region in the upper, the second in the lower half of the lung."""
    lesions = []
    for pattern, height in zip(patterns, (0.29, 0.71), strict=False):
        x, y = np.array([0.5, height]) * size_px + rng.uniform(-0.03, 0.03, 2) * size_px
        radius = rng.uniform(*CONSTANTS.radius_px)
        lesions.append(_Lesion(pattern, (x, y), radius, tuple(rng.uniform(0, 2 * np.pi, 3))))
    return lesions


def _header(seed: int, number: int, series: int, style: Style, spacing_mm: float) -> Dataset:
    """What all slices of a series say about themselves (DICOM PS3.3 A.3, CT image)."""
    header = Dataset()
    header.SOPClassUID = CTImageStorage
    header.StudyDate, header.StudyTime = "20000101", "120000"
    header.AccessionNumber = header.ReferringPhysicianName = header.PatientBirthDate = ""
    header.Modality = "CT"
    header.Manufacturer = "FEDWARD PHANTOM"
    header.PatientName = f"Phantom^Number {number}"
    header.PatientID = f"PHANTOM-{number}"
    header.PatientSex = "O"
    header.SliceThickness, header.KVP = style.slice_thickness_mm, 120
    header.ConvolutionKernel = style.kernel
    header.StudyInstanceUID = _uid(seed, number, "study")
    header.SeriesInstanceUID = _uid(seed, number, "series", series)
    header.FrameOfReferenceUID = _uid(seed, number, "frame of reference")
    header.StudyID, header.SeriesNumber = "1", 1
    header.PositionReferenceIndicator = ""
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.PixelSpacing = [spacing_mm, spacing_mm]
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
    header.PixelRepresentation = 0
    header.RescaleIntercept, header.RescaleSlope = -1024, 1
    header.RescaleType = "HU"
    return header


def _write_slice(path: Path, header: Dataset, hu: Field, *, slice_number: int) -> None:
    """One slice: the series' header, its place, and its pixels as scanners store them."""
    image = deepcopy(header)
    image.SOPInstanceUID = _uid(header.SeriesInstanceUID, slice_number)
    image.InstanceNumber = slice_number
    image.SliceLocation = slice_number * CONSTANTS.slice_distance_mm
    image.ImagePositionPatient = [0, 0, image.SliceLocation]
    _save(path, image, np.clip(np.rint(hu - image.RescaleIntercept), 0, 4095).astype("<u2"))


def _write_mask(path: Path, header: Dataset, codes: NDArray[np.uint8]) -> None:
    """A mask of one slice, as an image of codes (a secondary capture, DICOM PS3.3 A.8.1)."""
    image = deepcopy(header)
    for keyword in ("RescaleIntercept", "RescaleSlope", "RescaleType", "KVP", "ConvolutionKernel"):
        delattr(image, keyword)
    image.SOPClassUID, image.Modality = SecondaryCaptureImageStorage, "OT"
    image.ImageType, image.ConversionType = ["DERIVED", "PRIMARY"], "WSD"
    image.SeriesInstanceUID = _uid(header.SeriesInstanceUID, "masks", path.parent.name)
    image.SOPInstanceUID = _uid(image.SeriesInstanceUID, path.name)
    image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
    _save(path, image, codes)


def _save(path: Path, image: Dataset, stored: NDArray[np.generic]) -> None:
    image.Rows, image.Columns = stored.shape
    image.PixelData = stored.tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # Set here, or pydicom writes its own version and the bytes change with it.
    image.file_meta.ImplementationClassUID = _uid("implementation")
    image.file_meta.ImplementationVersionName = f"ILD PHANTOM {CONSTANTS.version}"
    image.save_as(path, enforce_file_format=True)


def _uid(*parts: object) -> UID:
    """A UID (DICOM PS3.5 B.2, from a UUID's 128 bits) that depends on nothing but `parts`."""
    digest = hashlib.sha256(repr((CONSTANTS.version, *parts)).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")

"""A knee-MRI phantom in the tree of the MRNet data set: three planes an exam, three labels.

Bien et al., "Deep-learning-assisted diagnosis for knee magnetic resonance imaging", PLoS Med. 15
(2018): format, sequences and frequencies of the labels. Anatomy and lesions follow textbook
descriptions in words: a torn ligament is interrupted and bright, a torn meniscus has a bright cleft
that reaches its surface, fluid and marrow oedema are bright where fat is suppressed. Nothing here
is measured on patients: results on it are phantom results. The trees are those that
`common.data.mrnet` reads:

    <directory>/phantom.json                       label, hash, parameters, ceiling of AUROC
    <directory>/hospital-<h>/MRNet-v1.0/           one tree a hospital

One knee in three dimensions is painted, layer by layer, on the slices of each plane. Each exam has
random streams of its own, keyed by seed, hospital, part, kind and place, so no exam's volumes
depend on how many others there are; only its number in the files' names does.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from common.config import MRNET_LABELS
from common.data.mrnet import PARTS, PLANES, TREE
from common.errors import BadInput

REAL_SIZE: Final = 1250  # exams: as many as are published
SIZE_PX: Final = 256  # of a slice, as published
CARD: Final = "phantom.json"

Grid = NDArray[np.floating]
Volume = NDArray[np.uint8]  # (slices, 256, 256)
Counts = NDArray[np.int_]
Weights = NDArray[np.float64]
Point = tuple[float, float, float]  # x (to the medial side), y (to the back), z (down), in mm
Signal = tuple[float, float, float]  # in the sequence of each plane, 1 is the brightest


@dataclass(frozen=True, slots=True)
class Style:
    """How a hospital's images look."""

    noise: float  # standard deviation in each of the two channels; falls with the field strength
    fat: float  # signal that fat suppression leaves of subcutaneous fat
    shading: float  # logarithm of the coil's sensitivity, centre against edge
    gain: float
    slice_mm: float  # distance between slices
    blur: float  # share of a pixel that goes to its neighbours, 0..0.25


@dataclass(frozen=True, slots=True)
class Tissues:
    """Signals in axial proton density with fat suppression, coronal T1, sagittal T2 with it."""

    fat: Signal = (0.28, 0.86, 0.24)
    skin: Signal = (0.45, 0.50, 0.40)
    muscle: Signal = (0.40, 0.38, 0.28)
    marrow: Signal = (0.22, 0.76, 0.17)
    fibre: Signal = (0.08, 0.10, 0.06)  # ligament, tendon, meniscus, cortex of bone
    cartilage: Signal = (0.60, 0.46, 0.48)
    synovium: Signal = (0.40, 0.60, 0.34)
    fluid: Signal = (0.95, 0.30, 1.0)
    oedema: Signal = (0.78, 0.42, 0.75)


@dataclass(frozen=True, slots=True)
class Frequencies:
    """How often a part of the set shows each kind of exam; Bien et al., table 1."""

    normal: int
    other: int  # abnormal without a tear
    acl: int
    both: int
    meniscus: int


@dataclass(frozen=True, slots=True)
class Constants:
    """All that shapes the exams besides the parameters and the code: lengths in mm."""

    version: int = 1  # raised whenever the code below changes what is written

    # 913 of 1,130 abnormal, 208 with a torn ACL, 397 with a torn meniscus, 125 with both; and
    # 95, 54, 52 and 31 of 120.
    train: Frequencies = Frequencies(217, 433, 83, 125, 272)
    valid: Frequencies = Frequencies(25, 20, 23, 31, 21)

    # Hospitals: hospital h has style h modulo their number.
    usual: Style = Style(noise=0.04, fat=0.28, shading=0.25, gain=1.0, slice_mm=3.5, blur=0.08)
    styles: tuple[Style, ...] = (
        Style(noise=0.02, fat=0.20, shading=0.45, gain=1.1, slice_mm=3.0, blur=0.03),  # 3 T
        Style(noise=0.07, fat=0.30, shading=0.10, gain=0.9, slice_mm=4.5, blur=0.12),  # 1.5 T, old
        Style(noise=0.03, fat=0.45, shading=0.30, gain=1.0, slice_mm=3.5, blur=0.06),
        Style(noise=0.05, fat=0.25, shading=0.60, gain=0.8, slice_mm=2.4, blur=0.10),
        Style(noise=0.09, fat=0.38, shading=0.20, gain=1.2, slice_mm=5.0, blur=0.18),  # open, low
    )
    style_range: tuple[Style, Style] = (  # whatever the shift
        Style(noise=0.01, fat=0.05, shading=0.0, gain=0.5, slice_mm=1.7, blur=0.0),
        Style(noise=0.20, fat=0.70, shading=1.0, gain=1.5, slice_mm=6.1, blur=0.25),
    )
    favoured_weight: float = 3.0  # of a hospital's favoured kind of exam, against 1
    size_decay: float = 0.2  # hospital h has 1 / (1 + size_decay h) of the first one's exams

    tissues: Tissues = Tissues()
    field_of_view: float = 142.0
    extent: float = 104.0  # from the first slice to the last
    slices: tuple[int, int] = (17, 61)  # least and most, as published
    edge: float = 1.6  # width of the border between two tissues

    # Differences between exams.
    scale_sd: float = 0.05  # of the logarithm of all lengths
    place_sd: float = 1.2  # of each part of the anatomy
    position_sd: float = 4.0  # of the knee in the scanner
    gain_sd: float = 0.12  # of the logarithm
    thickness_sd: float = 0.12  # of the logarithm of the distance between slices
    texture: float = 0.06

    # Lesions: a severity of 1 is textbook, of 0 none.
    severity: tuple[float, float] = (0.45, 1.0)
    subtle: float = 0.08  # share of the exams whose lesions hardly show ...
    subtlety: float = 0.12  # ... since their severities are this share of what they would be
    resting_fluid: tuple[float, float] = (0.8, 2.5)  # half thickness in the suprapatellar recess
    effusion: tuple[float, float] = (4.0, 9.0)
    cleft: float = 2.0  # half width of a meniscal tear
    # By kind of exam: of an effusion, bone bruises, other marrow oedema, a cartilage defect.
    chances: tuple[tuple[float, float, float, float], ...] = (
        (0.0, 0.0, 0.0, 0.0),
        (0.7, 0.0, 0.5, 0.4),
        (0.8, 0.8, 0.2, 0.1),
        (0.8, 0.8, 0.2, 0.2),
        (0.5, 0.0, 0.3, 0.3),
    )


CONSTANTS: Final = Constants()


@dataclass(frozen=True, slots=True)
class MrnetPhantom:
    """The parameters of a phantom: the same ones give the same bytes.

    `shift` scales how much hospitals differ in their mix of exams and in all that `Style` lists;
    at 0 they don't, and with `equal_sizes` they also have the same number of exams, give or take
    one. `label_noise` is the chance of each label to be wrong, independently.
    Raises BadInput with every parameter out of its range.
    """

    exams: int = 1250  # at least two a hospital
    hospitals: int = 5  # 1..1000
    seed: int = 0  # 0 or more
    shift: float = 1.0  # 0..2
    equal_sizes: bool = False
    label_noise: float = 0.0  # 0..0.05

    def __post_init__(self) -> None:
        bounds = {
            "hospitals": (1, 1000),
            "exams": (2 * self.hospitals, 100_000),
            "seed": (0, 2**63 - 1),
            "shift": (0, 2),
            "label_noise": (0, 0.05),
        }
        problems = [
            f"{name} must be {low} to {high}; got {getattr(self, name)}"
            for name, (low, high) in bounds.items()
            if not low <= getattr(self, name) <= high
        ]
        if problems:
            raise BadInput(f"MRNet phantom: {'; '.join(problems)}.")

    @property
    def label(self) -> Literal["phantom", "scaled phantom"]:
        """What results on it are to be called."""
        return "phantom" if self.exams <= REAL_SIZE else "scaled phantom"

    @property
    def sha256(self) -> str:
        """The hash over the parameters and the generator's constants."""
        frozen = {"parameters": asdict(self), "constants": asdict(CONSTANTS)}
        return hashlib.sha256(json.dumps(frozen, sort_keys=True).encode()).hexdigest()

    @property
    def ceiling(self) -> dict[str, float]:
        """The AUROC, by label, that a perfect reader of the volumes can expect on these labels.

        With the label's true share p and the chance e of a flip, of the exams labelled 1 the share
        a = p (1 - e) / (p (1 - e) + (1 - p) e) is truly positive, of those labelled 0 the share
        b = p e / (p e + (1 - p) (1 - e)). A score that equals the truth ranks such a pair rightly
        with probability a (1 - b) and ties with a b + (1 - a) (1 - b), so its AUROC is
        (1 + a - b) / 2; no score does better, since the flips depend on nothing else.
        """
        wrong = self.label_noise
        kinds = _kinds_by_part(self).sum(axis=0)
        ceilings = {}
        for label in MRNET_LABELS:
            positive = float(kinds[[label in labels for labels in KINDS.values()]].sum())
            share = positive / self.exams
            labelled = share * (1 - wrong) + (1 - share) * wrong
            if not 0 < labelled < 1:
                continue  # no AUROC with one class
            right, left = share * (1 - wrong) / labelled, share * wrong / (1 - labelled)
            ceilings[label] = (1 + right - left) / 2
        return ceilings


# Each kind of exam with the labels that are true of it, in the order of the published ids.
KINDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "normal": (),
        "other": ("abnormal",),
        "acl": ("abnormal", "acl"),
        "both": ("abnormal", "acl", "meniscus"),
        "meniscus": ("abnormal", "meniscus"),
    }
)


def write_mrnet_phantom(directory: Path, phantom: MrnetPhantom) -> None:
    """Write the phantom's trees to `directory`: all of them, or nothing.

    Does nothing where `directory` already holds this very phantom.
    Raises BadInput where it holds anything else or can't be written.
    """
    card = {
        "label": phantom.label,
        "sha256": phantom.sha256,
        "parameters": asdict(phantom),
        "auroc_ceiling": phantom.ceiling,
    }
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
            for exam in exams_of(phantom):
                _write_exam(trees, phantom, exam)
            (trees / CARD).write_text(text)
            trees.rename(directory)
    except OSError as fault:
        if not _holds(directory, text):  # else another process was faster
            raise BadInput(f"{directory}: can't be written ({fault.strerror}).") from fault


def _holds(directory: Path, card: str) -> bool:
    return (directory / CARD).is_file() and (directory / CARD).read_text() == card


# --- which exams ----------------------------------------------------------------------------------


_PURPOSES: Final = ("findings", "knee", "lesions", "label noise", *PLANES)


@dataclass(frozen=True, slots=True)
class Exam:
    """One exam; all but `number` is the key of its random streams."""

    hospital: int
    part: int  # index into PARTS
    kind: int  # index into KINDS
    place: int  # among its hospital's exams of the same part and kind
    number: int

    def stream(self, seed: int, purpose: str) -> Generator:
        """A random stream of this exam alone; each purpose has its own."""
        key = (self.hospital, self.part, self.kind, self.place, _PURPOSES.index(purpose))
        return np.random.default_rng((seed, *key))


def exams_of(phantom: MrnetPhantom) -> Iterator[Exam]:
    """All exams: train before valid, by hospital, in the order of kinds, as the real ids are."""
    number = 0
    for part, table in enumerate(_tables(phantom)):
        for hospital, row in enumerate(table):
            for kind, count in enumerate(row):
                for place in range(count):
                    yield Exam(hospital, part, kind, place, number)
                    number += 1


def _tables(phantom: MrnetPhantom) -> list[Counts]:
    """Exams by hospital and kind, (hospitals, kinds), for each part."""
    decay = 0.0 if phantom.equal_sizes else CONSTANTS.size_decay
    hospitals = np.arange(phantom.hospitals)
    spare = phantom.exams - 2 * phantom.hospitals
    sizes = 2 + _shared_out(spare, 1 / (1 + decay * hospitals))
    kinds = _kinds_by_part(phantom)  # (parts, kinds)
    size_of_part = _table(np.outer(sizes, kinds.sum(axis=1)), sizes, kinds.sum(axis=1))
    mix = np.ones((phantom.hospitals, len(KINDS)))
    mix[hospitals, hospitals % len(KINDS)] += phantom.shift * (CONSTANTS.favoured_weight - 1)
    return [_table(mix, size_of_part[:, part], kinds[part]) for part in range(len(PARTS))]


def _kinds_by_part(phantom: MrnetPhantom) -> Counts:
    """Exams by part and kind, (parts, kinds), in the real shares."""
    real = np.array([astuple(CONSTANTS.train), astuple(CONSTANTS.valid)])
    sizes = _shared_out(phantom.exams, real.sum(axis=1))
    return np.array([_shared_out(size, row) for size, row in zip(sizes, real, strict=True)])


def _shared_out(total: int, weights: Weights | Counts) -> Counts:
    """Whole numbers that add up to `total` in the proportion of `weights`, by largest remainder."""
    shares = weights / weights.sum() * total
    counts: Counts = np.floor(shares).astype(int)
    counts[np.argsort(counts - shares, kind="stable")[: total - counts.sum()]] += 1
    return counts


def _table(weights: Weights | Counts, rows: Counts, columns: Counts) -> Counts:
    """Whole numbers with exactly these sums, near `weights` fitted to them.

    Iterative proportional fitting (Deming and Stephan, 1940), then the largest remainders up.
    """
    fitted = weights.astype(float)
    for _ in range(50):
        fitted *= columns / np.maximum(fitted.sum(axis=0), 1e-300)
        fitted *= (rows / np.maximum(fitted.sum(axis=1), 1e-300))[:, None]
    counts = np.floor(fitted + 1e-6).astype(int)
    rest = fitted - counts
    while True:
        open_cells = np.outer(rows > counts.sum(axis=1), columns > counts.sum(axis=0))
        if not open_cells.any():
            return counts
        cell = np.unravel_index(np.argmax(np.where(open_cells, rest, -np.inf)), rest.shape)
        counts[cell] += 1
        rest[cell] -= 1


# --- anatomy: layers in three dimensions --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layer:
    """One thing painted over what is there: how much of each place it fills, 0..1."""

    signal: Signal
    centre: Point
    reach: Point  # it is nowhere further from the centre along an axis
    share: Callable[[Grid, Grid, Grid], Grid]  # of x, y and z in mm, broadcast


def _filled(depth_mm: Grid) -> Grid:
    """A soft border: 1 well inside, 0 well outside."""
    share: Grid = np.clip(0.5 + depth_mm / CONSTANTS.edge, 0, 1)
    return share


def _ellipsoid(signal: Signal, centre: Point, radii: Point, strength: float = 1.0) -> _Layer:
    (cx, cy, cz), (rx, ry, rz) = centre, radii
    least = min(radii)

    def share(x: Grid, y: Grid, z: Grid) -> Grid:
        radius = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2
        # The gradient of this depth is right on the surface of a sphere, and near it on others.
        return strength * _filled(least / 2 * (1 - radius))

    margin = CONSTANTS.edge
    return _Layer(signal, centre, (rx + margin, ry + margin, rz + margin), share)


def _haze(signal: Signal, centre: Point, radii: Point, strength: float) -> _Layer:
    """A Gaussian cloud; `radii` are its standard deviations."""
    (cx, cy, cz), (rx, ry, rz) = centre, radii

    def share(x: Grid, y: Grid, z: Grid) -> Grid:
        along = [((v - c) / r) ** 2 for v, c, r in ((x, cx, rx), (y, cy, ry), (z, cz, rz))]
        gx, gy, gz = (np.exp(-a / 2) for a in along)
        return strength * gx * gy * gz

    return _Layer(signal, centre, (2.5 * rx, 2.5 * ry, 2.5 * rz), share)


def _band(signal: Signal, start: Point, end: Point, radius: float, strength: float = 1.0) -> _Layer:
    """A ligament, tendon or vessel: all places within `radius` of a straight line."""
    (ax, ay, az), (bx, by, bz) = start, end
    ux, uy, uz = bx - ax, by - ay, bz - az
    length2 = ux * ux + uy * uy + uz * uz

    def share(x: Grid, y: Grid, z: Grid) -> Grid:
        dx, dy, dz = x - ax, y - ay, z - az
        t = np.clip((dx * ux + dy * uy + dz * uz) / length2, 0, 1)
        distance = np.sqrt((dx - t * ux) ** 2 + (dy - t * uy) ** 2 + (dz - t * uz) ** 2)
        return strength * _filled(radius - distance)

    centre = ((ax + bx) / 2, (ay + by) / 2, (az + bz) / 2)
    margin = radius + CONSTANTS.edge
    reach = (abs(ux) / 2 + margin, abs(uy) / 2 + margin, abs(uz) / 2 + margin)
    return _Layer(signal, centre, reach, share)


def _ripples(
    signal: Signal, centre: Point, radii: Point, *, wave: float, strength: float
) -> _Layer:
    """Frayed fibres: wavy sheets across an ellipsoid, `wave` apart."""
    body = _ellipsoid(signal, centre, radii, strength)
    _, cy, cz = centre

    def share(x: Grid, y: Grid, z: Grid) -> Grid:
        along = (y - cy) - (z - cz) + 1.5 * np.sin(x / 3) + 2 * np.sin((y + z) / 4)
        sheets: Grid = np.clip(0.5 + np.cos(2 * np.pi / wave / np.sqrt(2) * along), 0, 1)
        return body.share(x, y, z) * sheets

    return replace(body, share=share)


def _column(
    signal: Signal,
    centre: Point,
    radii: tuple[float, float],
    *,
    length: float,
    narrowing: float = 0.0,
) -> _Layer:
    """An upright column from `centre` down (up where `length` is negative), and how it narrows."""
    (cx, cy, cz), (rx, ry) = centre, radii
    sign = 1.0 if length > 0 else -1.0

    def share(x: Grid, y: Grid, z: Grid) -> Grid:
        below = sign * (z - cz)
        width = 1 - narrowing * (1 - np.exp(-np.maximum(below, 0) / 35)) if narrowing else 1.0
        radius = ((x - cx) / (rx * width)) ** 2 + ((y - cy) / (ry * width)) ** 2
        return _filled(min(rx, ry) / 2 * (1 - radius)) * _filled(below)

    middle = cz + length / 2
    margin = CONSTANTS.edge
    return _Layer(
        signal, (cx, cy, middle), (rx + margin, ry + margin, abs(length) / 2 + margin), share
    )


@dataclass(frozen=True, slots=True)
class _Meniscus:
    """A ring open to the notch whose section is a wedge, thick at its rim."""

    centre: Point
    radii: tuple[float, float]
    side: float  # 1 medial, -1 lateral
    inner: float = 0.45  # radius of its free edge, as a share
    height: float = 4.8  # half of it, at the rim

    def parts(self, x: Grid, y: Grid, z: Grid) -> tuple[Grid, Grid, Grid, Grid]:
        """The wedge's share, and the place in it: radius, height, share of the way to the back."""
        (cx, cy, cz), (rx, ry) = self.centre, self.radii
        u, v, w = self.side * (x - cx) / rx, (y - cy) / ry, z - cz
        radius = np.sqrt(u**2 + v**2)
        half = self.height * (radius - self.inner) / (1 - self.inner)
        depth = np.minimum(np.minimum((1 - radius) * rx, half - abs(w)), (u + 0.5) * rx)
        return _filled(depth), radius, w, v

    def layer(self, signal: Signal) -> _Layer:
        return self._layer(signal, lambda x, y, z: self.parts(x, y, z)[0])

    def cleft(self, signal: Signal, *, severity: float, slope: float, behind: float) -> _Layer:
        """A tear of the part that lies further back than `behind` (-1..1), from rim to surface."""

        def share(x: Grid, y: Grid, z: Grid) -> Grid:
            wedge, radius, height, v = self.parts(x, y, z)
            plane = height - slope * (radius - 0.8) * self.radii[0]
            there = _filled((v - behind) * self.radii[1])
            return severity * wedge * there * _filled(CONSTANTS.cleft - abs(plane))

        return self._layer(signal, share)

    def rim(self, v: float) -> Point:
        """The place on the rim that lies at `v` (-1..1) of the way to the back."""
        (cx, cy, cz), (rx, ry) = self.centre, self.radii
        return (cx + self.side * rx * float(np.sqrt(1 - v * v)), cy + v * ry, cz)

    def _layer(self, signal: Signal, share: Callable[[Grid, Grid, Grid], Grid]) -> _Layer:
        (rx, ry), margin = self.radii, CONSTANTS.edge
        return _Layer(signal, self.centre, (rx + margin, ry + margin, self.height + margin), share)


@dataclass(frozen=True, slots=True)
class Findings:
    """What an exam shows: severities 0..1, the fluid's half thickness in mm."""

    fluid: float
    acl: float = 0.0
    meniscus: float = 0.0
    bruises: float = 0.0  # of the bones that collide when the ACL tears
    marrow: float = 0.0  # oedema elsewhere in the bones
    cartilage: float = 0.0


def findings_of(phantom: MrnetPhantom, exam: Exam) -> Findings:
    """What this exam shows, by the chances of its kind."""
    rng = exam.stream(phantom.seed, "findings")
    kind = list(KINDS)[exam.kind]
    effusion, bruises, marrow, cartilage = (rng.random(4) < CONSTANTS.chances[exam.kind]).tolist()
    if kind == "other" and not (effusion or marrow or cartilage):
        effusion = True  # else nothing would be abnormal
    visible = CONSTANTS.subtlety if rng.random() < CONSTANTS.subtle else 1.0
    resting, swollen = rng.uniform(*CONSTANTS.resting_fluid), rng.uniform(*CONSTANTS.effusion)
    severities = (visible * rng.uniform(*CONSTANTS.severity, 5)).tolist()
    torn = "acl" in KINDS[kind], "meniscus" in KINDS[kind]
    acl, meniscus, *others = (
        severity if there else 0.0
        for severity, there in zip(severities, (*torn, bruises, marrow, cartilage), strict=True)
    )
    fluid = resting + visible * (swollen - resting) if effusion else resting
    return Findings(fluid, acl, meniscus, *others)


def _knee(
    rng: Generator, lesion_rng: Generator, findings: Findings, tissues: Tissues
) -> list[_Layer]:
    """A knee with these findings, from the skin inwards; the middle of the joint is at 0.

    `rng` draws the anatomy, which is the same whatever the findings.
    """

    def near(x: float, y: float, z: float) -> Point:
        dx, dy, dz = rng.normal(0, CONSTANTS.place_sd, 3).tolist()
        return (x + dx, y + dy, z + dz)

    t = tissues
    under_skin = rng.uniform(5, 12)
    layers = [
        _column(t.skin, (0, 3, -200), (65, 63), length=400),
        _column(t.fat, (0, 3, -200), (63.5, 61.5), length=400),
        _column(t.muscle, (0, 5, -200), (63.5 - under_skin, 58 - under_skin), length=400),
        _haze(t.fat, near(0, 36, 0), (14, 8, 60), 0.9),  # behind the joint
        _haze(t.fat, near(0, -36, 0), (30, 10, 35), 0.9),
        *(
            _haze(t.fat, near(x, y, z), (5, 7, 25), 0.6)  # between muscles
            for x, y, z in [(30, 25, -50), (-30, 25, -50), (24, 30, 50), (-22, 30, 50)]
        ),
        _band(t.fluid, near(-3, 38, -90), near(-1, 36, 90), 3.2, 0.8),  # popliteal vessels
        _band(t.fibre, near(4, 37, -90), near(4, 35, 90), 2.5),
        _ellipsoid(t.synovium, (0, 0, 0), (46, 38, 26), 0.8),
        _ellipsoid(t.fat, near(0, -32, 3), (19, 13, 16)),  # Hoffa's pad
    ]
    fluid = findings.fluid
    recess = near(0, -31, -50)
    layers += [
        _ellipsoid(t.fluid, recess, (24, fluid, 12 + 1.5 * fluid)),
        # Beside the patella, where it is seen from the front and from above.
        *(_ellipsoid(t.fluid, near(s * 30, -26, -20), (fluid, 9, 14)) for s in (1, -1)),
        _band(t.fibre, near(0, -47, -42), near(0, -44, -90), 3.5),  # quadriceps
        _band(t.fibre, near(0, -48, -6), near(0, -32, 40), 3.0),  # patellar tendon
        _band(t.fibre, near(45, 0, -25), near(42, 0, 40), 1.6),  # collateral ligaments
        _band(t.fibre, near(-44, 4, -22), near(-38, 14, 18), 1.8),
    ]
    medial, lateral = near(23, 4, -23), near(-23, 3, -23)
    trochlea, shaft, flare = near(0, -12, -28), near(0, -6, -30), near(0, -3, -42)
    plateau, fibula, patella = near(0, 2, 4.5), near(-35, 21, 16), near(0, -46, -24)

    def bones(signal: Signal, inset: float) -> list[_Layer]:
        i = inset
        return [
            _column(signal, shaft, (17 - i, 15 - i), length=-120),
            _ellipsoid(signal, flare, (33 - i, 23 - i, 27 - i)),
            _ellipsoid(signal, medial, (19 - i, 29 - i, 20 - i)),
            _ellipsoid(signal, lateral, (18 - i, 27 - i, 20 - i)),
            _ellipsoid(signal, trochlea, (26 - i, 15 - i, 20 - i)),
            _column(signal, _moved(plateau, i), (39 - i, 27 - i), length=120, narrowing=0.5),
            _column(signal, _moved(fibula, i), (8 - i, 8 - i), length=100),
            _ellipsoid(signal, patella, (21 - i, 9 - i, 20 - i)),
        ]

    layers += [
        _ellipsoid(t.cartilage, medial, (21.5, 31.5, 22.5)),
        _ellipsoid(t.cartilage, lateral, (20.5, 29.5, 22.5)),
        _ellipsoid(t.cartilage, trochlea, (28, 17.5, 22)),
        _ellipsoid(t.cartilage, (patella[0], patella[1] + 2.5, patella[2]), (20, 10, 18)),
        _column(t.cartilage, _moved(plateau, -2.5), (37, 25), length=6),
        *bones(t.fibre, 0.0),  # what stays of it is the cortex
        *bones(t.marrow, 1.4),
    ]
    menisci = [
        _Meniscus(near(22, 3, 0.5), (20, 24), side=1.0),
        _Meniscus(near(-22, 3, 0.5), (19, 21), side=-1.0),
    ]
    layers += [meniscus.layer(t.fibre) for meniscus in menisci]
    # Wear inside the menisci that no surface reaches is seen in healthy knees too.
    layers += [
        _haze(t.oedema, m.rim(v), (4, 4, 2), rng.uniform(0, 0.35))
        for m in menisci
        for v in (-0.6, 0.7)
    ]
    femoral, tibial = near(-5, 17, -22), near(2, -10, 4)
    layers += [
        _ellipsoid(t.synovium, (0, 12, -10), (8, 22, 15)),  # the notch
        _band(t.fibre, near(5, -2, -15), near(1, 26, 6), 4.5),  # PCL
        _band(t.fibre, femoral, tibial, 4.2),  # ACL
        _haze(t.oedema, _between(femoral, tibial, 0.5), (5, 8, 7), rng.uniform(0, 0.25)),
    ]
    return [*layers, *_lesions(lesion_rng, findings, t, (femoral, tibial), menisci)]


def _moved(point: Point, down: float) -> Point:
    return (point[0], point[1], point[2] + down)


def _between(start: Point, end: Point, share: float) -> Point:
    ax, ay, az = start
    bx, by, bz = end
    return (ax + share * (bx - ax), ay + share * (by - ay), az + share * (bz - az))


def _lesions(
    rng: Generator,
    findings: Findings,
    tissues: Tissues,
    acl: tuple[Point, Point],
    menisci: Sequence[_Meniscus],
) -> list[_Layer]:
    """All lesions but the effusion, painted last."""
    layers: list[_Layer] = []
    t = tissues

    def within(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    if findings.acl:
        femoral, tibial = acl
        gap = _between(femoral, tibial, within(0.35, 0.6))
        sunk = _between(tibial, (0, 6, 0), within(0.5, 0.8))
        layers += [
            _haze(t.oedema, gap, (10, 12, 11), findings.acl),
            _ellipsoid(t.fluid, gap, (11, 14, 12), findings.acl),
            _ripples(t.fibre, gap, (11, 14, 12), wave=9.0, strength=findings.acl),
            _band(t.fibre, tibial, sunk, 3.0, 0.8 * findings.acl),  # the lower stump
        ]
    if findings.bruises:
        layers += [
            _haze(
                t.oedema,
                (within(-27, -21), within(-12, -2), within(-16, -10)),
                (7, 8, 6),
                findings.bruises,
            ),
            _haze(
                t.oedema,
                (within(-28, -20), within(12, 18), within(12, 18)),
                (8, 6, 7),
                findings.bruises,
            ),
        ]
    if findings.meniscus:
        torn = menisci[int(rng.random() < 0.3)]
        behind = within(-0.4, 0.1)
        layers += [
            torn.cleft(t.fluid, severity=findings.meniscus, slope=within(-0.4, 0.4), behind=behind),
            _haze(t.oedema, torn.rim(within(0.3, 0.8)), (8, 8, 6), 0.8 * findings.meniscus),
            _ellipsoid(t.fluid, torn.rim(within(0.3, 0.8)), (8, 8, 5.5), findings.meniscus),
        ]
    if findings.marrow:
        places = [(23, 0, -22), (-23, 0, -22), (22, 0, 16), (-20, -6, 16), (0, -46, -24)]
        x, y, z = places[int(rng.integers(len(places)))]
        layers.append(
            _haze(
                t.oedema,
                (x + within(-5, 5), y + within(-6, 6), z + within(-4, 4)),
                (9, 8, 8),
                findings.marrow,
            )
        )
    if findings.cartilage:
        x, y, z = [(23, 2, -2), (-23, 2, -2), (0, -36, -24)][int(rng.integers(3))]
        place = (x + within(-4, 4), y + within(-3, 3), z)
        layers += [
            _ellipsoid(t.fluid, place, (7, 7, 4), findings.cartilage),
            _haze(t.oedema, place, (8, 8, 8), 0.6 * findings.cartilage),
        ]
    return layers


# --- images -------------------------------------------------------------------------------------

_GRID_PX: Final = SIZE_PX // 2  # what is painted; the last step doubles it, as scanners do
_AXES: Final = {"axial": "zyx", "coronal": "yzx", "sagittal": "xzy"}  # slices, rows, columns


def volumes(phantom: MrnetPhantom, exam: Exam, findings: Findings) -> dict[str, Volume]:
    """The volume of each plane of this exam's knee, were these its findings."""
    style = _style(phantom, exam.hospital)
    rng = exam.stream(phantom.seed, "knee")
    side, scale = int(rng.choice((1, -1))), rng.lognormal(0, CONSTANTS.scale_sd)
    layers = _knee(rng, exam.stream(phantom.seed, "lesions"), findings, _tissues(style))
    return {
        plane: _volume(
            exam.stream(phantom.seed, plane), plane, layers, style, side=side, scale=scale
        )
        for plane in PLANES
    }


def _style(phantom: MrnetPhantom, hospital: int) -> Style:
    """The usual style at shift 0, the hospital's own at shift 1."""
    usual, own = CONSTANTS.usual, CONSTANTS.styles[hospital % len(CONSTANTS.styles)]
    low, high = CONSTANTS.style_range

    def moved(name: str) -> float:
        start, end = getattr(usual, name), getattr(own, name)
        value = start + phantom.shift * (end - start)
        return float(np.clip(value, getattr(low, name), getattr(high, name)))

    return Style(**{name: moved(name) for name in asdict(usual)})


def _tissues(style: Style) -> Tissues:
    """The signals under the hospital's fat suppression, which marrow shares; T1 has none."""
    usual = CONSTANTS.tissues
    factor = style.fat / CONSTANTS.usual.fat

    def suppressed(signal: Signal) -> Signal:
        axial, coronal, sagittal = signal
        return (factor * axial, coronal, factor * sagittal)

    return replace(usual, fat=suppressed(usual.fat), marrow=suppressed(usual.marrow))


def _volume(
    rng: Generator,
    plane: str,
    layers: Sequence[_Layer],
    style: Style,
    *,
    side: int,
    scale: float,
) -> Volume:
    """One plane of a knee as the hospital shows it; `side` -1 mirrors it."""
    axes = _AXES[plane]
    distance = style.slice_mm * rng.lognormal(0, CONSTANTS.thickness_sd)
    count = int(np.clip(round(CONSTANTS.extent / distance), *CONSTANTS.slices))
    through = np.linspace(-0.5, 0.5, count) * CONSTANTS.extent
    within = ((np.arange(_GRID_PX) + 0.5) / _GRID_PX - 0.5) * CONSTANTS.field_of_view
    lines = {
        axis: ((places + rng.normal(0, CONSTANTS.position_sd)) / scale).astype(np.float32)
        for axis, places in zip(axes, (through, within, within), strict=True)
    }
    lines["x"] *= side
    values = np.zeros((count, _GRID_PX, _GRID_PX), np.float32)
    for layer in layers:
        _paint(values, axes, lines, layer, layer.signal[PLANES.index(plane)])
    return _scanned(rng, values, style)


def _paint(
    values: Grid, axes: str, lines: Mapping[str, Grid], layer: _Layer, signal: float
) -> None:
    """Paint one layer over `values`, whose dimensions lie along `axes`."""
    window, places = {}, {}
    for axis, centre, reach in zip("xyz", layer.centre, layer.reach, strict=True):
        near = np.flatnonzero(abs(lines[axis] - centre) <= reach)
        if not near.size:
            return
        window[axis] = slice(near[0], near[-1] + 1)
        shape = [-1 if axis == dimension else 1 for dimension in axes]
        places[axis] = lines[axis][window[axis]].reshape(shape)
    there = values[tuple(window[axis] for axis in axes)]
    there += layer.share(places["x"], places["y"], places["z"]) * (signal - there)


def _scanned(rng: Generator, values: Grid, style: Style) -> Volume:
    """What the scanner makes of the signal: texture, the coil's shading, blur, Rician noise."""
    gain = 255 * style.gain * rng.lognormal(0, CONSTANTS.gain_sd)
    across = np.linspace(-1, 1, _GRID_PX, dtype=np.float32)
    shade = [
        np.exp(style.shading * (tilt * across - across**2 / 2)).astype(np.float32)
        for tilt in rng.normal(0, 0.5, 2).tolist()
    ]
    coil = np.float32(gain) * np.outer(shade[0], shade[1])
    tile_px = _GRID_PX + 64
    texture = 1 + np.float32(CONSTANTS.texture) * rng.standard_normal(
        (tile_px, tile_px), np.float32
    )
    noise = rng.standard_normal((2, 2 * tile_px, 2 * tile_px), np.float32)
    noise *= np.float32(255 * style.noise)
    power = noise[1] ** 2
    picture = np.empty((len(values), SIZE_PX, SIZE_PX), np.uint8)
    for index, places in enumerate(rng.integers(64, size=(len(values), 6)).tolist()):
        # Windows of one tile, each at a place of its own: as good as new numbers, and faster.
        a, b, c, d, e, f = places
        seen = values[index] * coil * texture[a : a + _GRID_PX, b : b + _GRID_PX]
        seen = _doubled(_doubled(seen, style.blur).T, style.blur).T
        seen += noise[0, c : c + SIZE_PX, d : d + SIZE_PX]
        seen *= seen
        seen += power[e : e + SIZE_PX, f : f + SIZE_PX]
        picture[index] = np.minimum(np.sqrt(seen, out=seen), 255, out=seen)
    return picture


def _doubled(rows: Grid, blur: float) -> Grid:
    """Twice as many rows by linear interpolation, each blurred by its neighbours first."""
    around = np.concatenate([rows[:1], rows, rows[-1:]])
    around[1:-1] = (1 - 2 * blur) * rows + blur * (around[:-2] + around[2:])
    quarter = 0.25 * around
    three = around[1:-1] - quarter[1:-1]
    doubled = np.empty((2 * len(rows), rows.shape[1]), np.float32)
    np.add(three, quarter[:-2], out=doubled[0::2])
    np.add(three, quarter[2:], out=doubled[1::2])
    return doubled


# --- files --------------------------------------------------------------------------------------


def _write_exam(trees: Path, phantom: MrnetPhantom, exam: Exam) -> None:
    """One exam's three volumes, and its line in each label file of its part."""
    part, _ = PARTS[exam.part]
    tree = trees / f"hospital-{exam.hospital + 1}" / TREE
    name = f"{exam.number:04d}"
    for plane, volume in volumes(phantom, exam, findings_of(phantom, exam)).items():
        folder = tree / part / plane
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", volume)
    for label, value in zip(MRNET_LABELS, _written_labels(phantom, exam), strict=True):
        with (tree / f"{part}-{label}.csv").open("a", newline="") as file:
            file.write(f"{name},{int(value)}\n")


def _written_labels(phantom: MrnetPhantom, exam: Exam) -> tuple[bool, ...]:
    """The labels that the files give, right or wrong."""
    true = list(KINDS.values())[exam.kind]
    wrong = exam.stream(phantom.seed, "label noise").random(len(MRNET_LABELS)) < phantom.label_noise
    return tuple(
        (label in true) != flipped for label, flipped in zip(MRNET_LABELS, wrong, strict=True)
    )

"""Divides the patients of one data set among simulated hospitals and measures how these differ.

Label and quantity skew by Dirichlet shares as in Li et al., "Federated learning on non-IID data
silos", ICDE 2022 (arXiv:2102.02079), but of whole patients. A division depends on the patients,
the rule and the seed, not on the order of the data.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from common.config import SITE_NAME_RULE, PartitionConfig
from common.data.dicom import read_facts
from common.data.source import Image, Label, Reader, Source
from common.errors import BadData, BadInput
from simulations.skew import (
    between_sites,
    class_distance,
    class_distance_by_chance,
    exclusive,
    gini,
)

UNKNOWN = "unknown"  # the origin of patients whose data don't tell it


@dataclass(frozen=True, slots=True)
class Look:
    """What a scanner leaves in a patient's images, averaged over them."""

    brightness: float  # mean, in the file's own unit
    noise: float  # standard deviation, see `noise_of`


@dataclass(frozen=True, slots=True)
class Patient:
    """What a rule may know of a patient."""

    key: str  # as the data name them
    images: int  # at least 1
    positives: Mapping[str, int]  # images of each class (multi-label: with each label)
    origin: str | None = None  # the column's value or the manufacturer, for rules that go by it
    look: Look | None = None  # for the rule `feature`


@dataclass(frozen=True, slots=True)
class Skew:
    """How much the sites differ; the functions of `simulations.skew` say how it is counted."""

    class_distance: float
    class_distance_by_chance: float
    size_gini: float
    brightness_between_sites: float | None  # None where it wasn't measured
    noise_between_sites: float | None


@dataclass(frozen=True, slots=True)
class Site:
    """What came out for one site."""

    patients: int
    images: int
    positives: Mapping[str, int]  # images of each class (multi-label: with each label)


@dataclass(frozen=True, slots=True)
class Partition:
    """Who is where, and what came of it."""

    config: PartitionConfig
    sites: Mapping[str, tuple[str, ...]]  # patients as the data name them, sorted, by site
    realised: Mapping[str, Site]
    skew: Skew

    def table(self) -> str:
        """The sites as text for people, one a line, and the skew below; names no patient."""
        classes = list(next(iter(self.realised.values())).positives)
        rows = [["site", "patients", "images", *classes]]
        for name, site in self.realised.items():
            counts = [site.patients, site.images, *(site.positives[c] for c in classes)]
            rows.append([name, *map(str, counts)])
        totals = [sum(int(row[at]) for row in rows[1:]) for at in range(1, len(rows[0]))]
        rows.append(["all", *map(str, totals)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
        skew = self.skew
        lines.append(
            f"Class mix: {skew.class_distance:.2f} from the pooled one on average (total "
            f"variation; {skew.class_distance_by_chance:.2f} by chance)."
        )
        lines.append(f"Sizes: Gini coefficient {skew.size_gini:.2f}.")
        if skew.brightness_between_sites is not None and skew.noise_between_sites is not None:
            lines.append(
                f"Of the variance in rank, {skew.brightness_between_sites:.0%} in brightness and "
                f"{skew.noise_between_sites:.0%} in noise lie between sites."
            )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Rule, counts and skew, to be kept with a run. No patient is named: rule and seed tell."""
        return {
            "rule": self.config.model_dump(mode="json"),
            "sites": {name: asdict(site) for name, site in self.realised.items()},
            "skew": asdict(self.skew),
        }


def gather(
    sources: Sequence[Source], reader: Reader, *, classes: Sequence[str], config: PartitionConfig
) -> tuple[Patient, ...]:
    """What the rule needs to know of each patient, in the order of their names.

    Where `Source.detail` is the label of the one image in it, nothing is decoded for labels; other
    sources (ILD: patches) are decoded once here, and once more for the cache. The rule `feature`
    decodes every source, `manufacturer` reads one header of each. A patient of several origins
    gets that of most sources. Patients without an image (ILD: without a patch) are left out.

    Raises:
        BadData: a file can't be read; BadInput: the data don't have what the rule goes by.
    """
    if config.column is not None:
        _check_column(sources, config.column)
    by_patient: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        by_patient[source.patient].append(source)
    patients = (
        _patient(key, own, reader, classes, config) for key, own in sorted(by_patient.items())
    )
    return tuple(patient for patient in patients if patient.images)


def partition(patients: Sequence[Patient], config: PartitionConfig) -> Partition:
    """Divide `patients` among sites, each whole, at least `config.min_patients` to a site.

    | rule                   | sites                                                             |
    |------------------------|-------------------------------------------------------------------|
    | column, manufacturer   | one for each value, named after it; patients without: `unknown`   |
    | labels                 | each class goes to the sites by Dirichlet shares of its own       |
    | quantity               | all classes go to the sites by the same Dirichlet shares          |
    | feature                | equal parts of the patients in the order of noise and brightness  |

    By labels, a patient counts as the class that most of their images have; where images may have
    several labels, as the rarest one that any of their images has. A site that falls short of
    `min_patients` is filled up from the largest, which softens the skew.

    Args:
        patients: with keys that differ and the same classes, in any order.

    Raises:
        BadInput: too few patients, or a value's patients are too few.
    """
    ordered = sorted(patients, key=lambda patient: patient.key)
    if config.by in ("column", "manufacturer"):
        names, site_of = _by_origin(ordered, config)
    else:
        if len(ordered) < config.sites * config.min_patients:
            raise BadInput(
                f"simulation.partition: {len(ordered)} patients can't give {config.sites} sites "
                f"{config.min_patients} each; lower simulation.partition.sites or "
                "simulation.partition.min_patients."
            )
        digits = len(str(config.sites))
        names = [f"site-{number:0{digits}}" for number in range(1, config.sites + 1)]
        site_of = _by_look(ordered, config) if config.by == "feature" else _drawn(ordered, config)
    of_site = {
        name: [ordered[row] for row in np.flatnonzero(site_of == index)]
        for index, name in enumerate(names)
    }
    return Partition(
        config=config,
        sites={name: tuple(patient.key for patient in own) for name, own in of_site.items()},
        realised={name: _site(own) for name, own in of_site.items()},
        skew=_skew(ordered, site_of, seed=config.seed),
    )


def noise_of(pixels: NDArray[np.floating]) -> float:
    """Standard deviation of the noise in an image (height, width), 0 where a side is below 3 px.

    Immerkær, "Fast noise variance estimation", Comput. Vis. Image Underst. 64 (1996): the mean
    absolute difference of two Laplacians, which hardly sees edges and slopes.

    >>> round(noise_of(np.random.default_rng(0).normal(100, 5, (256, 256))), 1)
    5.0
    """
    if min(pixels.shape) < 3:
        return 0.0
    seen = pixels.astype(np.float64)
    for _ in range(2):  # [1, -2, 1] down the rows, then along the columns
        seen = (seen[:-2] - 2 * seen[1:-1] + seen[2:]).T
    return float(np.abs(seen).mean() * math.sqrt(math.pi / 2) / 6)


def _check_column(sources: Sequence[Source], column: str) -> None:
    known = {name for source in sources for name in source.groups}
    known |= {"site" for source in sources if source.site is not None}
    if column not in known:
        there = f"; they have {', '.join(sorted(known))}" if known else ""
        raise BadInput(
            f"simulation.partition.column: the data have no column {column!r:.80}{there}. Name one "
            "of theirs or divide by another rule."
        )


def _patient(
    key: str,
    sources: Sequence[Source],
    reader: Reader,
    classes: Sequence[str],
    config: PartitionConfig,
) -> Patient:
    labels: list[Label] = []
    looks: list[Look] = []
    for source in sources:
        known = _label_of(source, len(classes))
        images = reader.decode(source) if known is None or config.by == "feature" else ()
        labels += [image.label for image in images] if known is None else [known]
        looks += [_look(image) for image in images] if config.by == "feature" else []
    counts = np.zeros(len(classes), dtype=np.int64)
    for label in labels:
        counts[[label] if isinstance(label, int) else np.flatnonzero(label)] += 1
    return Patient(
        key=key,
        images=len(labels),
        positives=dict(zip(classes, counts.tolist(), strict=True)),
        origin=_origin(sources, config),
        look=_mean(looks) if looks else None,
    )


def _label_of(source: Source, classes: int) -> Label | None:
    """The label of the one image in `source`, where its detail is a label."""
    detail = source.detail
    if isinstance(detail, int):
        return detail
    if isinstance(detail, tuple) and len(detail) == classes and all(x in (0, 1) for x in detail):
        return detail
    return None


def _look(image: Image) -> Look:
    """Of the middle slice of each plane: one is enough to know a scanner by."""
    slices = [plane[len(plane) // 2] for plane in image.planes]
    return _mean([Look(float(s.mean(dtype=np.float64)), noise_of(s)) for s in slices])


def _mean(looks: Sequence[Look]) -> Look:
    return Look(fmean(look.brightness for look in looks), fmean(look.noise for look in looks))


def _origin(sources: Sequence[Source], config: PartitionConfig) -> str | None:
    """What most of a patient's sources say, the first by name of several; None for other rules."""
    if config.by == "column":
        said = [_cell(source, config.column or "") for source in sources]
    elif config.by == "manufacturer":
        said = [_manufacturer(source) for source in sources]
    else:
        return None
    votes = Counter(value for value in said if value)
    return min(votes, key=lambda value: (-votes[value], value), default=UNKNOWN)


def _cell(source: Source, column: str) -> str:
    return source.site or "" if column == "site" else source.groups.get(column, "")


def _manufacturer(source: Source) -> str:
    """As one file's header says, in small letters: vendors write themselves in several ways."""
    try:
        return " ".join(read_facts(source.path).manufacturer.lower().split())
    except BadData as problem:
        raise BadInput(
            f"{problem} simulation.partition.by: manufacturer needs DICOM files; choose another "
            "rule for others."
        ) from None


def _by_origin(
    patients: Sequence[Patient], config: PartitionConfig
) -> tuple[list[str], NDArray[np.int64]]:
    """A site for each origin: their names, and the index of each patient's."""
    what = f"the column {config.column!r:.80}" if config.by == "column" else "the manufacturers"
    sizes = Counter(patient.origin or UNKNOWN for patient in patients)
    values = sorted(sizes)
    small = [size for size in sizes.values() if size < config.min_patients]
    if small or not values:
        # Values go unnamed: nobody knows what is in a column.
        raise BadInput(
            f"simulation.partition: by {what}, {len(small)} of {len(values)} sites would have "
            f"fewer than {config.min_patients} patients (the smallest {min(small, default=0)}); "
            "lower simulation.partition.min_patients, merge values or divide by another rule."
        )
    names = [_site_name(value) or f"site-{number}" for number, value in enumerate(values, 1)]
    if len(set(names)) != len(names):
        raise BadInput(
            f"simulation.partition: by {what}, two values give the same site name, which is "
            f"{SITE_NAME_RULE}; make them differ in letters and digits."
        )
    index_of = {value: index for index, value in enumerate(values)}
    return names, np.array([index_of[patient.origin or UNKNOWN] for patient in patients])


def _site_name(value: str) -> str:
    """The value as a site's name, without accents; empty where nothing of it is left."""
    plain = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).lstrip("_.-")[:64].rstrip("-")


def _by_look(patients: Sequence[Patient], config: PartitionConfig) -> NDArray[np.int64]:
    """Equal parts along the first principal component of the ranks by brightness and by noise.

    Of two variables of the same variance that is their sum, or their difference where they run
    against each other. Ranks don't care for units or outliers.
    """
    looks = _looks(patients)
    if looks is None:
        raise ValueError("the rule `feature` needs the look of every patient")
    brightness, noise = rankdata(looks, axis=1)
    along = noise + np.copysign(1, np.cov(noise, brightness)[0, 1]) * brightness
    site_of = np.empty(len(patients), dtype=np.int64)
    for index, rows in enumerate(np.array_split(np.argsort(along, kind="stable"), config.sites)):
        site_of[rows] = index
    return site_of


def _looks(patients: Sequence[Patient]) -> NDArray[np.float64] | None:
    """(2, n): each patient's brightness and noise, if all are known."""
    looks = [patient.look for patient in patients if patient.look is not None]
    if len(looks) != len(patients):
        return None
    return np.array([[look.brightness for look in looks], [look.noise for look in looks]])


def _drawn(patients: Sequence[Patient], config: PartitionConfig) -> NDArray[np.int64]:
    """Each patient's site by Dirichlet shares, of each stratum (labels) or of all (quantity)."""
    random = np.random.default_rng(config.seed)
    strata = _strata(patients)
    order = np.lexsort((random.permutation(len(patients)), strata))
    together = strata if config.by == "labels" else np.zeros_like(strata)
    sizes = np.stack(
        [
            _whole(random.dirichlet(np.full(config.sites, config.alpha)) * total, random.random())
            for total in np.bincount(together)
        ]
    )  # (strata that are drawn together, sites)
    sizes = _filled_up(sizes, config.min_patients)
    sizes = sizes[:, random.permutation(config.sites)]  # where sizes tie, places count above
    site_of = np.empty(len(patients), dtype=np.int64)
    for index, row in enumerate(sizes):
        site_of[order[together[order] == index]] = _dealt(row, random)
    return site_of


def _strata(patients: Sequence[Patient]) -> NDArray[np.int64]:
    """(n,) the class that each patient counts as; one past the last where they have none."""
    counts, images = _counts(patients)
    has = counts > 0  # (n, K)
    rarest_first = np.argsort(has.sum(axis=0), kind="stable")
    rarest = rarest_first[has[:, rarest_first].argmax(axis=1)]
    chosen = counts.argmax(axis=1) if exclusive(counts, images) else rarest
    return np.asarray(np.where(has.any(axis=1), chosen, counts.shape[1]))


def _whole(sizes: NDArray[np.float64], offset: float) -> NDArray[np.int64]:
    """Whole sizes with the same sum, each within 1 of what was wanted, and that in expectation.

    Systematic sampling: `offset`, uniform in [0, 1), is where the counting begins.
    """
    ends = np.floor(np.cumsum(sizes) + offset).astype(np.int64)
    ends[-1] = round(sizes.sum())
    whole: NDArray[np.int64] = np.diff(np.minimum(ends, ends[-1]), prepend=0)
    return whole


def _filled_up(sizes: NDArray[np.int64], at_least: int) -> NDArray[np.int64]:
    """Sizes (strata, sites) of which each site has enough: one by one from the largest site's
    most frequent stratum to the smallest site."""
    sizes = sizes.copy()
    while (of_site := sizes.sum(axis=0)).min() < at_least:
        largest = of_site.argmax()
        stratum = sizes[:, largest].argmax()
        sizes[stratum, largest] -= 1
        sizes[stratum, of_site.argmin()] += 1
    return sizes


def _dealt(sizes: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """(sum of sizes,) sites in an order in which each comes up evenly, as often as its size."""
    site = np.repeat(np.arange(len(sizes)), sizes)
    turns = [(np.arange(size) + random.random()) / size for size in sizes]
    return np.asarray(site[np.argsort(np.concatenate(turns), kind="stable")])


def _site(patients: Sequence[Patient]) -> Site:
    return Site(
        patients=len(patients),
        images=sum(patient.images for patient in patients),
        positives={
            name: sum(patient.positives[name] for patient in patients)
            for name in patients[0].positives
        },
    )


def _skew(patients: Sequence[Patient], site_of: NDArray[np.int64], *, seed: int) -> Skew:
    counts, images = _counts(patients)
    looks = _looks(patients)
    return Skew(
        class_distance=class_distance(counts, images, site_of),
        class_distance_by_chance=class_distance_by_chance(counts, images, site_of, seed=seed),
        size_gini=gini(np.bincount(site_of)),
        brightness_between_sites=None if looks is None else between_sites(looks[0], site_of),
        noise_between_sites=None if looks is None else between_sites(looks[1], site_of),
    )


def _counts(patients: Sequence[Patient]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n, K) images of each class and (n,) images of each patient."""
    classes = patients[0].positives
    counts = np.array([[patient.positives[name] for name in classes] for patient in patients])
    return counts, np.array([patient.images for patient in patients])

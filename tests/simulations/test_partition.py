"""Dividing patients among simulated hospitals: every rule's promise, and what it is told by."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from common.config import SITE_NAME, PartitionConfig
from common.data.source import Image, Source
from common.errors import BadInput
from simulations.partition import Look, Partition, Patient, gather, noise_of, partition

CLASSES = ("dark", "grey", "bright")
SECRET = "Ann-4711"  # a patient, who must be in no message
RULES = ("column", "labels", "quantity", "feature", "manufacturer")


def config(by: str, **said: object) -> PartitionConfig:
    """Rules as a study writes them."""
    content = {"by": by, "column": "ward" if by == "column" else None, "min_patients": 1, **said}
    return PartitionConfig.model_validate(content)


def cohort(count: int, *, seed: int = 0, multi_label: bool = False, most: int = 3) -> list[Patient]:
    """Patients of random classes, origins and looks, with one to `most` images each."""
    dice = np.random.default_rng(seed)
    patients = []
    for number in range(count):
        images = int(dice.integers(1, most + 1))
        if multi_label:
            positives = dice.binomial(images, [0.8, 0.2, 0.4])
        else:
            positives = images * (np.arange(3) == dice.choice(3, p=[0.5, 0.3, 0.2]))
        patients.append(
            Patient(
                key=f"p{number}",
                images=images,
                positives=dict(zip(CLASSES, positives.tolist(), strict=True)),
                origin=f"ward {dice.integers(2)}" if number > 1 else f"ward {number}",
                look=Look(*dice.normal(size=2).tolist()),
            )
        )
    return patients


def keys(parts: Partition) -> list[str]:
    """All patients of all sites."""
    return [key for own in parts.sites.values() for key in own]


def refused(patients: Sequence[Patient], rule: PartitionConfig) -> str:
    """The sentence with which a division is refused."""
    with pytest.raises(BadInput) as caught:
        partition(patients, rule)
    assert SECRET not in str(caught.value)
    return str(caught.value)


@settings(deadline=None, max_examples=60)
@given(
    by=st.sampled_from(RULES),
    count=st.integers(2, 120),
    sites=st.integers(1, 12),
    alpha=st.sampled_from([1e-12, 0.01, 0.3, 1.0, 1000.0]),
    minimum=st.integers(1, 8),
    seed=st.integers(0, 1000),
    multi_label=st.booleans(),
)
def test_every_patient_is_at_one_site_and_every_site_has_enough(
    by: str, count: int, sites: int, alpha: float, minimum: int, seed: int, multi_label: bool
) -> None:
    """Whatever the rule; what can't be is refused; the order of the data changes nothing."""
    patients = cohort(count, seed=seed, multi_label=multi_label)
    rule = config(by, sites=sites, alpha=alpha, min_patients=minimum, seed=seed)
    try:
        parts = partition(patients, rule)
    except BadInput:
        if by in ("column", "manufacturer"):
            assert min(sum(p.origin == f"ward {w}" for p in patients) for w in "01") < minimum
        else:
            assert count < sites * minimum
        return
    assert sorted(keys(parts)) == sorted(patient.key for patient in patients)
    assert min(map(len, parts.sites.values())) >= minimum
    assert len(parts.sites) == (2 if by in ("column", "manufacturer") else sites)
    assert list(parts.sites) == sorted(parts.sites)
    assert all(re.fullmatch(SITE_NAME, name) for name in parts.sites)
    shuffled = random.Random(seed).sample(patients, count)
    assert partition(shuffled, rule) == parts


@pytest.mark.parametrize("by", ["labels", "quantity"])
def test_another_seed_is_another_division(by: str) -> None:
    """And the same seed the same one."""
    patients = cohort(100)
    assert partition(patients, config(by, seed=1)) == partition(patients, config(by, seed=1))
    assert partition(patients, config(by, seed=1)).sites != partition(patients, config(by)).sites


def mean_skew(
    by: str, alpha: float, *, multi_label: bool = False, minimum: int = 1
) -> tuple[float, float, float]:
    """Class distance, that by chance and the sizes' Gini coefficient, over six seeds.

    There are 600 patients with an image each, and five sites.
    """
    found = []
    for seed in range(6):
        patients = cohort(600, seed=seed, multi_label=multi_label, most=1)
        rule = config(by, alpha=alpha, seed=seed, min_patients=minimum)
        skew = partition(patients, rule).skew
        found.append((skew.class_distance, skew.class_distance_by_chance, skew.size_gini))
    distance, by_chance, size_gini = np.mean(found, axis=0).tolist()
    return distance, by_chance, size_gini


def test_small_alpha_skews_the_classes_and_large_alpha_does_not() -> None:
    """From sites of one class to a mix that is nearer to all than chance gives."""
    extreme, strong, none = (mean_skew("labels", alpha) for alpha in (0.01, 0.5, 1000))
    assert extreme[0] > 1.2 * strong[0] > 5 * none[0]
    assert none[0] < 0.5 * none[1]
    assert none[2] < 0.05


def test_several_labels_are_skewed_by_the_rarest() -> None:
    """A label that few have goes to few sites."""
    skewed, near = (mean_skew("labels", alpha, multi_label=True) for alpha in (0.05, 1000))
    assert skewed[0] > 3 * near[0]
    patients = [
        Patient(f"{kind}{number}", 2, positives)
        for kind, positives, count in (
            ("common", {"a": 2, "b": 0}, 60),
            ("rare", {"a": 2, "b": 1}, 20),
            ("none", {"a": 0, "b": 0}, 20),
        )
        for number in range(count)
    ]
    places = set()
    for seed in range(6):
        parts = partition(patients, config("labels", alpha=1e-12, sites=4, seed=seed))
        at = [
            [sum(key.startswith(kind) for key in own) for own in parts.sites.values()]
            for kind in ("common", "rare", "none")
        ]
        # Each kind is at one site, but for those that fill up another.
        assert all(sum(counts) - max(counts) <= 3 for counts in at)
        places.add(tuple(map(np.argmax, at)))
    assert {len(set(place)) for place in places} >= {2, 3}  # a draw for each kind


def test_quantity_skews_sizes_and_leaves_the_classes() -> None:
    """Small alpha: one site has most patients, in the mix of all, as near as whole ones allow."""
    skewed, even = (mean_skew("quantity", alpha, minimum=20) for alpha in (0.1, 1000))
    assert skewed[2] > 0.5
    assert even[2] < 0.03
    for distance, by_chance, _ in (skewed, even):
        assert distance < 0.5 * by_chance


def test_shares_are_met_in_expectation() -> None:
    """Rounding to whole patients prefers no site, even where a class has fewer than sites."""
    patients = [Patient(f"p{n}", 1, {"a": n % 2, "b": 1 - n % 2}) for n in range(6)]
    sizes = np.zeros(4)
    for seed in range(300):
        parts = partition(patients, config("labels", sites=4, alpha=1000, seed=seed))
        sizes += [len(own) for own in parts.sites.values()]
    assert np.abs(sizes / 300 - 6 / 4).max() < 0.12


def test_rounding_of_many_small_classes_does_not_add_up() -> None:
    """Eight classes of three patients at four sites: no site goes without."""
    patients = [Patient(f"p{n}", 1, {str(k): int(n % 8 == k) for k in range(8)}) for n in range(24)]
    skews = [partition(patients, config("labels", sites=4, alpha=1000, seed=n)) for n in range(20)]
    assert np.mean([parts.skew.size_gini for parts in skews]) < 0.2


def test_a_small_site_gets_anybody() -> None:
    """By quantity, whoever is at a site of one patient is left to chance."""
    patients = [Patient(f"p{n}", 1, {"a": n % 2, "b": 1 - n % 2}) for n in range(20)]
    alone = {
        int(own[0][1:]) % 2
        for seed in range(12)
        for own in partition(
            patients, config("quantity", sites=3, alpha=1e-12, seed=seed)
        ).sites.values()
        if len(own) == 1
    }
    assert alone == {0, 1}


def test_a_site_is_filled_up_from_the_largest() -> None:
    """The smallest gets what is missing, not more."""
    patients = [replace(patient, origin=None) for patient in cohort(50)]
    parts = partition(patients, config("quantity", alpha=1e-12, sites=5, min_patients=4))
    assert sorted(map(len, parts.sites.values())) == [4, 4, 4, 4, 34]


def test_like_looks_share_a_site() -> None:
    """Two scanners that differ in noise and brightness, and outliers: each gets its own site."""
    dice = np.random.default_rng(0)
    for sign in (1, -1):  # bright scanners noisy, or dark ones
        patients = [
            Patient(f"{n}", 1, {"a": 1}, look=Look(*(scanner * np.array([sign, 1]) * 9 + noise)))
            for n, scanner, noise in zip(
                range(40), np.arange(40) % 2, dice.normal(size=(40, 2)), strict=True
            )
        ]
        patients[0] = replace(patients[0], look=Look(-1e9 * sign, -1e9))
        parts = partition(patients, config("feature", sites=2))
        assert {frozenset(int(key) % 2 for key in own) for own in parts.sites.values()} == {
            frozenset({0}),
            frozenset({1}),
        }
        assert parts.skew.noise_between_sites == pytest.approx(0.75, abs=0.02)
        assert parts.skew.brightness_between_sites == pytest.approx(0.75, abs=0.02)


def test_units_of_a_look_do_not_matter() -> None:
    """Nor does any other change that leaves the patients' order."""
    patients = cohort(40)
    looks = [patient.look or Look(0, 0) for patient in patients]
    stretched = [
        replace(patient, look=Look(1e4 * look.brightness, float(np.exp(look.noise))))
        for patient, look in zip(patients, looks, strict=True)
    ]
    rule = config("feature", sites=4)
    assert partition(stretched, rule) == partition(patients, rule)


def test_equal_looks_are_still_divided() -> None:
    """Without anything to tell patients by, sites are equal parts."""
    patients = [Patient(f"{n}", 1, {"a": 1}, look=Look(1.0, 1.0)) for n in range(7)]
    parts = partition(patients, config("feature", sites=3))
    assert sorted(map(len, parts.sites.values())) == [2, 2, 3]
    assert parts.skew.noise_between_sites == 0


def of_origins(*origins: str | None) -> list[Patient]:
    """One patient of each origin."""
    return [Patient(f"{SECRET}-{n}", 1, {"a": 1}, origin=o) for n, o in enumerate(origins)]


def test_sites_are_named_after_their_value() -> None:
    """As folders can be; who has no value is at `unknown`; what has no Latin letter is counted."""
    parts = partition(
        of_origins("Zürich / West", "GE (2)", "東京", None, "x" * 70), config("column")
    )
    assert set(parts.sites) == {"Zurich-West", "GE-2", "site-5", "unknown", "x" * 64}


def test_values_of_one_name_are_refused() -> None:
    """Two hospitals would become one."""
    said = refused(of_origins("St. Mary", "St./Mary", "St-Mary"), config("column"))
    assert "two values give the same site name" in said


def test_too_few_patients_are_refused_with_what_to_change() -> None:
    """By number of sites, or of a value's patients; values and patients go unnamed."""
    patients = [replace(patient, key=SECRET + patient.key) for patient in cohort(19)]
    assert refused(patients, config("labels", sites=4, min_patients=5)) == (
        "simulation.partition: 19 patients can't give 4 sites 5 each; lower "
        "simulation.partition.sites or simulation.partition.min_patients."
    )
    said = refused(of_origins("a", "a", "b", "c"), config("column", min_patients=2))
    assert said.startswith(
        "simulation.partition: by the column 'ward', 2 of 3 sites would have fewer than 2 patients "
        "(the smallest 1); lower simulation.partition.min_patients"
    )
    assert "by the manufacturers, 0 of 0 sites" in refused([], config("manufacturer"))


def test_the_table_and_the_file_say_what_came_out() -> None:
    """Counts by site and class, sums, and the skew; no patient."""
    patients = [
        Patient(f"{SECRET}-1", 3, {"PA": 3, "AP": 0}, origin="north"),
        Patient(f"{SECRET}-2", 10, {"PA": 8, "AP": 2}, origin="north"),
        Patient(f"{SECRET}-3", 7, {"PA": 0, "AP": 7}, origin="south"),
    ]
    parts = partition(patients, config("column"))
    assert parts.table().splitlines()[:4] == [
        "site   patients  images  PA  AP",
        "north         2      13  11   2",
        "south         1       7   0   7",
        "all           3      20  11   9",
    ]
    distance = (abs(11 / 13 - 11 / 20) + 11 / 20) / 2
    assert f"Class mix: {distance:.2f} from the pooled one" in parts.table()
    assert "variance" not in parts.table()
    content = json.loads(json.dumps(parts.as_json()))
    assert content["rule"]["column"] == "ward"
    assert content["sites"]["north"] == {
        "patients": 2,
        "images": 13,
        "positives": {"PA": 11, "AP": 2},
    }
    assert content["skew"]["class_distance"] == pytest.approx(distance)
    assert content["skew"]["size_gini"] == pytest.approx(1 / 6)
    assert SECRET not in parts.table() + json.dumps(content)
    looks = [replace(patient, look=Look(n, n)) for n, patient in enumerate(patients)]
    assert "in brightness and" in partition(looks, config("column")).table()


@dataclass(frozen=True)
class FakeReader:
    """Gives what was put under a path, and counts what it is asked for."""

    images: Mapping[str, Sequence[Image]]
    asked: list[str]

    def find(self, root: Path, classes: Sequence[str]) -> tuple[Source, ...]:
        raise NotImplementedError

    def decode(self, source: Source) -> Sequence[Image]:
        self.asked.append(source.path.name)
        return self.images[source.path.name]


NOTHING = FakeReader({}, [])


def source(name: str, patient: str, detail: object, **groups: str) -> Source:
    """A file of a patient."""
    return Source(Path(name), patient, None, detail, groups)


def flat(label: int | tuple[int, ...], *levels: float) -> Image:
    """Planes of three constant slices, of which the middle one has the level."""
    planes = [np.full((3, 4, 4), 99, np.float32) for _ in levels]
    for plane, level in zip(planes, levels, strict=True):
        plane[1] = level
    return Image(tuple(planes), label)


def test_labels_that_sources_tell_cost_no_decoding() -> None:
    """One class, or 0 and 1 for each; patients come in the order of their names."""
    sources = [source("a", "p2", 2), source("b", "p1", 0), source("c", "p2", 2)]
    first, second = gather(sources, NOTHING, classes=CLASSES, config=config("labels"))
    assert first == Patient("p1", 1, {"dark": 1, "grey": 0, "bright": 0})
    assert second == Patient("p2", 2, {"dark": 0, "grey": 0, "bright": 2})
    sources = [source("a", "p1", (1, 0, 1)), source("b", "p1", (0, 0, 1))]
    (patient,) = gather(sources, NOTHING, classes=CLASSES, config=config("quantity"))
    assert patient == Patient("p1", 2, {"dark": 1, "grey": 0, "bright": 2})


@pytest.mark.parametrize("detail", [None, "regions", (0, 1), (0, 1, 2), ((0, 1), 0, 1)])
def test_other_sources_are_decoded_for_their_labels(detail: object) -> None:
    """All images of a source count; a patient without one is left out."""
    reader = FakeReader({"a": [flat(0, 1), flat(1, 1)], "b": [flat(1, 1)], "c": []}, [])
    sources = [source("a", "p1", detail), source("b", "p1", detail), source("c", "p2", detail)]
    (patient,) = gather(sources, reader, classes=CLASSES, config=config("labels"))
    assert patient == Patient("p1", 3, {"dark": 1, "grey": 2, "bright": 0})
    assert reader.asked == ["a", "b", "c"]


def test_a_look_is_that_of_middle_slices() -> None:
    """The mean over planes, over images; labels that sources tell are counted once."""
    reader = FakeReader({"a": [flat(0, 1, 3)], "b": [flat(0, 10)]}, [])
    sources = [source("a", "p1", 0), source("b", "p1", 0)]
    (patient,) = gather(sources, reader, classes=CLASSES, config=config("feature"))
    assert patient.look == Look(brightness=6.0, noise=0.0)
    assert patient.images == 2


@pytest.mark.parametrize("sd", [0.5, 20])
def test_noise_is_told_from_slopes_and_edges(sd: float) -> None:
    """The estimate is within a tenth of the truth on a slope with an edge; 0 on tiny images."""
    y, x = np.mgrid[:128, :128]
    scene = 3.0 * x + 2.0 * y + 10 * (x > 64)
    noisy = scene + np.random.default_rng(0).normal(scale=sd, size=scene.shape)
    assert noise_of(noisy) == pytest.approx(sd, rel=0.1)
    assert noise_of(scene[:2]) == 0


def test_the_column_may_be_a_subgroup_or_the_site() -> None:
    """The value of most images, the first by name of several; none is `unknown`."""
    sources = [
        source("a", "p1", 0, ward="b"),
        source("b", "p1", 0, ward="a"),
        source("c", "p2", 0, ward="c"),
        source("d", "p2", 0, ward="a"),
        source("e", "p2", 0, ward="c"),
        source("f", "p3", 0, ward=""),
        source("g", "p3", 0),
        source("h", "p4", 0, ward=""),
        source("i", "p4", 0, ward="d"),
    ]
    found = gather(sources, NOTHING, classes=CLASSES, config=config("column"))
    assert [patient.origin for patient in found] == ["a", "c", "unknown", "d"]
    own = [replace(one, site="north") for one in sources]
    found = gather(own, NOTHING, classes=CLASSES, config=config("column", column="site"))
    assert {patient.origin for patient in found} == {"north"}


def test_a_column_that_is_not_there_is_refused() -> None:
    """With those that are; a site column only where there is one."""
    for column, groups, words in (
        ("wing", {"ward": "a", "sex": "F"}, "no column 'wing'; they have sex, ward. Name one"),
        ("site", {"ward": "a"}, "no column 'site'; they have ward."),
        ("site", {}, "no column 'site'. Name one of theirs or divide by another rule."),
    ):
        with pytest.raises(BadInput, match=re.escape(words)):
            gather(
                [source("a", SECRET, 0, **groups)],
                NOTHING,
                classes=CLASSES,
                config=config("column", column=column),
            )


def test_the_manufacturer_comes_from_the_headers(tmp_path: Path) -> None:
    """In whatever capitals it is written; one that is missing is `unknown`."""
    path = get_testdata_file("CT_small.dcm")
    assert path is not None
    header = pydicom.dcmread(path)
    sources = []
    for number, name in enumerate(("GE MEDICAL  SYSTEMS", "Ge Medical Systems", "")):
        header.Manufacturer = name
        header.save_as(tmp_path / f"{number}.dcm")
        sources.append(Source(tmp_path / f"{number}.dcm", f"p{number}", None, 0))
    rule = config("manufacturer")
    parts = partition(gather(sources, NOTHING, classes=CLASSES, config=rule), rule)
    assert parts.sites == {"ge-medical-systems": ("p0", "p1"), "unknown": ("p2",)}
    (tmp_path / "a.png").write_text(SECRET)
    with pytest.raises(BadInput, match="manufacturer needs DICOM files") as caught:
        gather([source(str(tmp_path / "a.png"), SECRET, 0)], NOTHING, classes=CLASSES, config=rule)
    assert str(caught.value).startswith("a.png: ")
    assert SECRET not in str(caught.value)

"""A site's cohort: whose images it holds, on which side they are, and who never gets in."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.cohort import Cohort, Examples, Stored, open_cohort
from common.config import SiteSettings, load_study
from common.data.dataset import pseudonym
from common.errors import BadData, BadInput

CPU = torch.device("cpu")
PRIVATE = "privacy.enabled=true"


def cohort(folder: Path, *changes: str, exclude: tuple[str, ...] = ()) -> Cohort:
    """The site `north` of a tiny data set."""
    site = SiteSettings(name="north", data=folder / "manifest.csv", exclude=exclude)
    return open_cohort(site, load_study(folder / "study.yaml", changes), CPU)


def key(patient: str) -> str:
    """A patient's key at the site."""
    return pseudonym(patient, b"fedward site north")


def edit(folder: Path, change: object) -> None:
    """Rewrite the manifest's lines, each a list of cells."""
    with (folder / "manifest.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(change(lines))  # type: ignore[operator]


def sides(opened: Cohort) -> dict[str, int]:
    """Each patient's part of the split."""
    return dict(zip(opened.dataset.patients.tolist(), opened.tested_in.tolist(), strict=True))


@pytest.mark.parametrize("changes", [(), (PRIVATE,)])
@pytest.mark.parametrize("folds", [None, 4])
def test_nobody_trains_and_is_tested_in_one_fold(
    tiny: Path, changes: tuple[str, ...], folds: int | None
) -> None:
    """Train and test share no patient and leave nobody out; over folds each is tested once."""
    opened = cohort(tiny, f"data.folds={folds or 'null'}", *changes)
    patients = opened.dataset.patients
    tested: list[str] = []
    for fold in range(1, folds + 1) if folds else [0]:
        train, test = opened.train_rows(fold), opened.test_rows(fold)
        assert not set(patients[train]) & set(patients[test])
        assert sorted([*train, *test]) == list(range(len(patients)))
        assert opened.examples(fold).rows.tolist() == train.tolist()
        tested += set(patients[test].tolist())
    if folds:
        assert sorted(tested) == sorted(set(patients.tolist()))


def test_every_class_is_tested_without_privacy(tiny: Path) -> None:
    """The split is stratified: a quarter of each class's patients is tested."""
    opened = cohort(tiny)
    test = opened.test_rows(0)
    assert sorted(opened.dataset.labels[test].tolist()) == [0, 0, 1, 1]  # two images a patient


def test_removing_a_patient_moves_no_other_under_privacy(tiny: Path) -> None:
    """Whoever is removed, everybody else keeps their side."""
    before = sides(cohort(tiny, PRIVATE))
    for number in range(8):
        without = sides(cohort(tiny, PRIVATE, exclude=(f"north-{number}",)))
        assert without == {
            patient: part for patient, part in before.items() if patient != key(f"north-{number}")
        }


def test_who_objects_is_never_there(tiny: Path) -> None:
    """An excluded patient has no image in the cohort, and the others have all of theirs."""
    patients = cohort(tiny, exclude=("north-3",)).dataset.patients.tolist()
    assert key("north-3") not in patients
    assert len(patients) == 14


def test_another_sites_images_are_never_opened(tiny: Path) -> None:
    """A site sees its own patients only, even where the others' files can't be read."""
    for path in (tiny / "images").glob("[ew]*"):
        path.write_bytes(b"no image")
    patients = set(cohort(tiny).dataset.patients.tolist())
    assert patients == {key(f"north-{number}") for number in range(8)}


def test_patients_have_keys_instead_of_names(tiny: Path) -> None:
    """No name or number of a patient is left in the cache entry."""
    opened = cohort(tiny)
    text = (opened.dataset.folder / "table.json").read_text()
    assert "north-" not in text
    assert key("north-0") in text


def test_the_same_patient_has_another_key_elsewhere(tiny: Path) -> None:
    """Keys of two sites can't be matched."""
    site = SiteSettings(name="south", data=tiny / "manifest.csv")
    edit(
        tiny,
        lambda lines: [
            [cell.replace("north", "south", 1) if i == 2 else cell for i, cell in enumerate(line)]
            for line in lines
        ],
    )
    opened = open_cohort(site, load_study(tiny / "study.yaml"), CPU)
    assert key("north-0") not in opened.dataset.patients


@pytest.mark.parametrize("changes", [(), (PRIVATE,)])
def test_the_data_may_fix_the_sides(tiny: Path, changes: tuple[str, ...]) -> None:
    """A `split` column decides for the patients that it names."""
    edit(
        tiny,
        lambda lines: (
            [lines[0] + ["split"]]
            + [
                [*line, {"north-1": "test", "north-2": "train"}.get(line[1], "")]
                for line in lines[1:]
            ]
        ),
    )
    found = sides(cohort(tiny, *changes))
    assert (found[key("north-1")], found[key("north-2")]) == (0, 1)


def test_sides_in_the_data_and_folds_contradict(tiny: Path) -> None:
    """A `split` column fixes one split, so folds are refused."""
    edit(tiny, lambda lines: [lines[0] + ["split"]] + [[*line, "train"] for line in lines[1:]])
    with pytest.raises(BadInput, match=r"split.*data\.folds"):
        cohort(tiny, "data.folds=4")


def test_a_site_without_images_is_refused(tiny: Path) -> None:
    """Where everybody objects, or the site isn't in the table, the sentence says what to check."""
    with pytest.raises(BadData, match="north: expected at least one image"):
        cohort(tiny, exclude=tuple(f"north-{number}" for number in range(8)))


def test_a_site_must_say_where_its_data_are(tiny: Path) -> None:
    """Without `data` there is nothing to open."""
    with pytest.raises(BadData, match="`data` is missing"):
        open_cohort(SiteSettings(name="north"), load_study(tiny / "study.yaml"), CPU)


def test_a_batch_holds_the_images_of_its_rows(tiny: Path) -> None:
    """Rows give their own inputs and labels, and each patient's rows are all theirs."""
    opened = cohort(tiny)
    examples = opened.examples(0)
    rows = examples.rows[[3, 0]]
    images, labels = examples.batch(rows, CPU)
    assert np.array_equal(images.numpy(), opened.dataset.images[rows])
    assert labels.tolist() == opened.dataset.labels[rows].tolist()
    by_patient = examples.by_patient()
    assert sorted(np.concatenate(list(by_patient.values()))) == examples.rows.tolist()
    assert all(set(opened.dataset.patients[own]) == {who} for who, own in by_patient.items())


def test_images_come_from_all_parts(tmp_path: Path) -> None:
    """Rows count through arrays one after another, on disk or not, and come as 32-bit numbers."""
    first = np.arange(6, dtype=np.float16).reshape(3, 2)
    np.save(tmp_path / "second.npy", np.arange(6, 14, dtype=np.float16).reshape(4, 2))
    stored = Stored((first, np.load(tmp_path / "second.npy", mmap_mode="r")))
    assert len(stored) == 7
    found = stored.rows(np.array([6, 0, 3, 2, 6]))
    assert found.tolist() == [[12, 13], [0, 1], [6, 7], [4, 5], [12, 13]]
    assert found.dtype == torch.float32
    assert stored.rows(np.array([], dtype=np.int64)).shape == (0, 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=20))
def test_an_image_keeps_its_place_among_its_patients(patients: list[str]) -> None:
    """The place counts the patient's own earlier images, whoever else is there."""
    examples = Examples(
        Stored((np.zeros((len(patients), 1), np.float32),)),
        np.zeros(len(patients), np.int64),
        np.array(patients, dtype=np.str_),
        np.arange(len(patients)),
    )
    expected = [patients[:row].count(who) for row, who in enumerate(patients)]
    assert examples.places().tolist() == expected


def test_a_list_of_patients_is_the_sites_whatever_its_column_says(tiny: Path) -> None:
    """`include` divides data anew: the column is not asked, and who objects stays out."""
    include = ("north-0", "east-1", "north-2")
    site = SiteSettings(
        name="north", data=tiny / "manifest.csv", include=include, exclude=("north-2",)
    )
    opened = open_cohort(site, load_study(tiny / "study.yaml", []), CPU)
    assert set(opened.dataset.patients.tolist()) == {key("north-0"), key("east-1")}


def test_augmentation_is_refused_where_features_are_kept(tiny: Path) -> None:
    """A frozen encoder's features are computed once, so changed images would never be seen."""
    frozen = ("model.name=frozen-efficientnet-lite0", "data.image_size_px=32")
    with pytest.raises(BadInput, match=r"training\.augmentation must be left out with model froz"):
        cohort(tiny, *frozen, "training.augmentation.noise=0.1")


def test_by_image_every_image_is_its_own_unit_up_to_the_cap() -> None:
    """Of each patient the first images on this side are there, one row each, and no more."""
    examples = Examples(
        Stored((np.zeros((6, 1), np.float32),)),
        np.zeros(6, np.int64),
        np.array(["a", "b", "a", "a", "b", "a"]),
        np.array([0, 1, 2, 3, 4]),
    )
    found = examples.by_image(per_patient=2)
    assert {key: rows.tolist() for key, rows in found.items()} == {
        "a 0": [0],
        "b 0": [1],
        "a 1": [2],
        "b 1": [4],
    }

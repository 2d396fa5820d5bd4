"""Sides of a split: by patient, fair in size, and under privacy by the patient alone."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.splits import hashed, position, strata, stratified

KEYS = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=30, unique=True)
SHARES = st.sampled_from([(0.25, 0.75), (0.2,) * 5, (1 / 3,) * 3, (0.05,) * 20, (0.9, 0.1)])
SEEDS = st.integers(0, 2**63 - 1)


def many(count: int) -> list[str]:
    """Keys as sites make them."""
    return [f"{i:032x}" for i in range(count)]


@settings(max_examples=60, deadline=None)
@given(KEYS, SHARES, SEEDS)
def test_each_patient_is_in_one_part(keys: list[str], shares: tuple[float, ...], seed: int) -> None:
    """Both splits put every patient into exactly one of the parts."""
    classes_of = {key: len(key) % 2 for key in keys}
    for parts in (
        hashed(keys, shares=shares, seed=seed),
        stratified(classes_of, shares=shares, seed=seed),
    ):
        assert set(parts) == set(keys)
        assert set(parts.values()) <= set(range(len(shares)))


@settings(max_examples=60, deadline=None)
@given(KEYS, SHARES, SEEDS, st.data())
def test_under_privacy_nobody_moves_another(
    keys: list[str], shares: tuple[float, ...], seed: int, data: st.DataObject
) -> None:
    """Removing one patient, or changing the order, leaves everybody else where they were."""
    gone = data.draw(st.sampled_from(keys))
    whole = hashed(keys, shares=shares, seed=seed)
    without = hashed([key for key in reversed(keys) if key != gone], shares=shares, seed=seed)
    assert without == {key: part for key, part in whole.items() if key != gone}


@pytest.mark.parametrize("shares", [(0.25, 0.75), (0.2,) * 5, (0.05,) * 20])
def test_under_privacy_shares_are_kept_on_average(shares: tuple[float, ...]) -> None:
    """Of many patients each part gets its share, within five standard deviations."""
    count = 20_000
    got = Counter(hashed(many(count), shares=shares, seed=3).values())
    for part, share in enumerate(shares):
        sd = (count * share * (1 - share)) ** 0.5
        assert abs(got[part] - count * share) < 5 * sd


def test_a_seed_is_another_split() -> None:
    """Under another seed patients stand elsewhere, and independently of the first."""
    first, second = ([position(key, seed=seed) for key in many(2000)] for seed in (1, 2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert 0 <= min(first) < 0.01 < 0.99 < max(first) < 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(2, 7), SEEDS)
def test_without_privacy_folds_are_balanced(classes: list[int], folds: int, seed: int) -> None:
    """Folds differ by at most one patient in size, and by at most one patient of each class."""
    classes_of = dict(zip(many(len(classes)), classes, strict=True))
    parts = stratified(classes_of, shares=(1 / folds,) * folds, seed=seed)
    for group in (
        [*classes_of],
        *([k for k in classes_of if classes_of[k] == c] for c in range(4)),
    ):
        sizes = [sum(parts[key] == fold for key in group) for fold in range(folds)]
        assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.floats(0.1, 0.9), SEEDS)
def test_without_privacy_each_class_has_the_test_share(
    classes: list[int], share: float, seed: int
) -> None:
    """A test share is met by all patients within one, and by each class within one."""
    classes_of = dict(zip(many(len(classes)), classes, strict=True))
    parts = stratified(classes_of, shares=(share, 1 - share), seed=seed)
    for group in (
        [*classes_of],
        *([k for k in classes_of if classes_of[k] == c] for c in range(4)),
    ):
        tested = sum(parts[key] == 0 for key in group)
        assert abs(tested - share * len(group)) <= 1 + 1e-9


def test_without_privacy_the_split_is_repeatable() -> None:
    """The order in which patients come does not matter; the seed does."""
    classes_of = {key: i % 3 for i, key in enumerate(many(90))}
    backwards = dict(reversed(classes_of.items()))
    shares = (0.2,) * 5
    first = stratified(classes_of, shares=shares, seed=1)
    assert stratified(backwards, shares=shares, seed=1) == first
    assert stratified(classes_of, shares=shares, seed=2) != first


def test_the_split_stays_the_same_over_releases() -> None:
    """Where these patients stand is written down: another hash would change every study."""
    keys = many(12)
    by_hash = hashed(keys, shares=(0.25, 0.75), seed=1)
    by_class = stratified(dict.fromkeys(keys, 0), shares=(0.25, 0.75), seed=1)
    assert [i for i, key in enumerate(keys) if by_hash[key] == 0] == [8]
    assert [i for i, key in enumerate(keys) if by_class[key] == 0] == [0, 3, 4]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=30))
def test_a_patient_has_the_class_of_most_images(images: list[tuple[str, int]]) -> None:
    """The most frequent label counts, and the smaller one of two that are equally frequent."""
    patients = np.array([patient for patient, _ in images])
    labels = np.array([label for _, label in images])
    expected = {}
    for patient in set(patients.tolist()):
        counts = Counter(label for other, label in images if other == patient)
        expected[patient] = min(counts, key=lambda label: (-counts[label], label))
    assert strata(patients, labels) == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.booleans()), min_size=1).filter(
        lambda images: len({patient for patient, *_ in images}) > 1
    )
)
def test_a_patient_has_every_label_that_an_image_has(
    images: list[tuple[str, bool, bool]],
) -> None:
    """Patients share a stratum if, and only if, their images show the same set of labels."""
    patients = np.array([patient for patient, *_ in images])
    labels = np.array([both for _, *both in images]).astype(np.int64)
    found = strata(patients, labels)
    shown = {
        patient: tuple(labels[patients == patient].any(axis=0))
        for patient in set(patients.tolist())
    }
    for one, other in itertools.combinations(found, 2):
        assert (found[one] == found[other]) == (shown[one] == shown[other])

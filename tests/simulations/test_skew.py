"""How much sites differ: each number against a plain formula, and where it is 0 and largest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kruskal

from simulations.skew import (
    between_sites,
    class_distance,
    class_distance_by_chance,
    exclusive,
    gini,
)

SITE_OF = np.array([0, 0, 1, 1, 2])


def test_the_class_distance_is_total_variation() -> None:
    """Half the summed differences of the shares, over sites: by hand, in plain loops."""
    counts = np.array([[3, 1, 0], [1, 0, 0], [0, 2, 2], [0, 0, 1], [1, 1, 1]])
    images = counts.sum(axis=1)
    pooled = [5 / 13, 4 / 13, 4 / 13]
    mixes = [[4 / 5, 1 / 5, 0], [0, 2 / 5, 3 / 5], [1 / 3, 1 / 3, 1 / 3]]
    plain = [sum(abs(m - p) for m, p in zip(mix, pooled, strict=True)) / 2 for mix in mixes]
    assert class_distance(counts, images, SITE_OF) == pytest.approx(sum(plain) / 3)


def test_labels_that_do_not_exclude_each_other_have_a_distance_each() -> None:
    """That between the frequencies of a label, averaged over labels and sites."""
    counts = np.array([[1, 1], [2, 0], [0, 0], [0, 1], [1, 1]])
    images = np.array([2, 2, 1, 1, 1])
    assert not exclusive(counts, images)
    first = (abs(3 / 4 - 4 / 7) + abs(0 - 4 / 7) + abs(1 - 4 / 7)) / 3
    second = (abs(1 / 4 - 3 / 7) + abs(1 / 2 - 3 / 7) + abs(1 - 3 / 7)) / 3
    assert class_distance(counts, images, SITE_OF) == pytest.approx((first + second) / 2)


def test_equal_mixes_have_no_distance_whatever_their_sizes() -> None:
    """Sizes are another number."""
    counts = np.array([[1, 1], [2, 2], [9, 9]])
    assert class_distance(counts, counts.sum(axis=1), np.array([0, 1, 1])) == 0


def test_chance_alone_moves_small_sites_apart() -> None:
    """One patient a site: whoever they are, the distance is the same; with more it shrinks."""
    few = np.array([[1, 0], [0, 1], [0, 1], [1, 0]])
    ones = np.ones(4, dtype=np.int64)
    assert class_distance_by_chance(few, ones, np.arange(4), seed=0) == pytest.approx(0.5)
    many = np.tile(few, (100, 1))
    site_of = np.arange(400) % 4
    by_chance = class_distance_by_chance(many, np.ones(400, dtype=np.int64), site_of, seed=0)
    # A share of 100 patients drawn without return from 400: mean |gap| of its normal limit.
    expected = np.sqrt(0.25 / 100 * (300 / 399)) * np.sqrt(2 / np.pi)
    assert by_chance == pytest.approx(expected, rel=0.1)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9).filter(any))
def test_gini_is_the_mean_difference(sizes: list[int]) -> None:
    """The mean difference between two sites, over twice the mean size."""
    count, total = len(sizes), sum(sizes)
    plain = sum(abs(a - b) for a in sizes for b in sizes) / (2 * count * total)
    assert gini(np.array(sizes)) == pytest.approx(plain, abs=1e-12)


@given(st.integers(0, 2**32), st.booleans())
def test_variance_between_sites_is_that_of_kruskal_and_wallis(seed: int, ties: bool) -> None:
    """H / (n - 1), with ties and without."""
    random = np.random.default_rng(seed)
    values = random.integers(0, 5, 30).astype(float) if ties else random.normal(size=30)
    site_of = np.arange(30) % 4
    plain = kruskal(*(values[site_of == site] for site in range(4))).statistic / 29
    assert between_sites(values, site_of) == pytest.approx(plain)


def test_values_without_variance_have_none_between_sites() -> None:
    """Nothing is divided by zero."""
    assert between_sites(np.ones(5), SITE_OF) == 0

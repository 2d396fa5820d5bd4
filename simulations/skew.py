"""How much the sites of a federation differ in classes, sizes and looks, in numbers.

Each is 0 where the sites are alike. `site_of` is the index of each patient's site, from 0 without
a gap; arrays are in the same order of patients.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

_SHUFFLES = 100


def class_distance(
    positives: NDArray[np.int64], images: NDArray[np.int64], site_of: NDArray[np.int64]
) -> float:
    """Mean total variation distance between a site's class mix and that of all sites, 0..1.

    A mix is the share of images of each class. Where an image may have several labels, each label
    has a distance, that between its frequencies, and the mean is over labels too.

    Args:
        positives: (n, K) images of each class by patient.
        images: (n,) images by patient, at least one at each site.

    >>> one, other = [3, 0], [0, 1]  # two patients, each alone at a site; 3 of 4 images are `one`
    >>> class_distance(np.array([one, other]), np.array([3, 1]), np.array([0, 1]))
    0.5
    """
    counts = np.stack([np.bincount(site_of, weights=column) for column in positives.T])
    shares = counts / np.bincount(site_of, weights=images)  # (K, S)
    gaps = np.abs(shares.T - positives.sum(axis=0) / images.sum())  # (S, K)
    of_sites = gaps.sum(axis=1) / 2 if exclusive(positives, images) else gaps.mean(axis=1)
    return float(of_sites.mean())


def class_distance_by_chance(
    positives: NDArray[np.int64],
    images: NDArray[np.int64],
    site_of: NDArray[np.int64],
    *,
    seed: int,
) -> float:
    """The mean `class_distance` when the patients are shuffled among sites of the same sizes.

    Small sites differ without any skew: by as much as this.
    """
    random = np.random.default_rng(seed)
    shuffled = (random.permutation(site_of) for _ in range(_SHUFFLES))
    return float(np.mean([class_distance(positives, images, site) for site in shuffled]))


def exclusive(positives: NDArray[np.int64], images: NDArray[np.int64]) -> bool:
    """Whether each image has one class, as far as counts tell: then these add up."""
    return bool((positives.sum(axis=1) == images).all())


def gini(sizes: NDArray[np.int64]) -> float:
    """Gini coefficient of the sites' sizes: 0 where they are equal, 1 - 1/sites where one has all.

    >>> gini(np.array([5, 5])), gini(np.array([0, 10]))
    (0.0, 0.5)
    """
    count = len(sizes)
    weights = 2 * np.arange(1, count + 1) - count - 1
    return float((weights * np.sort(sizes)).sum() / (count * sizes.sum()))


def between_sites(values: NDArray[np.float64], site_of: NDArray[np.int64]) -> float:
    """Share of the variance of the patients' ranks by a value (n,) that lies between sites, 0..1.

    It is Kruskal and Wallis' H / (n - 1); 0 where all values are the same.

    >>> between_sites(np.array([1.0, 2.0, 30.0, 40.0]), np.array([0, 0, 1, 1]))
    0.8
    """
    ranks = rankdata(values)
    sizes = np.bincount(site_of)
    means = np.bincount(site_of, weights=ranks) / sizes
    between = float((sizes * (means - ranks.mean()) ** 2).sum())
    return between / float(((ranks - ranks.mean()) ** 2).sum() or 1)

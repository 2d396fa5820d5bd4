"""What a patient was exposed to: runs of equal noisy steps, the only thing accountants read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias


class Mechanism(NamedTuple):
    """A run of equal steps of the Poisson-subsampled Gaussian mechanism.

    With `images` above 1 each of a patient's images is sampled and clipped by itself, and the
    patient is what is hidden: the clipped sum then moves by up to `images` x C.
    """

    noise_multiplier: float  # sigma / C
    sampling_rate: float  # q, in [0, 1]
    steps: int
    images: int = 1  # that a patient owns, at most, and that are sampled each by itself


History: TypeAlias = Iterable[tuple[float, float, int] | tuple[float, float, int, int]]
"""Mechanisms, or plain (noise_multiplier, sampling_rate, steps) for one unit a patient."""


def merge(history: History) -> tuple[Mechanism, ...]:
    """The history with equal mechanisms added up, in a fixed order: same epsilon, far faster.

    Raises:
        ValueError: a number out of range or not a number; never an optimistic guess.

    >>> merge([(2.0, 0.04, 20), (2.0, 0.04, 30), (1.0, 0.04, 0)])
    (Mechanism(noise_multiplier=2.0, sampling_rate=0.04, steps=50, images=1),)
    """
    steps: Counter[tuple[float, float, int]] = Counter()
    for item in history:
        sigma, q, count, images = Mechanism(*item)
        if not (0 <= sigma < math.inf and 0 <= q <= 1 and 0 <= count < math.inf and images >= 1):
            raise ValueError(
                "a mechanism needs a finite noise_multiplier >= 0, sampling_rate in [0, 1], "
                f"steps >= 0 and images >= 1; got {tuple(item)}."
            )
        steps[sigma, q, images] += count
    return tuple(
        Mechanism(sigma, q, count, images)
        for (sigma, q, images), count in sorted(steps.items())
        if q and count
    )

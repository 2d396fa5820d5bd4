"""What noisy steps cost, by privacy-loss random variables (Gopi et al. 2021, arXiv:2106.02848).

Opacus' PRV accountant is the judge, its RDP accountant gives the first bracket. Its GDP accountant
is never used: it reports too little (2.76 for a true 6.72) when the noise changes on the way.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from common.errors import BadInput

_LARGEST_DELTA = 1e-5
_LEAST_NOISE = 0.01  # of C: below, epsilon counts in thousands and floats overflow
_MOST_NOISE = 1e4
_MOST_BINS = 2**23  # of the discretised privacy loss: 64 MB an array
_PRV_CEILING = 300.0  # above, RDP alone: the number protects nobody and exp() would overflow
_RDP_ORDERS = [*range(2, 64), 96, 128, 256]  # Opacus' 90 fractional orders take seconds


class NoisySteps(NamedTuple):
    """A run of equal steps of the Poisson-subsampled Gaussian mechanism."""

    noise_multiplier: float  # sigma / C
    sampling_rate: float  # q, in [0, 1]
    steps: int


def merge(history: Iterable[tuple[float, float, int]]) -> tuple[NoisySteps, ...]:
    """The history with equal mechanisms added up, in a fixed order: same epsilon, far faster.

    >>> merge([(2.0, 0.04, 20), (2.0, 0.04, 30), (1.0, 0.04, 0)])
    (NoisySteps(noise_multiplier=2.0, sampling_rate=0.04, steps=50),)
    """
    steps: Counter[tuple[float, float]] = Counter()
    for noise_multiplier, sampling_rate, count in history:
        if not (noise_multiplier >= 0 and 0 <= sampling_rate <= 1 and count >= 0):
            raise ValueError(
                "a mechanism needs noise_multiplier >= 0, sampling_rate in [0, 1], steps >= 0; "
                f"got {(noise_multiplier, sampling_rate, count)}."
            )
        steps[noise_multiplier, sampling_rate] += count
    return tuple(
        NoisySteps(sigma, q, count) for (sigma, q), count in sorted(steps.items()) if q and count
    )


def epsilon_spent(history: Iterable[tuple[float, float, int]], *, delta: float) -> float:
    """An upper bound on epsilon after all of `history`, for adding or removing one unit.

    Args:
        history: (noise_multiplier, sampling_rate, steps), each a Poisson-subsampled Gaussian.
        delta: in (0, 1).

    Returns:
        epsilon >= 0, at most about 0.3 % above the exact value (RDP's looser bound beyond 100).

    Raises:
        ValueError: a mechanism or delta out of range.

    Formal guarantees:
        Valid for mechanisms that were fixed before the first result was seen. Whoever picks the
        next study's parameters after seeing the last one's results needs an RDP filter instead.

    Edge cases:
        ==========================================  =======
        empty history, no steps, sampling rate 0    0
        noise_multiplier below 0.01                 inf
        sampling_rate 1                             the plain Gaussian mechanism
        ==========================================  =======
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1); got {delta}.")
    return _epsilon(merge(history), delta)


@lru_cache(maxsize=4096)
def _epsilon(history: tuple[NoisySteps, ...], delta: float) -> float:
    from opacus.accountants import PRVAccountant

    bound = _rdp_epsilon(history, delta)
    if not 0 < bound <= _PRV_CEILING:
        return bound
    steps = sum(mechanism.steps for mechanism in history)
    mesh_per_error = 1 / math.sqrt(steps * math.log(12_000 / delta) / 2)  # as Opacus sets it
    finest = 2 * (2 * bound + 3) / (_MOST_BINS * mesh_per_error)
    accountant = PRVAccountant()
    accountant.history = list(history)
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # log(0) at q = 1
        warnings.filterwarnings("ignore", message="Optimal order")  # RDP's bound holds at any
        try:
            tight = accountant.get_epsilon(delta, eps_error=max(min(0.01, 0.003 * bound), finest))
        except (RuntimeError, ValueError):  # its own numerical checks failed
            return bound
    return min(float(tight), bound) if math.isfinite(tight) else bound


def _rdp_epsilon(history: tuple[NoisySteps, ...], delta: float) -> float:
    """Renyi DP's looser bound: fast, and sound for every history."""
    from opacus.accountants import RDPAccountant

    if any(mechanism.noise_multiplier < _LEAST_NOISE for mechanism in history):
        return math.inf
    RDPAccountant.DEFAULT_ALPHAS = _RDP_ORDERS  # for the PRV accountant's inner bracket, too
    accountant = RDPAccountant()
    accountant.history = list(history)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order")
        return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=256)
def noise_multiplier_for(
    target_epsilon: float, *, delta: float, sampling_rate: float, steps: int
) -> float:
    """The smallest noise multiplier, rounded up to four digits, that keeps to `target_epsilon`.

    Args:
        target_epsilon: in (0, 1000].
        delta: in (0, 1).
        sampling_rate: probability q in (0, 1] that a unit takes part in a step.
        steps: noisy steps over the whole study, >= 1.

    Returns:
        sigma / C with `epsilon_spent([(sigma, q, steps)]) <= target_epsilon`.

    Raises:
        BadInput: an argument out of range, or no noise up to 10,000 x C would do.
    """
    from scipy.optimize import brentq

    if not 0 < target_epsilon <= 1000:
        raise BadInput(
            f"The privacy target must be an epsilon in (0, 1000]; got {target_epsilon}. "
            "Usual targets lie between 1 and 10."
        )
    if not (0 < sampling_rate <= 1 and steps >= 1):
        raise BadInput(
            "Private training needs a sampling rate in (0, 1] and at least one step; "
            f"got {sampling_rate} and {steps}."
        )

    def rdp_epsilon(sigma: float) -> float:
        return _rdp_epsilon((NoisySteps(sigma, sampling_rate, steps),), delta)

    def excess(log_sigma: float) -> float:
        spent = epsilon_spent([(math.exp(log_sigma), sampling_rate, steps)], delta=delta)
        return math.log(max(spent, 1e-12) / target_epsilon)

    enough = _LEAST_NOISE
    while rdp_epsilon(enough) > target_epsilon and enough < _MOST_NOISE:
        enough *= 1.25
    if excess(math.log(enough)) > 0:
        raise BadInput(
            f"No amount of noise keeps {steps} steps within epsilon {target_epsilon} at delta "
            f"{delta:g}. Raise the target or take fewer steps."
        )
    high = math.log(enough)
    low = high - math.log(1.25)  # RDP needs some 10 % more noise than PRV: mostly one try
    while excess(low) <= 0:
        low, high = low - math.log(1.25), low
    root: float = brentq(excess, low, high, xtol=2e-4)
    sigma = _round_up(math.exp(root))
    while epsilon_spent([(sigma, sampling_rate, steps)], delta=delta) > target_epsilon:
        sigma = _round_up(sigma * (1 + 2e-4))
    return sigma


def _round_up(sigma: float) -> float:
    """Up to four significant digits, so that every machine plans the same noise."""
    unit = 10.0 ** (math.floor(math.log10(sigma)) - 3)
    return float(f"{math.ceil(sigma / unit) * unit:.4g}")


def check_delta(delta: float, declared_patients: int) -> None:
    """Refuse a delta with which a patient could be given away outright.

    Args:
        delta: what the study asks for.
        declared_patients: the site's public, rounded number of patients, >= 1.

    Raises:
        BadInput: delta is not in (0, 1e-5], or above 1 / (10 x declared patients).

    >>> check_delta(1e-5, 110)
    """
    if declared_patients < 1:
        raise BadInput(
            f"The declared number of patients must be at least 1; got {declared_patients}."
        )
    largest = min(_LARGEST_DELTA, 1 / (10 * declared_patients))
    if not 0 < delta <= largest:
        raise BadInput(
            f"privacy.target_delta must be above 0 and at most {largest:g} for {declared_patients} "
            f"declared patients; got {delta:g}. A mechanism that publishes each patient with "
            "probability delta keeps the formal promise, so delta is at most 1e-5 and at most a "
            f"tenth of 1 / patients. Set delta to {largest:g} or less."
        )

"""What noisy steps cost, by privacy-loss random variables (Gopi et al. 2021, arXiv:2106.02848).

Opacus' PRV accountant is the judge. Where it is slow, or knows nothing (several images a patient),
dp-accounting's privacy-loss distributions are (Doroshenko et al. 2022, arXiv:2207.04380). Opacus'
GDP accountant is never used: it reports too little (2.76 for a true 6.72) when the noise changes on
the way.
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from typing import Any

import numpy as np

from common.errors import BadInput
from common.privacy.mechanism import History, Mechanism, merge
from common.privacy.renyi import ORDERS, divergences

_LARGEST_DELTA = 1e-5
_LEAST_NOISE = 0.01  # of C
_MOST_NOISE = 1e4
_PRV_CEILING = 20.0  # of epsilon; above, the distributions are ten times faster
_MOST_BINS = 2**23  # of a discretised privacy loss: 64 MB an array
_RDP_ORDERS = [*range(2, 64), 96, 128, 256]  # Opacus' 90 fractional orders take seconds


def epsilon_spent(history: History, *, delta: float) -> float:
    """An upper bound on epsilon after all of `history`, for adding or removing one unit.

    Args:
        history: (noise_multiplier, sampling_rate, steps), each a Poisson-subsampled Gaussian; with
            a fourth number, the images a patient owns, the unit is the patient who owns them.
        delta: in (0, 1).

    Returns:
        epsilon >= 0, never below dp-accounting's pessimistic estimate, and at most 1 % or 0.005
        above it, whichever is larger.

    Raises:
        ValueError: a mechanism or delta out of range.

    Formal guarantees:
        Valid for mechanisms that were fixed before the first result was seen. Whoever picks the
        next study's parameters after seeing the last one's results needs `lifetime_epsilon`.

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
def _epsilon(history: tuple[Mechanism, ...], delta: float) -> float:
    if not history:
        return 0.0
    bound = _renyi_epsilon(history, delta)
    if not 0 < bound < math.inf:
        return bound
    steps = sum(mechanism.steps for mechanism in history)
    error = min(0.01, max(0.001, 0.003 * bound))
    bins = 2 * (2 * bound + 3) / error * math.sqrt(steps * math.log(12_000 / delta) / 2)
    alone = all(mechanism.images == 1 for mechanism in history)
    if alone and bound <= _PRV_CEILING and bins <= _MOST_BINS:
        tight = _prv_epsilon(history, delta, error=error)
        if math.isfinite(tight):
            return min(tight, bound)
    return _pld_epsilon(history, delta, bound=bound)


def _prv_epsilon(history: tuple[Mechanism, ...], delta: float, *, error: float) -> float:
    """Opacus' upper bound, `error` of which is numerical; inf where its own checks failed."""
    from opacus.accountants import PRVAccountant, RDPAccountant

    RDPAccountant.DEFAULT_ALPHAS = _RDP_ORDERS  # for the PRV accountant's inner bracket
    accountant = PRVAccountant()
    accountant.history = [(sigma, q, steps) for sigma, q, steps, _ in history]
    with warnings.catch_warnings(), np.errstate(all="ignore"):  # log(0) at q = 1
        warnings.filterwarnings("ignore", message="Optimal order")  # a bracket holds at any
        try:
            tight = float(accountant.get_epsilon(delta, eps_error=error))
        except (RuntimeError, ValueError):
            return math.inf
    return tight


def _pld_epsilon(history: tuple[Mechanism, ...], delta: float, *, bound: float) -> float:
    """dp-accounting's pessimistic estimate, the larger of both directions."""
    interval = _interval(bound, history)
    while bound / interval < _MOST_BINS:
        with np.errstate(over="ignore"):
            found = float(_losses(history, interval).get_epsilon_for_delta(delta))
        bound = min(bound, found * (1 + 1e-9))  # in whatever order the steps were added up
        if not bound:  # delta alone covers it: hardly anybody is ever sampled
            break
        # Too coarse a grid overflows, and a bound that was far too high had made it too coarse.
        finer = _interval(bound, history) if math.isfinite(found) else interval / 10
        if finer >= interval:
            break
        interval = finer
    return bound


def _interval(bound: float, history: tuple[Mechanism, ...]) -> float:
    """Between grid points: the power of ten next to 1/20 of a step's spread of privacy loss."""
    steps = sum(mechanism.steps for mechanism in history)
    spread = min(bound / 5, math.sqrt(bound)) / math.sqrt(steps)
    return 10.0 ** min(0, max(-4, round(math.log10(spread / 20))))


def _losses(history: tuple[Mechanism, ...], interval: float) -> Any:
    """The distribution of the privacy loss, pessimistic, on a grid."""
    from dp_accounting.pld import privacy_loss_distribution as pld
    from scipy.stats import binom

    total = pld.identity(value_discretization_interval=interval)
    for sigma, q, steps, images in history:
        if images == 1 or q == 1:
            step = pld.from_gaussian_mechanism(
                sigma / images, value_discretization_interval=interval, sampling_prob=q
            )
        else:  # so many of the patient's images are in a step; see renyi.py
            joined = np.arange(images + 1)
            share = binom.pmf(joined, images, q)
            step = pld.from_mixture_gaussian_mechanism(
                sigma, joined, share, value_discretization_interval=interval
            )
        total = total.compose(step.self_compose(steps))
    return total


def _renyi_epsilon(history: tuple[Mechanism, ...], delta: float) -> float:
    """The looser bound of Renyi divergences: fast, and sound for every history."""
    bounds = divergences(history) + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1)
    return max(0.0, float(bounds.min()))


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
        BadInput: an argument out of range, hardly anybody is ever sampled, or no noise up to
            10,000 x C would do.
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

    if sampling_rate * steps <= delta:  # then any noise would do, none included
        raise BadInput(
            f"Private training needs patients who are sampled: at rate {sampling_rate:g} hardly "
            f"anybody ever is in {steps} steps. Raise the sampling rate."
        )

    def renyi_epsilon(sigma: float) -> float:
        return _renyi_epsilon((Mechanism(sigma, sampling_rate, steps),), delta)

    def excess(log_sigma: float) -> float:
        spent = epsilon_spent([(math.exp(log_sigma), sampling_rate, steps)], delta=delta)
        return math.log(max(spent, 1e-12) / target_epsilon)

    enough = 1.0
    while renyi_epsilon(enough) > target_epsilon and enough < _MOST_NOISE:
        enough *= 1.25
    while renyi_epsilon(enough / 1.25) <= target_epsilon and enough / 1.25 > _LEAST_NOISE:
        enough /= 1.25
    if excess(math.log(enough)) > 0:
        raise BadInput(
            f"No amount of noise keeps {steps} steps within epsilon {target_epsilon} at delta "
            f"{delta:g}. Raise the target or take fewer steps."
        )
    high = math.log(enough)
    low = high - math.log(1.25)  # Renyi needs some 10 % more noise than PRV: mostly one try
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

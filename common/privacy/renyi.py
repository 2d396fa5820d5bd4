"""Renyi divergences of the subsampled Gaussian (Mironov, Talwar & Zhang 2019, arXiv:1908.10530)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from common.privacy.mechanism import Mechanism

ORDERS = np.array([1.5, 2, 2.5, 3, 3.5, 4, 5, 7, 10, 14, 20, 32, 64, 128])
"""The orders (14,), fixed for ever: a filter whose orders follow the results is none."""

_LEAST_NOISE = 0.01  # of C: below, epsilon counts in thousands and floats overflow
_TAIL = 12.0  # standard deviations left out at the ends: exp(-72) of a Gaussian's mass
_ROUNDING = 1e-12  # added to a divergence for each image: far more than float64 can lose
_MOST_CELLS = 2**21  # of a table in float64: 16 MB
_LOG_ROOT_2_PI = math.log(2 * math.pi) / 2


def divergences(history: tuple[Mechanism, ...]) -> NDArray[np.float64]:
    """Upper bounds on the Renyi divergences of all of `history` together, in both directions.

    Args:
        history: merged, each number in its range.

    Returns:
        float64 array of the shape of `ORDERS`; inf without noise worth the name (below 0.01), and
        for orders that are not worth the work (many images and little noise).
    """
    total = np.zeros(len(ORDERS))
    for noise_multiplier, sampling_rate, steps, images in history:
        total += steps * _of_a_step(noise_multiplier, sampling_rate, images)
    return total


@lru_cache(maxsize=4096)
def _of_a_step(noise_multiplier: float, sampling_rate: float, images: int) -> NDArray[np.float64]:
    """Divergences of one step (orders,).

    The patient's images each join with probability q, so the sum moves by at most J x C with J
    from Binomial(images, q). That is no worse than the mixture P of Gaussians at 0, 1, ... images
    against Q, the one at 0 (Choquette-Choo et al. 2023, arXiv:2310.15526, corollary 4.7).
    """
    if noise_multiplier < _LEAST_NOISE:
        return np.full(len(ORDERS), math.inf)
    if sampling_rate == 1:
        return ORDERS * (images / noise_multiplier) ** 2 / 2
    mixture = (noise_multiplier, sampling_rate, images)
    found = [_removed(order, *mixture) for order in ORDERS]
    if images > 1:  # for one image the other direction is smaller (arXiv:1908.10530, theorem 5)
        found = list(map(max, found, [_added(order, *mixture) for order in ORDERS]))
    return np.maximum(found, 0) + images * _ROUNDING


def _removed(order: float, sigma: float, q: float, images: int) -> float:
    """Divergence of P from Q, log E_Q[(P / Q)^a] / (a - 1): centred between 0 and a x images."""
    ends = (-_TAIL * sigma, order * images + _TAIL * sigma)
    step = _step(sigma, sigma**2 / 2)
    return _log_moment(order, sigma, q, images, ends=ends, step=step) / (order - 1)


def _added(order: float, sigma: float, q: float, images: int) -> float:
    """Divergence of Q from P, log E_Q[(P / Q)^(1 - a)] / (a - 1).

    P / Q is nowhere below (1 - q)^images, which bounds the tails.
    """
    reach = math.sqrt(_TAIL**2 - 2 * (order - 1) * images * math.log1p(-q)) * sigma
    step = _step(sigma, sigma**2 / 2 + images * (order - 1) / 6)
    return _log_moment(1 - order, sigma, q, images, ends=(-reach, reach), step=step) / (order - 1)


def _step(sigma: float, growth: float) -> float:
    """The trapezoid rule's step for a relative error below 2 exp(-39), 2e-17.

    P / Q is a polynomial in exp(x / sigma^2) with real, negative zeros (a binomial's, times a
    multiplier sequence). So at x + i t sigma^2 with t below pi / 2 it is at most what it is at x,
    and at least cos(t / 2)^images of that; Q grows by exp(t^2 sigma^2 / 2). The rule's error is
    then below 2 exp(growth t^2 - 2 pi t sigma^2 / step) for any such t; the best is
    pi sigma^2 / (step growth), or pi / 2 if that is less.
    """
    return min(math.pi * sigma**2 / math.sqrt(40 * growth), math.pi**2 * sigma**2 / 80)


def _log_moment(
    power: float, sigma: float, q: float, images: int, *, ends: tuple[float, float], step: float
) -> float:
    """log E_Q[(P / Q)^power]; inf where the table would be too large, which is never optimistic."""
    points = math.ceil((ends[1] - ends[0]) / step) + 1
    if points * (images + 1) > _MOST_CELLS:
        return math.inf
    x = ends[0] + step * np.arange(points)  # (points,)
    joined = np.arange(images + 1)[:, None]  # (images + 1, 1)
    log_factorial = np.cumsum(np.log(np.maximum(joined, 1)), axis=0)
    log_ways = log_factorial[-1] - log_factorial - log_factorial[::-1]
    log_share = log_ways + joined * math.log(q) + (images - joined) * math.log1p(-q)
    log_ratio = np.logaddexp.reduce(log_share + joined * (x - joined / 2) / sigma**2)  # (points,)
    log_noise = math.log(step / sigma) - _LOG_ROOT_2_PI - (x / sigma) ** 2 / 2
    return float(np.logaddexp.reduce(log_noise + power * log_ratio))

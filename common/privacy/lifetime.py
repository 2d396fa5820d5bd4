"""A patient's epsilon over all studies: a Renyi filter (Feldman & Zrnic 2021, arXiv:2008.11193)."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from common.privacy.mechanism import History, Mechanism, merge
from common.privacy.renyi import ORDERS, divergences


def lifetime_epsilon(history: History, *, delta: float) -> float:
    """Epsilon after all of `history`, valid when each study was chosen after seeing the last.

    Args:
        history: what one patient was exposed to, in any order.
        delta: in (0, 1), fixed beforehand, as the cap is.

    Returns:
        epsilon >= 0; compare it with the cap with the next mechanism already in the history.

    Raises:
        ValueError: a mechanism or delta out of range.

    Formal guarantees:
        A site that runs a mechanism only while the epsilon including it is at most its cap gives
        each patient (cap, delta)-differential privacy under adding or removing that patient,
        whoever picks the mechanisms and whatever they have seen.

        Proof: let R(a) be the sum of the mechanisms' Renyi divergences of order a (the larger of
        both directions) and L the privacy loss so far. exp((a - 1) (L - R(a))) is a supermartingale
        that starts at 1 (Feldman & Zrnic), and so is its mean M over the fixed orders. The epsilon
        here is the least with max(0, 1 - exp(epsilon - L)) <= delta M for every L. At the end it
        is at most the cap, so max(0, 1 - exp(cap - L)) has a mean of at most delta, and that mean
        is the delta that belongs to the cap. With a single order this is the usual conversion
        (Canonne, Kamath & Steinke 2020, arXiv:2004.00010, proposition 12). Picking the best order
        afterwards, as one may for a history that was fixed beforehand, would be optimistic: which
        order is best depends on what was seen. That is why this epsilon is 5 to 10 % larger.

    Edge cases:
        ==========================================  =======
        empty history, no steps, sampling rate 0    0
        noise_multiplier below 0.01                 inf
        sampling_rate 1                             the plain Gaussian mechanism
        ==========================================  =======

    >>> round(lifetime_epsilon([(1.0, 0.04, 1000)], delta=1e-5), 1)
    10.1
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1); got {delta}.")
    return _epsilon(merge(history), delta)


def times_left(history: History, again: Mechanism, *, delta: float, cap: float, most: int) -> int:
    """How many more times `again` fits below the cap, in 0 to `most`.

    Args:
        history: what one patient was exposed to before.
        again: what a round adds.
        delta: in (0, 1).
        cap: the largest epsilon.
        most: where counting ends.

    >>> times_left([], Mechanism(1.0, 0.04, 100), delta=1e-5, cap=10.0, most=50)
    9
    """

    def fits(times: int) -> bool:
        added = again._replace(steps=times * again.steps)
        return lifetime_epsilon((*history, added), delta=delta) <= cap

    if fits(most):
        return most
    low, high = 0, most  # `high` doesn't fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@lru_cache(maxsize=4096)
def _epsilon(history: tuple[Mechanism, ...], delta: float) -> float:
    from scipy.optimize import brentq

    if not history:
        return 0.0
    spent = divergences(history)
    known = np.isfinite(spent)
    if not known.any():
        return math.inf
    orders, spent = ORDERS[known], spent[known]
    log_share = math.log(delta / len(ORDERS))  # of delta, for each order
    log_orders = np.log(orders)

    # Epsilon is the largest value of L + log(1 - delta M(L)), a concave function of L; its slope
    # is zero where delta (M + M') = 1, whose left side grows with L.
    def log_left_side(loss: float) -> float:
        terms = log_share + log_orders + (orders - 1) * (loss - spent)
        return float(np.logaddexp.reduce(terms))

    one_term = spent - (log_share + log_orders) / (orders - 1)  # where it alone would be 1
    low = one_term.min() - math.log(len(ORDERS)) / (orders.min() - 1)
    loss = brentq(log_left_side, low, one_term.min() + 1e-9, xtol=1e-10)
    spared = math.exp(np.logaddexp.reduce(log_share + (orders - 1) * (loss - spent)))  # delta M
    return max(0.0, float(loss) + math.log1p(-spared) + 1e-9)

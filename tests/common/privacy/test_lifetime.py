"""The lifetime filter: sound against whoever chooses the next study by the last one's results."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.privacy.accounting import epsilon_spent
from common.privacy.lifetime import lifetime_epsilon, times_left
from common.privacy.mechanism import Mechanism, merge
from common.privacy.renyi import ORDERS, divergences

DELTA = 1e-5

mechanisms = st.builds(
    Mechanism,
    st.floats(0.5, 30),
    st.floats(0.001, 1),
    st.integers(1, 500),
    st.sampled_from([1, 1, 1, 2, 9]),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(mechanisms, min_size=1, max_size=4), st.floats(1e-9, 0.1))
def test_the_bound_is_what_the_proof_asks_for(history: list[Mechanism], delta: float) -> None:
    """max(0, 1 - exp(epsilon - L)) <= delta M(L) for every L; it touches, so none is smaller."""
    epsilon = lifetime_epsilon(history, delta=delta)
    spent = divergences(merge(history))
    loss = epsilon + np.concatenate([np.geomspace(1e-6, 1e3, 100_000), [0.0]])
    log_mean = np.logaddexp.reduce((ORDERS - 1) * (loss[:, None] - spent), axis=1)
    with np.errstate(divide="ignore"):  # where the left side is 0
        room = math.log(delta / len(ORDERS)) + log_mean - np.log1p(-np.exp(epsilon - loss))
    assert room.min() >= -1e-9
    if epsilon > 0:
        assert room.min() < 1e-4


def test_an_adversary_who_watches_gains_nothing() -> None:
    """Two exact steps: the second is the worst that the filter allows after each outcome."""
    delta, first = 0.01, (1.2, 1.0, 1)
    cap = 4.0
    second = []
    for q in (1.0, 0.3, 0.05, 0.01):  # the least noise still within the cap
        noises = np.geomspace(0.15, 20, 400)
        allowed = [lifetime_epsilon([first, (s, q, 1)], delta=delta) <= cap for s in noises]
        second.append((float(noises[allowed.index(True)]), q))
    x = np.linspace(-14, 15, 4001)  # an outcome of the first step, if the patient is there
    loss = (2 * x - 1) / (2 * 1.2**2)
    worst = np.zeros_like(x)
    for sigma, q in second:
        y = np.linspace(-12 * sigma, 1 + 12 * sigma, 4001)[:, None]
        absent = stats.norm.pdf(y, scale=sigma)
        there = q * stats.norm.pdf(y, 1, sigma) + (1 - q) * absent
        excess = np.maximum(there - np.exp(cap - loss) * absent, 0).sum(0) * (y[1] - y[0])
        worst = np.maximum(worst, excess)
    spent = float((stats.norm.pdf(x, 1, 1.2) * worst).sum() * (x[1] - x[0]))
    assert delta / 20 < spent <= delta


@settings(max_examples=20, deadline=None)
@given(st.lists(mechanisms, max_size=3), mechanisms)
def test_every_step_costs(history: list[Mechanism], more: Mechanism) -> None:
    """A longer history never has the smaller epsilon, and its order doesn't matter."""
    before = lifetime_epsilon(history, delta=DELTA)
    after = lifetime_epsilon([*history, more], delta=DELTA)
    assert before < after == lifetime_epsilon([more, *history], delta=DELTA)


@pytest.mark.parametrize(
    "mechanism", [(1.033, 0.04, 1000), (1.236, 0.25, 40), (2.688, 1.0, 20), (7.12, 0.16, 1000)]
)
def test_it_costs_a_little_more_than_a_plan(mechanism: tuple[float, float, int]) -> None:
    """At least the exact epsilon of the same history, and at most a quarter more."""
    planned = epsilon_spent([mechanism], delta=DELTA)
    assert planned < lifetime_epsilon([mechanism], delta=DELTA) < 1.25 * planned


def test_a_study_at_the_usual_target_fits_the_usual_cap() -> None:
    """A whole study of epsilon 8 is within a site's default cap of 10."""
    assert lifetime_epsilon([(1.033, 0.04, 1000)], delta=DELTA) < 10


def test_nothing_spent_is_nothing() -> None:
    """No step, or nobody ever sampled: 0."""
    assert lifetime_epsilon([], delta=DELTA) == 0
    assert lifetime_epsilon([(1.0, 0.0, 5), (1.0, 0.5, 0)], delta=DELTA) == 0


@pytest.mark.parametrize("sigma", [0.0, 1e-9, 0.005])
def test_no_noise_is_no_privacy(sigma: float) -> None:
    """Without noise worth the name every cap is exceeded."""
    assert lifetime_epsilon([(5.0, 0.1, 10), (sigma, 0.1, 1)], delta=DELTA) == math.inf


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_out_of_range_is_refused(delta: float) -> None:
    """No delta, no epsilon."""
    with pytest.raises(ValueError, match="delta"):
        lifetime_epsilon([(1.0, 0.1, 1)], delta=delta)


def test_the_ledger_can_use_it_alone() -> None:
    """It loads neither torch nor an accountant's package."""
    code = (
        "import sys\nfrom common.privacy.lifetime import lifetime_epsilon\n"
        "lifetime_epsilon([(1.0, 0.1, 10, 3)], delta=1e-5)\n"
        "assert not {'torch', 'opacus', 'dp_accounting'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


STEP, OTHER = Mechanism(2.0, 0.1, 4), Mechanism(1.5, 0.2, 10)


@pytest.mark.parametrize("spent", [(), (OTHER,), (STEP, OTHER)])
@pytest.mark.parametrize("cap", [0.3, 1.0, 2.0, 3.0])
def test_the_times_left_are_the_last_that_fit(spent: tuple[Mechanism, ...], cap: float) -> None:
    """One by one comes to the same; what is asked for is never exceeded."""
    one_by_one = 0
    while one_by_one < 40:
        more = STEP._replace(steps=STEP.steps * (one_by_one + 1))
        if lifetime_epsilon((*spent, more), delta=1e-5) > cap:
            break
        one_by_one += 1
    for most in (0, 1, 7, 40):
        found = times_left(spent, STEP, delta=1e-5, cap=cap, most=most)
        assert found == min(most, one_by_one)


@pytest.mark.parametrize("delta", [0.0, 1.0, 1.5, -1e-5, math.nan])
def test_a_delta_that_is_no_probability_is_an_error(delta: float) -> None:
    """Never an epsilon of 0 because everything is let go."""
    with pytest.raises(ValueError, match="delta must be"):
        lifetime_epsilon([(1.0, 0.1, 10)], delta=delta)

"""Epsilon against Google's independent accountant (privacy-loss distributions)."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from scipy import stats
from scipy.optimize import brentq

from common.errors import BadInput
from common.privacy.accounting import check_delta, epsilon_spent, noise_multiplier_for
from common.privacy.mechanism import Mechanism

DELTA = 1e-5


def pld_epsilon(history: list[tuple[float, float, int]], interval: float = 1e-4) -> float:
    """The same question to the other package, whose answer is an upper bound too."""
    accountant = PLDAccountant(value_discretization_interval=interval)
    for noise_multiplier, sampling_rate, steps in history:
        event = dp_accounting.GaussianDpEvent(noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(sampling_rate, event), steps)
    return float(accountant.get_epsilon(DELTA))


def random_history(seed: int) -> list[tuple[float, float, int]]:
    """One to five mechanisms of the kind that studies use, and worse."""
    random = np.random.default_rng(seed)
    return [
        (
            float(np.exp(random.uniform(np.log(0.6), np.log(30)))),
            float(random.choice([0.001, 0.01, 0.04, 0.1, 0.16, 0.25, 0.5, 1.0])),
            int(np.exp(random.uniform(0, np.log(3000)))),
        )
        for _ in range(random.integers(1, 6))
    ]


SEEDS = [*range(20), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(20, 200))]


@pytest.mark.parametrize("seed", SEEDS)
def test_epsilon_agrees_with_the_independent_accountant(seed: int) -> None:
    """Never below it, and never above by more than 1 % or 0.005, whichever is larger."""
    history = random_history(seed)
    ours = epsilon_spent(history, delta=DELTA)
    # A coarser grid is as good for a larger epsilon, and its answer never the smaller one.
    theirs = pld_epsilon(history, interval=1e-4 if ours < 3 else 1e-3)
    assert theirs <= ours <= max(theirs * 1.01, theirs + 0.005)


@pytest.mark.parametrize(
    ("sigma", "images", "expected"),
    [(1.0, 5, 70.0), (1.0, 20, 615.1), (5.0, 20, 34.7), (20.0, 5, 1.204), (20.0, 100, 46.46)],
)
def test_images_sold_as_patients(sigma: float, images: int, expected: float) -> None:
    """What 1000 steps at q = 0.04 per image cost a patient who owns several."""
    mechanism = Mechanism(sigma, 0.04, 1000, images)
    assert epsilon_spent([mechanism], delta=DELTA) == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize(("sigma", "q", "images"), [(2.0, 0.3, 3), (5.0, 0.1, 8), (1.0, 0.5, 2)])
def test_the_mixture_of_one_step_is_exact(sigma: float, q: float, images: int) -> None:
    """One step against the definition: both directions' integrals over (P - e^epsilon Q)+."""
    joined = np.arange(images + 1)
    x = np.linspace(-12 * sigma, images + 12 * sigma, 200_001)
    q_density = stats.norm.pdf(x, scale=sigma)
    p_density = stats.norm.pdf(x[:, None], joined, sigma) @ stats.binom.pmf(joined, images, q)

    def excess(epsilon: float) -> float:
        pairs = ((p_density, q_density), (q_density, p_density))
        both = [np.maximum(a - math.exp(epsilon) * b, 0).sum() * (x[1] - x[0]) for a, b in pairs]
        return float(max(both)) - DELTA

    exact = brentq(excess, 0, 100)
    found = epsilon_spent([Mechanism(sigma, q, 1, images)], delta=DELTA)
    assert exact * (1 - 1e-6) <= found <= exact * 1.002


@pytest.mark.parametrize("images", [2, 7])
def test_images_that_always_join_add_up(images: int) -> None:
    """At rate 1 a patient's images are one Gaussian of so much less noise."""
    together = epsilon_spent([(3.0 / images, 1.0, 4)], delta=DELTA)
    apart = epsilon_spent([Mechanism(3.0, 1.0, 4, images)], delta=DELTA)
    assert apart == pytest.approx(together, rel=5e-3)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([(1.0, 0.04, 1000)], 8.49),
        ([(1.0, 0.04, 500), (1.5, 0.04, 500)], 6.72),  # where GDP says 2.76
        ([(1.0, 1.0, 1)], 4.377),  # the plain Gaussian mechanism (Balle & Wang 2018)
    ],
)
def test_epsilon_of_known_histories(
    history: list[tuple[float, float, int]], expected: float
) -> None:
    """Published and measured values come out."""
    assert epsilon_spent(history, delta=DELTA) == pytest.approx(expected, rel=3e-3)


def test_rounds_cost_what_their_steps_cost() -> None:
    """Fifty rounds cost what their steps cost at once: neither their sum nor the last one's."""
    rounds = [(2.0, 0.04, 20)] * 50
    assert epsilon_spent(rounds, delta=DELTA) == pytest.approx(2.88, rel=5e-3)


@pytest.mark.parametrize("history", [[], [(1.0, 0.04, 0)], [(1.0, 0.0, 10)]])
def test_nothing_done_costs_nothing(history: list[tuple[float, float, int]]) -> None:
    """No step, or nobody ever sampled: epsilon 0."""
    assert epsilon_spent(history, delta=DELTA) == 0


@pytest.mark.parametrize("noise_multiplier", [0.0, 1e-9, 0.005])
def test_no_noise_is_no_privacy(noise_multiplier: float) -> None:
    """Without noise worth the name epsilon is infinite instead of a crash."""
    assert epsilon_spent([(noise_multiplier, 0.1, 10)], delta=DELTA) == math.inf


@pytest.mark.parametrize(("noise_multiplier", "least", "most"), [(0.05, 200, 5e4), (5e3, 0, 0.01)])
def test_extreme_noise_is_survived(noise_multiplier: float, least: float, most: float) -> None:
    """Very little and very much noise give a sensible, finite bound."""
    assert least < epsilon_spent([(noise_multiplier, 1.0, 100)], delta=DELTA) < most


@pytest.mark.parametrize(
    ("target", "sampling_rate", "steps"), [(8.0, 0.25, 40), (3.0, 1.0, 20), (1.0, 0.1, 100)]
)
def test_planned_noise_meets_the_target(target: float, sampling_rate: float, steps: int) -> None:
    """The planned noise keeps to the target by both accountants, and a little less would not."""
    sigma = noise_multiplier_for(target, delta=DELTA, sampling_rate=sampling_rate, steps=steps)
    assert epsilon_spent([(sigma, sampling_rate, steps)], delta=DELTA) <= target
    assert pld_epsilon([(sigma, sampling_rate, steps)]) <= target * (1 + 1e-3)
    assert pld_epsilon([(sigma * 0.99, sampling_rate, steps)]) > target
    assert sigma == float(f"{sigma:.4g}")


def test_a_plan_in_which_delta_does_all_is_refused() -> None:
    """Where hardly anybody is ever sampled no noise would be needed: epsilon 0, and no plan."""
    assert epsilon_spent([(0.05, 1e-9, 4)], delta=DELTA) == 0
    with pytest.raises(BadInput, match="Raise the sampling rate"):
        noise_multiplier_for(8.0, delta=DELTA, sampling_rate=1e-9, steps=4)


@pytest.mark.parametrize(
    ("target", "sampling_rate", "steps"),
    [(0.0, 0.1, 10), (-1.0, 0.1, 10), (math.nan, 0.1, 10), (1.0, 0.0, 10), (1.0, 0.1, 0)],
)
def test_impossible_targets_are_refused(target: float, sampling_rate: float, steps: int) -> None:
    """A target that no plan can have is a sentence for the data scientist."""
    with pytest.raises(BadInput, match="got"):
        noise_multiplier_for(target, delta=DELTA, sampling_rate=sampling_rate, steps=steps)


@pytest.mark.parametrize(
    ("delta", "declared"), [(1.1e-5, 10), (1e-5, 10_001), (0.0, 10), (-1e-6, 10), (math.nan, 10)]
)
def test_too_large_a_delta_is_refused_with_the_reason(delta: float, declared: int) -> None:
    """The sentence names the largest delta that is allowed for the site."""
    with pytest.raises(BadInput, match="at most a tenth"):
        check_delta(delta, declared)


def test_allowed_deltas_pass() -> None:
    """The limits themselves are allowed."""
    check_delta(1e-5, 10_000)
    check_delta(1e-6, 100_000)


@pytest.mark.parametrize("delta", [0.0, 1.0, 1.5, -1e-5, math.nan])
def test_a_delta_that_is_no_probability_is_an_error(delta: float) -> None:
    """Never an epsilon of 0 because everything is let go."""
    with pytest.raises(ValueError, match="delta must be"):
        epsilon_spent([(1.0, 0.1, 10)], delta=delta)

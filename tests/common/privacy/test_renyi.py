"""Renyi divergences against the package that publishes them and against their definition."""

from __future__ import annotations

import itertools
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from scipy import stats

from common.privacy.mechanism import Mechanism
from common.privacy.renyi import ORDERS, _added, _removed, divergences


@pytest.mark.parametrize(
    ("sigma", "q"), [(1.0, 0.04), (0.5, 0.3), (10.0, 0.5), (0.1, 0.01), (1e3, 1e-3), (2.0, 1.0)]
)
def test_one_image_agrees_with_the_independent_accountant(sigma: float, q: float) -> None:
    """At whole orders, where dp-accounting's formula is exact; never below it."""
    whole = ORDERS[ORDERS % 1 == 0]
    accountant = RdpAccountant(whole.tolist())
    event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
    accountant.compose(event, 7)
    found = divergences((Mechanism(sigma, q, 7),))[np.isin(ORDERS, whole)]
    np.testing.assert_allclose(found, accountant.rdp, rtol=1e-12, atol=1e-10)
    assert (found >= accountant.rdp * (1 - 1e-14)).all()


@pytest.mark.parametrize(
    ("sigma", "q", "images"),
    [(1.0, 0.04, 1), (2.0, 0.1, 3), (3.0, 0.2, 4), (0.2, 0.3, 1), (0.2, 0.1, 2), (6.0, 0.9, 5)],
)
def test_mixtures_agree_with_the_definition(sigma: float, q: float, images: int) -> None:
    """Both directions and the larger one, by plain numerical integration on a far finer grid."""
    joined = np.arange(images + 1)
    x = np.linspace(-25 * sigma, 7 * images + 25 * sigma, 400_001)
    log_q = stats.norm.logpdf(x, scale=sigma)
    shares = stats.binom.logpmf(joined, images, q)
    log_p = np.logaddexp.reduce(shares + stats.norm.logpdf(x[:, None], joined, sigma), axis=1)
    found = divergences((Mechanism(sigma, q, 1, images),))
    for order, divergence in zip(ORDERS[:8], found, strict=False):
        directions = [
            np.logaddexp.reduce(order * a + (1 - order) * b + math.log(x[1] - x[0])) / (order - 1)
            for a, b in ((log_p, log_q), (log_q, log_p))
        ]
        assert divergence == pytest.approx(max(directions), rel=1e-8, abs=1e-9)
        # The second is hardly ever the larger one, so a mistake in it would not show above.
        both = [_removed(order, sigma, q, images), _added(order, sigma, q, images)]
        assert both == pytest.approx(directions, rel=1e-8, abs=1e-9)


def test_more_images_cost_more() -> None:
    """Each further image of a patient is paid for, up to all of them moving the sum together."""
    found = [divergences((Mechanism(4.0, 0.1, 1, images),)) for images in (1, 2, 5, 20)]
    assert all((b > a).all() for a, b in itertools.pairwise(found))
    always = divergences((Mechanism(4.0, 1.0, 1, 20),))
    assert (found[-1] < always).all()
    np.testing.assert_allclose(always, ORDERS * 25 / 2)


def test_what_is_not_worth_the_work_is_infinite() -> None:
    """No noise, or a table too large to make: never a small number instead."""
    assert np.isinf(divergences((Mechanism(0.009, 0.5, 1),))).all()
    assert np.isinf(divergences((Mechanism(1.0, 0.5, 1, 4096),))).all()


def test_the_orders_stay() -> None:
    """A site's cap counts at these orders; others would count its past anew."""
    assert ORDERS.tolist() == [1.5, 2, 2.5, 3, 3.5, 4, 5, 7, 10, 14, 20, 32, 64, 128]

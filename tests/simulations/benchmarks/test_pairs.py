"""Ratios of interleaved pairs: who runs when, and an interval that covers the median."""

from __future__ import annotations

import pytest
from scipy.stats import binom

from simulations.benchmarks import pairs
from simulations.benchmarks.pairs import ratio


def test_pairs_are_interleaved_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs once unmeasured; then in pairs, each first in every other pair."""
    ran: list[str] = []
    monkeypatch.setattr(pairs, "_cpu_seconds", lambda function: function() or 1.0)
    ratio(lambda: ran.append("a"), lambda: ran.append("b"), pairs=9)
    assert ran[:2] == ["a", "b"]
    assert "".join(ran[2:]) == "baab" * 4 + "ba"


def test_the_ratio_is_the_median_within_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """A over B by pair: of nine the median, the second smallest and the second largest."""
    times = iter([5, 1, 9, 2, 8, 3, 7, 4, 6])

    def a() -> None:
        """Takes as long as told."""

    def b() -> None:
        """Takes a second."""

    monkeypatch.setattr(pairs, "_cpu_seconds", lambda f: float(next(times)) if f is a else 1.0)
    found = ratio(a, b)
    assert found.as_json() == {"ratio": 5.0, "low": 2.0, "high": 8.0, "pairs": 9}


@pytest.mark.parametrize("count", [9, 10, 15, 25])
def test_the_interval_covers_the_median(count: int) -> None:
    """The order statistics hold the median with 95 %, and the next inner ones would not."""
    edge = pairs._rank(count)
    assert 1 - 2 * binom.cdf(edge, count, 0.5) >= 0.95
    assert 1 - 2 * binom.cdf(edge + 1, count, 0.5) < 0.95

"""Interleaved pairs of CPU times: a ratio that holds when the machine's speed drifts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ratio:
    """CPU time of A over B, over interleaved pairs."""

    median: float
    low: float  # 95 % interval of the median, by order statistics
    high: float
    pairs: int

    def as_json(self) -> dict[str, float | int]:
        """Rounded to what the measurement can tell."""
        low, high = round(self.low, 3), round(self.high, 3)
        return {"ratio": round(self.median, 3), "low": low, "high": high, "pairs": self.pairs}


def ratio(a: Callable[[], None], b: Callable[[], None], *, pairs: int = 9) -> Ratio:
    """Run A and B in turn, after one warm-up of each; A first in every other pair.

    Args:
        pairs: at least 9; the 2nd smallest and largest of 9 ratios bound the median with 96 %.
    """
    a()
    b()
    ratios = []
    for number in range(pairs):
        first, second = (a, b) if number % 2 else (b, a)
        times = {function: _cpu_seconds(function) for function in (first, second)}
        ratios.append(times[a] / times[b])
    ratios.sort()
    edge = _rank(pairs)
    return Ratio(statistics.median(ratios), ratios[edge], ratios[-1 - edge], pairs)


def _cpu_seconds(function: Callable[[], None]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def _rank(pairs: int) -> int:
    """The largest rank whose order statistics cover the median with at least 95 %."""
    from scipy.stats import binom

    rank = int(binom.ppf(0.025, pairs, 0.5))
    while rank > 0 and 2 * binom.cdf(rank - 1, pairs, 0.5) > 0.05:
        rank -= 1
    return max(rank - 1, 0)

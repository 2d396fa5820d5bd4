"""Histories of mechanisms: added up, and refused where they make no sense."""

from __future__ import annotations

import math

import pytest

from common.privacy.mechanism import Mechanism, merge


def test_equal_mechanisms_are_added_up_in_a_fixed_order() -> None:
    """Order and fragments don't matter; steps of nothing vanish; images keep mechanisms apart."""
    rounds = [(2.0, 0.04, 20)] * 50 + [(1.0, 0.5, 0), (1.0, 0.0, 9), Mechanism(2.0, 0.04, 3, 5)]
    merged = (Mechanism(2.0, 0.04, 1000), Mechanism(2.0, 0.04, 3, 5))
    assert merge(rounds) == merge(rounds[::-1]) == merged


@pytest.mark.parametrize(
    "mechanism",
    [
        (-1.0, 0.1, 1),
        (math.nan, 0.1, 1),
        (math.inf, 0.1, 1),
        (1.0, 1.1, 1),
        (1.0, -0.1, 1),
        (1.0, math.nan, 1),
        (1.0, 0.1, -1),
        (1.0, 0.1, math.nan),
        (1.0, 0.1, 1, 0),
    ],
)
def test_impossible_mechanisms_are_refused(mechanism: tuple[float, float, int]) -> None:
    """A torn history is an error and never a small epsilon."""
    with pytest.raises(ValueError, match="a mechanism needs"):
        merge([mechanism])

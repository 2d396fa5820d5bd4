"""Federated averaging from disk against exact arithmetic; order, memory, and bad replies."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from server import aggregation
from server.aggregation import Spool, problem

Weights = NDArray[np.float32]


def oracle(replies: Mapping[str, Weights], shares: Mapping[str, float]) -> Weights:
    """The weighted mean in exact fractions, value by value."""
    means = []
    for values in zip(*replies.values(), strict=True):
        weighted = [
            (Fraction(shares.get(site, 1.0)), Fraction(float(value)))
            for site, value in zip(replies, values, strict=True)
        ]
        total = sum(share for share, _ in weighted)
        means.append(float(sum(share * value for share, value in weighted) / total))
    return np.array(means, dtype=np.float32)


def averaged(
    folder: Path, replies: Mapping[str, Weights], shares: Mapping[str, float], order: Sequence[str]
) -> Weights:
    """What comes out when the replies arrive in this order."""
    spool = Spool(folder / "spool")
    for site in order:
        spool.accept(site, replies[site])
    return spool.average(shares)


def some_replies(sites: int, size: int) -> dict[str, Weights]:
    """Weights of very different magnitudes, where the order of a float sum shows."""
    rng = np.random.default_rng(sites * 1000 + size)
    scale = 10.0 ** rng.integers(-6, 7, size=(sites, size))
    values = (rng.normal(size=(sites, size)) * scale).astype(np.float32)
    return {f"site-{number}": values[number] for number in range(sites)}


@pytest.mark.parametrize("shares", [{}, {"site-1": 3.0}, {"site-0": 0.25, "site-4": 1e3}])
def test_average_is_the_weighted_mean(tmp_path: Path, shares: dict[str, float]) -> None:
    """The average is the exact weighted mean, rounded; a site without a weight counts once."""
    replies = some_replies(5, 40)
    found = averaged(tmp_path, replies, shares, list(replies))
    assert found.dtype == np.float32
    np.testing.assert_array_max_ulp(found, oracle(replies, shares), maxulp=1)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations([f"site-{number}" for number in range(7)]))
def test_order_of_arrival_is_irrelevant_to_the_bit(order: list[str]) -> None:
    """Any order of arrival gives the same bytes, since the replies are folded by name."""
    replies = some_replies(7, 50)
    # Huge values that cancel out: what is left depends on the order even in float64.
    replies["site-2"] += np.float32(1e30)
    replies["site-5"] -= np.float32(1e30)
    with tempfile.TemporaryDirectory() as folder:
        expected = averaged(Path(folder), replies, {}, sorted(order))
        spool = Spool(Path(folder) / "spool")
        for site in order:
            spool.accept(site, replies[site])
        assert spool.sites == tuple(sorted(order))
        assert spool.average({}).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 7])
def test_folding_in_chunks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Models shorter than a chunk, of whole chunks and with a rest give the bits of one chunk."""
    replies = some_replies(3, size)
    whole = averaged(tmp_path, replies, {}, list(replies))
    monkeypatch.setattr(aggregation, "_CHUNK", 3)
    assert averaged(tmp_path, replies, {}, list(replies)).tobytes() == whole.tobytes()


def test_memory_is_a_model_or_two_whatever_the_number_of_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty replies are averaged in the memory of fewer than three models."""
    monkeypatch.setattr(aggregation, "_CHUNK", 1000)
    model = np.ones(100_000, dtype=np.float32)
    tracemalloc.start()
    try:
        spool = Spool(tmp_path / "spool")
        for number in range(20):
            spool.accept(f"site-{number}", model)
        spool.average({})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * model.nbytes


def test_a_killed_round_leaves_nothing_in_the_next(tmp_path: Path) -> None:
    """A spool starts empty, also where a killed round left replies, and goes when averaged."""
    Spool(tmp_path / "spool").accept("gone", np.ones(2, dtype=np.float32))
    found = averaged(tmp_path, {"site": np.zeros(2, dtype=np.float32)}, {}, ["site"])
    assert found.tolist() == [0, 0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (None, "no weights"),
        (np.zeros(2, dtype=np.float32), "2 values; the model has 3"),
        (np.zeros((3, 1), dtype=np.float32), "3 values"),
        (np.array([0, np.nan, 0], dtype=np.float32), "not finite"),
        (np.array([0, 0, -np.inf], dtype=np.float32), "not finite"),
    ],
)
def test_what_can_not_be_averaged_has_a_reason(weights: Weights | None, reason: str) -> None:
    """Missing, misshapen and non-finite weights are refused with the reason."""
    assert reason in (problem(weights, 3) or "")


def test_good_weights_are_accepted() -> None:
    """Finite weights of the model's size have no problem."""
    assert problem(np.zeros(3, dtype=np.float32), 3) is None

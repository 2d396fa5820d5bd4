"""Poisson sampling of patients: the right rate, the cap, and nobody depends on anybody else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.privacy.epsilon import Randomness
from common.privacy.randomness import RoundSecret
from common.privacy.sampling import PatientBatch, poisson_batches

SECRET = RoundSecret(bytes(range(32)), randomness=Randomness.SEEDED)


def cohort(sizes: dict[str, int]) -> dict[str, NDArray[np.int64]]:
    """Patients with so many images each, rows numbered through."""
    rows = iter(range(sum(sizes.values())))
    return {key: np.array([next(rows) for _ in range(size)]) for key, size in sizes.items()}


def batches(patients: dict[str, NDArray[np.int64]], **changes: Any) -> list[PatientBatch]:
    """All batches, with one thing changed."""
    arguments: dict[str, Any] = {
        "sampling_rate": 0.3,
        "steps": 10,
        "images_per_patient": 3,
        "secret": SECRET,
    } | changes
    return list(poisson_batches(patients, **arguments))


def positions(
    patients: dict[str, NDArray[np.int64]], drawn: list[PatientBatch]
) -> list[dict[str, list[int]]]:
    """For each step, which patients were drawn, with which of their images (by position)."""
    owner = {row: key for key, rows in patients.items() for row in rows.tolist()}
    return [
        {
            owner[rows[0]]: [patients[owner[rows[0]]].tolist().index(row) for row in rows.tolist()]
            for rows in batch
        }
        for batch in drawn
    ]


def test_the_rate_is_what_was_asked_for() -> None:
    """Over many draws patients join with probability q, and batch sizes are binomial."""
    q, patients, steps = 0.16, 40, 1000
    drawn = batches(cohort({f"p{i}": 1 for i in range(patients)}), sampling_rate=q, steps=steps)
    sizes = np.array([len(batch) for batch in drawn])
    assert abs(sizes.mean() - q * patients) < 4 * math.sqrt(q * (1 - q) * patients / steps)
    assert sizes.var() == pytest.approx(q * (1 - q) * patients, rel=0.2)
    per_patient = np.bincount(np.concatenate([r for b in drawn for r in b]), minlength=patients)
    assert np.abs(per_patient - q * steps).max() < 5 * math.sqrt(q * (1 - q) * steps)


sizes = st.dictionaries(st.text(min_size=1, max_size=5), st.integers(1, 8), max_size=6)


@given(sizes, st.floats(0, 1), st.integers(1, 9))
def test_every_batch_keeps_the_rules(sizes: dict[str, int], q: float, k: int) -> None:
    """At most k images a patient, none twice, all the patient's own, all of them if they fit."""
    patients = cohort(sizes)
    drawn = batches(patients, sampling_rate=q, images_per_patient=k)
    assert len(drawn) == 10
    for step in drawn:
        assert len(step) <= len(patients)
        for rows in step:
            (key,) = [key for key, own in patients.items() if rows[0] in own]
            assert set(rows.tolist()) <= set(patients[key].tolist())
            assert len(set(rows.tolist())) == len(rows) == min(k, len(patients[key]))


@given(sizes.filter(bool), st.data())
def test_removing_a_patient_moves_nobody_else(sizes: dict[str, int], data: st.DataObject) -> None:
    """The others join in the same steps with the same images, whatever their row numbers."""
    gone = data.draw(st.sampled_from(sorted(sizes)))
    with_all = cohort(sizes)
    without = cohort({key: size for key, size in sizes.items() if key != gone})
    expected = [
        {key: rows for key, rows in step.items() if key != gone}
        for step in positions(with_all, batches(with_all))
    ]
    assert positions(without, batches(without)) == expected


def test_the_order_of_the_patients_does_not_matter() -> None:
    """The same cohort in another order gives the same batches."""
    patients = cohort({"a": 4, "b": 5, "c": 1})
    backwards = dict(reversed(patients.items()))
    for one, other in zip(batches(patients), batches(backwards), strict=True):
        assert [rows.tolist() for rows in one] == [rows.tolist() for rows in other]


def test_choices_are_fresh_and_fair() -> None:
    """A patient with more than k images shows all of them over time, equally often."""
    drawn = batches(cohort({"a": 10}), sampling_rate=1.0, steps=2000)
    counts = np.bincount(np.concatenate([rows for (rows,) in drawn]), minlength=10)
    assert np.abs(counts - 600).max() < 5 * math.sqrt(2000 * 0.3 * 0.7)


@pytest.mark.parametrize(("q", "size"), [(0.0, 0), (1.0, 3)])
def test_rates_0_and_1_are_exact(q: float, size: int) -> None:
    """Nobody ever, or everybody always."""
    drawn = batches(cohort({"a": 1, "b": 2, "c": 3}), sampling_rate=q)
    assert [len(batch) for batch in drawn] == [size] * 10


def test_no_patients_still_give_every_step() -> None:
    """An empty cohort has all its steps, each empty."""
    assert batches({}) == [()] * 10


def test_another_secret_draws_others() -> None:
    """Batches depend on the round's secret."""
    patients = cohort({f"p{i}": 5 for i in range(20)})
    other = RoundSecret(b"x" * 32, randomness=Randomness.SEEDED)
    assert positions(patients, batches(patients)) != positions(
        patients, batches(patients, secret=other)
    )


@pytest.mark.parametrize(
    "change", [{"sampling_rate": 1.1}, {"sampling_rate": -0.1}, {"images_per_patient": 0}]
)
def test_impossible_sampling_is_refused(change: dict[str, Any]) -> None:
    """A rate that is no probability, or a cap of nothing, is an error."""
    with pytest.raises(ValueError, match="sampling needs"):
        batches(cohort({"a": 1}), **change)


def test_a_patient_without_images_is_refused() -> None:
    """A patient without a row could never be averaged."""
    with pytest.raises(ValueError, match="at least one row"):
        batches({"a": np.array([], dtype=np.int64)})


def test_a_simulated_study_draws_what_it_drew() -> None:
    """A study can be repeated with a later version: the same secret gives the same batches."""
    patients = cohort({"a": 5, "b": 2, "c": 6})
    found = positions(patients, batches(patients, sampling_rate=0.5, steps=4))
    assert found == [
        {"a": [0, 1, 4]},
        {"a": [0, 1, 4], "c": [1, 3, 5]},
        {},
        {"a": [0, 1, 2], "b": [0, 1], "c": [2, 3, 4]},
    ]

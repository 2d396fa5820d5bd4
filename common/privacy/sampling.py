"""Poisson sampling of patients (Abadi et al. 2016, arXiv:1607.00133; McMahan et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.privacy.randomness import RoundSecret

PatientBatch: TypeAlias = tuple[NDArray[np.int64], ...]
"""For each patient of one step, the rows of that patient's images; may be empty."""


def poisson_batches(
    patients: Mapping[str, NDArray[np.int64]],
    *,
    sampling_rate: float,
    steps: int,
    images_per_patient: int,
    secret: RoundSecret,
) -> Iterator[PatientBatch]:
    """Each step, every patient joins on their own with the same public probability.

    Args:
        patients: pseudonymous key -> rows of the patient's images (n,), n >= 1, disjoint.
        sampling_rate: public probability q in [0, 1], never derived from the data.
        steps: number of batches, public, >= 0.
        images_per_patient: at most so many images of a patient in one step, >= 1; a patient with
            more gives a fresh choice without replacement each time.
        secret: the round's; who is in a batch is as secret as the noise.

    Yields:
        `steps` batches, patients in the order of their keys.

    Raises:
        ValueError: rate, steps, cap or a patient's rows out of range.

    Formal guarantees:
        Each patient has cryptographic streams of their own, keyed by the secret and the patient's
        key: whether they join, and with which images, depends on nobody else. Adding or removing a
        patient changes nothing for any other, which is what amplification by sampling assumes.

    Edge cases:
        =========================  =======================================================
        nobody joins               an empty batch: the noisy step must be taken all the same
        sampling_rate 0 or 1       nobody, or everybody, every time
        no patients at all         `steps` empty batches
        =========================  =======================================================
    """
    if not (0 <= sampling_rate <= 1 and steps >= 0 and images_per_patient >= 1):
        raise ValueError(
            "sampling needs a rate in [0, 1], steps >= 0 and images_per_patient >= 1; "
            f"got {sampling_rate}, {steps} and {images_per_patient}."
        )
    if any(rows.ndim != 1 or not rows.size for rows in patients.values()):
        raise ValueError("each patient needs a one-dimensional array of at least one row.")
    keys = sorted(patients)
    joins = {key: secret.stream("joins", key).random(steps) < sampling_rate for key in keys}
    images = {key: secret.stream("images", key) for key in keys}
    for step in range(steps):
        yield tuple(
            _choose(patients[key], images_per_patient, images[key])
            for key in keys
            if joins[key][step]
        )


def _choose(rows: NDArray[np.int64], limit: int, stream: np.random.Generator) -> NDArray[np.int64]:
    if len(rows) <= limit:
        return rows
    return rows[np.sort(stream.choice(len(rows), limit, replace=False))]

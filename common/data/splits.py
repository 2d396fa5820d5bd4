"""Which side of a split a patient is on: training, or the fold in which they are tested.

Without privacy: stratified by patient, so that small test sets hold every class. Under privacy a
stratified split would be part of the mechanism and break it: removing one of 100 patients moved
8.9 others on average across the split (facts), so neighbouring data sets would differ in many
patients. There a keyed hash of the patient alone decides, and removing one moves nobody else.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def position(patient_key: str, *, seed: int) -> float:
    """Where a keyed hash puts a patient in [0, 1), by the patient alone."""
    digest = hmac.digest(f"fedward split {seed}".encode(), patient_key.encode(), hashlib.sha256)
    return int.from_bytes(digest[:8], "big") / 2**64


def hashed(patient_keys: Sequence[str], *, shares: Sequence[float], seed: int) -> dict[str, int]:
    """Each patient's part under privacy: part i is drawn with probability `shares[i]`.

    Args:
        patient_keys: pseudonymous keys, any order.
        shares: probabilities of the parts, summing to 1.
        seed: the study's public seed.
    """
    edges = np.cumsum(shares)
    parts = {}
    for key in patient_keys:
        part = int(np.searchsorted(edges, position(key, seed=seed), side="right"))
        parts[key] = min(part, len(shares) - 1)
    return parts


def stratified(
    strata_of: Mapping[str, int], *, shares: Sequence[float], seed: int
) -> dict[str, int]:
    """Each patient's part without privacy: every stratum in the same shares, as near as whole
    patients allow.

    Args:
        strata_of: each patient's stratum, see `strata`.
        shares: wanted share of each part, summing to 1.
        seed: the study's public seed.
    """
    parts: dict[str, int] = {}
    ordered = sorted(strata_of, key=lambda key: (strata_of[key], position(key, seed=seed)))
    filled = np.zeros(len(shares))
    # One pass over all patients, stratum after stratum: the part that lags most behind its share
    # takes the next, so one of few patients still spreads and parts stay equal in size.
    for done, key in enumerate(ordered, start=1):
        behind = np.asarray(shares) * done - filled
        parts[key] = int(np.argmax(behind))
        filled[parts[key]] += 1
    return parts


def strata(patients: NDArray[np.str_], labels: NDArray[np.int64]) -> dict[str, int]:
    """What each patient is to be stratified by.

    Multi-class labels (N,): the most frequent one, the smaller where two are equally frequent.
    Multi-label ones (N, K): the set of labels that any of the patient's images has, as a number.
    """
    keys, patient_of = np.unique(patients, return_inverse=True)
    if labels.ndim == 1:
        counts = np.zeros((len(keys), labels.max(initial=0) + 1), dtype=np.int64)
        np.add.at(counts, (patient_of, labels), 1)
        chosen = counts.argmax(axis=1)
    else:
        any_image = np.zeros((len(keys), labels.shape[1]), dtype=np.int64)
        np.maximum.at(any_image, patient_of, labels)
        _, chosen = np.unique(any_image, axis=0, return_inverse=True)
    return {str(key): int(stratum) for key, stratum in zip(keys, chosen, strict=True)}

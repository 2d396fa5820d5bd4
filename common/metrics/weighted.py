"""Every metric of fedward, under many weightings of the images at once.

A bootstrap resample is a weighting: how often each image was drawn, times a constant.
AUROC is the Mann-Whitney statistic, ties counting one half (Hanley & McNeil, Radiology 1982).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from common.metrics.predictions import Predictions

Weights = NDArray[np.float64]  # (R, N): R weightings of N images
Values = NDArray[np.float64]  # (R, M): one column a metric, NaN where not defined


def metric_names(classes: Sequence[str]) -> tuple[str, ...]:
    """The metrics in the order of their columns.

    >>> metric_names(("healthy", "fibrosis"))[:4]
    ('accuracy', 'balanced_accuracy', 'macro_auroc', 'precision:healthy')
    """
    per_class = [f"{kind}:{name}" for kind in ("precision", "recall", "auroc") for name in classes]
    return ("accuracy", "balanced_accuracy", "macro_auroc", *per_class)


def weighted_metrics(predictions: Predictions) -> Callable[[Weights], Values]:
    """A function from weights (R, N) to metric values (R, M), columns as `metric_names`.

    `accuracy` counts images; `balanced_accuracy` is the mean recall over all classes; `auroc:NAME`
    ranks by the probability of NAME, that class against the rest; `macro_auroc` is the mean of
    these, for two classes the AUROC of the second (the same number but for rounding).
    A value whose denominator is empty is NaN, and so is every mean that it enters.
    """
    every_class = np.arange(len(predictions.classes))
    labelled = (predictions.labels[:, None] == every_class).astype(np.float64)  # (N, K)
    predicted = (predictions.predicted[:, None] == every_class).astype(np.float64)  # (N, K)
    aurocs = [
        _weighted_auroc(predictions.probabilities[:, k], predictions.labels == k)
        for k in every_class
    ]

    def values(weights: Weights) -> Values:
        of_class = weights @ labelled  # (R, K)
        hits = weights @ (labelled * predicted)  # (R, K)
        recall = _ratio(hits, of_class)
        precision = _ratio(hits, weights @ predicted)
        auroc = np.stack([of(weights) for of in aurocs], axis=1)  # (R, K)
        means = (
            _ratio(hits.sum(axis=1), weights.sum(axis=1)),
            recall.mean(axis=1),
            auroc[:, 1] if len(every_class) == 2 else auroc.mean(axis=1),
        )
        return np.concatenate([np.stack(means, axis=1), precision, recall, auroc], axis=1)

    return values


def point_metrics(predictions: Predictions) -> dict[str, float | None]:
    """Every metric, each image counting once; None where it is not defined."""
    (row,) = weighted_metrics(predictions)(np.ones((1, len(predictions))))
    names = metric_names(predictions.classes)
    return {name: None if np.isnan(x) else float(x) for name, x in zip(names, row, strict=True)}


def confusion_matrix(predictions: Predictions) -> NDArray[np.int64]:
    """(K, K) number of images: a row per true class, a column per predicted class."""
    classes = len(predictions.classes)
    cell = predictions.labels.astype(np.intp) * classes + predictions.predicted
    counts = np.bincount(cell, minlength=classes * classes).astype(np.int64)
    return counts.reshape(classes, classes)


def _weighted_auroc(
    scores: NDArray[np.floating], positive: NDArray[np.bool_]
) -> Callable[[Weights], NDArray[np.float64]]:
    """The chance that a positive outranks a negative, from weights (R, N) to (R,); sorts once."""
    positives = np.flatnonzero(positive)
    negatives = np.flatnonzero(~positive)
    negatives = negatives[np.argsort(scores[negatives], kind="stable")]
    below = np.searchsorted(scores[negatives], scores[positives], side="left")
    not_above = np.searchsorted(scores[negatives], scores[positives], side="right")

    def auroc(weights: Weights) -> NDArray[np.float64]:
        of_positive = weights[:, positives]
        up_to = np.zeros((len(weights), len(negatives) + 1))  # [r, n]: weight of the n lowest
        np.cumsum(weights[:, negatives], axis=1, out=up_to[:, 1:])
        wins = np.einsum("ri,ri->r", of_positive, up_to[:, below] + up_to[:, not_above]) / 2
        return _ratio(wins, of_positive.sum(axis=1) * up_to[:, -1])

    return auroc


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """part / whole, NaN where there is no whole."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)

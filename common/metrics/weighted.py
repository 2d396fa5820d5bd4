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
    kinds = ("precision", "recall", "specificity", "auroc")
    per_class = [f"{kind}:{name}" for kind in kinds for name in classes]
    return ("accuracy", "balanced_accuracy", "macro_auroc", *per_class)


def weighted_metrics(predictions: Predictions) -> Callable[[Weights], Values]:
    """A function from weights (R, N) to metric values (R, M), columns as `metric_names`.

    Each class against the rest: `precision:NAME`, `recall:NAME` (sensitivity), `specificity:NAME`
    and `auroc:NAME`, which ranks by the probability of NAME. Over all of them:

    | metric | multi-class | multi-label |
    |---|---|---|
    | `accuracy` | share of right images | share of right decisions over all labels |
    | `balanced_accuracy` | mean recall | mean of (recall + specificity) / 2 |
    | `macro_auroc` | mean AUROC (of two classes the second, equal but rounding) | mean AUROC |

    A value whose denominator is empty is NaN, and so is every mean that it enters.
    """
    multi_label = predictions.multi_label
    labelled, predicted = predictions.labelled, predictions.predicted  # (N, K)
    agreed = labelled == predicted
    right = agreed.mean(axis=1) if multi_label else agreed.all(axis=1).astype(np.float64)  # (N,)
    of_class, not_of_class, as_class, hits, rejections = (
        matrix.astype(np.float64)
        for matrix in (labelled, ~labelled, predicted, labelled & predicted, ~labelled & ~predicted)
    )
    aurocs = [
        _weighted_auroc(predictions.probabilities[:, k], labelled[:, k])
        for k in range(len(predictions.classes))
    ]

    def values(weights: Weights) -> Values:
        hit = weights @ hits  # (R, K), as all below
        precision = _ratio(hit, weights @ as_class)
        recall = _ratio(hit, weights @ of_class)
        specificity = _ratio(weights @ rejections, weights @ not_of_class)
        auroc = np.stack([of(weights) for of in aurocs], axis=1)
        balanced = (recall + specificity) / 2 if multi_label else recall
        means = (
            _ratio(weights @ right, weights.sum(axis=1)),
            balanced.mean(axis=1),
            auroc[:, 1] if len(aurocs) == 2 and not multi_label else auroc.mean(axis=1),
        )
        per_class = (precision, recall, specificity, auroc)
        return np.concatenate([np.stack(means, axis=1), *per_class], axis=1)

    return values


def point_metrics(predictions: Predictions) -> dict[str, float | None]:
    """Every metric, each image counting once; None where it is not defined."""
    (row,) = weighted_metrics(predictions)(np.ones((1, len(predictions))))
    names = metric_names(predictions.classes)
    return {name: None if np.isnan(x) else float(x) for name, x in zip(names, row, strict=True)}


def confusion_matrix(predictions: Predictions) -> NDArray[np.int64]:
    """Numbers of images: a row per truth, a column per prediction.

    Multi-class (K, K), the classes in order; multi-label (K, 2, 2), for each label without and with
    it, as in scikit-learn's `multilabel_confusion_matrix`.
    """
    truth, said = predictions.labelled.astype(np.int64), predictions.predicted.astype(np.int64)
    if not predictions.multi_label:
        return truth.T @ said
    counts: NDArray[np.int64]
    counts = np.einsum("ink,jnk->kij", np.stack([1 - truth, truth]), np.stack([1 - said, said]))
    return counts


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

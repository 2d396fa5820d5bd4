"""Every metric against scikit-learn, with and without weights, ties and missing classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from common.metrics import Predictions, confusion_matrix, metric_names, point_metrics
from common.metrics.weighted import weighted_metrics


def drawn(seed: int, *, images: int, classes: int, decimals: int = 1) -> Predictions:
    """Random predictions whose rounded scores tie often."""
    random = np.random.default_rng(seed)
    scores = np.round(random.random((images, classes)), decimals) + 0.1
    return Predictions(
        labels=random.integers(classes, size=images),
        probabilities=scores / scores.sum(axis=1, keepdims=True),
        patients=np.arange(images),
        sites=np.full(images, "here"),
        classes=tuple(f"c{k}" for k in range(classes)),
    )


def by_sklearn(given_: Predictions, rows: np.ndarray) -> dict[str, float]:
    """The metrics of explicitly repeated rows, as scikit-learn computes them; needs all classes."""
    labels, probabilities = given_.labels[rows], given_.probabilities[rows]
    predicted = probabilities.argmax(axis=1)
    every = list(range(len(given_.classes)))
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
    }
    precision = precision_score(labels, predicted, labels=every, average=None, zero_division=np.nan)
    recall = recall_score(labels, predicted, labels=every, average=None)
    aurocs = [roc_auc_score(labels == k, probabilities[:, k]) for k in every]
    expected["macro_auroc"] = aurocs[1] if len(every) == 2 else float(np.mean(aurocs))
    for k, name in enumerate(given_.classes):
        expected[f"precision:{name}"] = precision[k]
        expected[f"recall:{name}"] = recall[k]
        expected[f"auroc:{name}"] = aurocs[k]
    return expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(5, 60))
def test_weights_are_repeated_rows(seed: int, classes: int, images: int) -> None:
    """Every metric under integer weights is scikit-learn's on the rows repeated that often."""
    given_ = drawn(seed, images=images, classes=classes)
    weights = np.random.default_rng(seed).integers(0, 3, size=images)
    rows = np.repeat(np.arange(images), weights)
    if len(np.unique(given_.labels[rows])) < classes:
        return
    (values,) = weighted_metrics(given_)(weights[None].astype(np.float64))
    expected = by_sklearn(given_, rows)
    for name, value in zip(metric_names(given_.classes), values, strict=True):
        assert value == pytest.approx(expected[name], abs=1e-12, nan_ok=True), name


def test_auroc_is_the_share_of_pairs_won() -> None:
    """A tie between a positive and a negative counts one half."""
    scores = np.array([0.2, 0.5, 0.5, 0.9])
    given_ = Predictions(
        labels=np.array([0, 1, 0, 1]),
        probabilities=np.stack([1 - scores, scores], axis=1),
        patients=np.arange(4),
        sites=np.full(4, "here"),
        classes=("n", "p"),
    )
    values = point_metrics(given_)
    assert values["macro_auroc"] == values["auroc:p"] == values["auroc:n"] == 3.5 / 4


def test_many_classes_match_the_one_vs_rest_mean() -> None:
    """Macro AUROC is scikit-learn's one-vs-rest macro mean."""
    given_ = drawn(3, images=200, classes=4, decimals=6)
    expected = roc_auc_score(
        given_.labels, given_.probabilities, multi_class="ovr", average="macro"
    )
    assert point_metrics(given_)["macro_auroc"] == pytest.approx(expected, abs=1e-12)


def test_confusion_matrix_has_true_classes_in_rows() -> None:
    """Row i, column j counts the images of class i predicted as j, in small dtypes too."""
    given_ = drawn(5, images=300, classes=20)
    small = replace(given_, labels=given_.labels.astype(np.uint8))
    expected = sklearn_confusion_matrix(given_.labels, given_.predicted, labels=range(20))
    assert np.array_equal(confusion_matrix(small), expected)


def test_a_missing_class_makes_its_metrics_undefined() -> None:
    """Without an image of a class its recall and AUROC, and the means over classes, are None."""
    given_ = Predictions(
        labels=np.array([0, 1, 0]),
        probabilities=np.array([[0.8, 0.2, 0.0], [0.3, 0.7, 0.0], [0.4, 0.6, 0.0]]),
        patients=np.arange(3),
        sites=np.full(3, "here"),
        classes=("a", "b", "c"),
    )
    values = point_metrics(given_)
    undefined = {name for name, value in values.items() if value is None}
    assert undefined == {"balanced_accuracy", "macro_auroc", "precision:c", "recall:c", "auroc:c"}
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["precision:a"] == 1.0


def test_a_single_class_has_no_auroc() -> None:
    """Where every image is of one class nothing can be ranked, and nothing is raised."""
    given_ = Predictions(
        labels=np.array([1, 1]),
        probabilities=np.array([[0.2, 0.8], [0.6, 0.4]]),
        patients=np.arange(2),
        sites=np.full(2, "here"),
        classes=("a", "b"),
    )
    values = point_metrics(given_)
    assert values["macro_auroc"] is values["auroc:a"] is values["auroc:b"] is None
    assert values["recall:b"] == 0.5


def test_no_images_have_no_metrics() -> None:
    """A site without test patients gives None everywhere."""
    nobody = drawn(1, images=0, classes=2)
    assert set(point_metrics(nobody).values()) == {None}
    assert confusion_matrix(nobody).tolist() == [[0, 0], [0, 0]]

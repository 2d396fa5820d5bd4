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
    multilabel_confusion_matrix,
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


def drawn_labels(seed: int, *, images: int, classes: int, decimals: int = 1) -> Predictions:
    """The same for a multi-label task, with probabilities of 0, 0.5 and 1 among them."""
    random = np.random.default_rng(seed)
    return replace(
        drawn(seed, images=images, classes=max(classes, 2)),
        labels=random.integers(2, size=(images, classes)),
        probabilities=np.round(random.random((images, classes)), decimals),
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
        expected[f"specificity:{name}"] = recall_score(labels != k, predicted != k)
        expected[f"auroc:{name}"] = aurocs[k]
    return expected


def labels_by_sklearn(given_: Predictions, rows: np.ndarray) -> dict[str, float]:
    """The multi-label metrics of explicitly repeated rows; needs every label with and without."""
    labels, probabilities = given_.labels[rows], given_.probabilities[rows]
    said = (probabilities >= 0.5).astype(int)
    every = range(len(given_.classes))
    expected = {
        "accuracy": accuracy_score(labels.ravel(), said.ravel()),
        "balanced_accuracy": float(
            np.mean([balanced_accuracy_score(labels[:, k], said[:, k]) for k in every])
        ),
        "macro_auroc": roc_auc_score(labels, probabilities, average="macro"),
    }
    for k, name in enumerate(given_.classes):
        true, ours = labels[:, k], said[:, k]
        expected[f"precision:{name}"] = precision_score(true, ours, zero_division=np.nan)
        expected[f"recall:{name}"] = recall_score(true, ours)
        expected[f"specificity:{name}"] = recall_score(true, ours, pos_label=0)
        expected[f"auroc:{name}"] = roc_auc_score(true, probabilities[:, k])
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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(5, 60))
def test_labels_are_each_against_their_absence(seed: int, classes: int, images: int) -> None:
    """Every multi-label metric under integer weights is scikit-learn's on the repeated rows."""
    given_ = drawn_labels(seed, images=images, classes=classes)
    weights = np.random.default_rng(seed).integers(0, 3, size=images)
    rows = np.repeat(np.arange(images), weights)
    if not len(rows) or (given_.labels[rows] == given_.labels[rows[0]]).all(axis=0).any():
        return
    (values,) = weighted_metrics(given_)(weights[None].astype(np.float64))
    expected = labels_by_sklearn(given_, rows)
    assert list(expected)[:3] == list(metric_names(given_.classes))[:3]
    for name, value in zip(metric_names(given_.classes), values, strict=True):
        assert value == pytest.approx(expected[name], abs=1e-12, nan_ok=True), name


def test_two_labels_are_no_two_classes() -> None:
    """The macro AUROC of two labels is their mean, of two classes that of the second."""
    given_ = drawn_labels(4, images=40, classes=2)
    values = point_metrics(given_)
    aurocs = (values["auroc:c0"], values["auroc:c1"])
    assert aurocs[0] != aurocs[1]
    assert values["macro_auroc"] == pytest.approx(np.mean(aurocs))


def test_one_label_is_a_task() -> None:
    """A single label gives the metrics of yes or no, and its share of right decisions."""
    given_ = replace(
        drawn(0, images=5, classes=2),
        labels=np.array([[1], [1], [0], [0], [0]]),
        probabilities=np.array([[0.9], [0.4], [0.5], [0.1], [0.4]]),
        classes=("acl",),
    )
    assert point_metrics(given_) == pytest.approx(
        {
            "accuracy": 3 / 5,
            "balanced_accuracy": (1 / 2 + 2 / 3) / 2,
            "macro_auroc": 4.5 / 6,
            "precision:acl": 1 / 2,
            "recall:acl": 1 / 2,
            "specificity:acl": 2 / 3,
            "auroc:acl": 4.5 / 6,
        }
    )


def test_a_label_that_all_have_is_not_ranked() -> None:
    """Without an image that lacks a label there is no AUROC and no specificity; the rest stays."""
    given_ = drawn_labels(5, images=30, classes=2)
    labels = given_.labels.copy()
    labels[:, 0] = 1
    values = point_metrics(replace(given_, labels=labels))
    undefined = {name for name, value in values.items() if value is None}
    assert undefined == {"balanced_accuracy", "macro_auroc", "specificity:c0", "auroc:c0"}


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
    said = given_.probabilities.argmax(axis=1)
    expected = sklearn_confusion_matrix(given_.labels, said, labels=range(20))
    assert np.array_equal(confusion_matrix(small), expected)


def test_confusion_of_labels_is_a_table_for_each() -> None:
    """A label's 2 x 2 counts have truth in rows and prediction in columns, first without it."""
    given_ = drawn_labels(6, images=300, classes=3)
    small = replace(given_, labels=given_.labels.astype(np.uint8))
    expected = multilabel_confusion_matrix(given_.labels, given_.probabilities >= 0.5)
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
    assert values["specificity:c"] == 1.0
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
    unlabelled = drawn_labels(1, images=0, classes=2)
    assert set(point_metrics(unlabelled).values()) == {None}
    assert confusion_matrix(unlabelled).tolist() == [[[0, 0], [0, 0]]] * 2

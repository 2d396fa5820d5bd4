"""What counts as predictions, and how sites, subgroups and parts are taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.errors import BadInput
from common.metrics import Predictions, concatenate


def predictions(**changed: Any) -> Predictions:
    """Four images of three patients at two sites, with one field changed."""
    fields: dict[str, Any] = {
        "labels": np.array([0, 1, 1, 0]),
        "probabilities": np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]]),
        "patients": np.array(["p", "q", "q", "p"]),
        "sites": np.array(["north", "north", "north", "south"]),
        "classes": ("healthy", "fibrosis"),
        "groups": {"sex": np.array(["F", "M", "M", "F"])},
    }
    return Predictions(**(fields | changed))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"labels": np.array([0, 1, 2, 0])}, r"labels must lie in 0\.\.1"),
        ({"labels": np.array([0, 1, -1, 0])}, r"labels must lie in 0\.\.1"),
        ({"labels": np.array([0.0, 1.0, 1.0, 0.0])}, "labels must be integers"),
        ({"patients": np.array(["p", "q"])}, r"patients must have shape \(4,\), got \(2,\)"),
        ({"sites": np.array([["north"]] * 4)}, r"sites must have shape \(4,\)"),
        ({"groups": {"sex": np.array(["F"])}}, r"group sex must have shape \(4,\)"),
        ({"probabilities": np.ones((4, 3)) / 3}, r"must have shape \(4, 2\), got \(4, 3\)"),
        ({"probabilities": np.full((4, 2), np.nan)}, "must be finite"),
        ({"probabilities": np.full((4, 2), 0.5002)}, "sum to 1 within 0.0001"),
        ({"probabilities": np.array([[1.1, -0.1]] * 4)}, "non-negative"),
        ({"classes": ("same", "same")}, "two different class names"),
        ({"classes": ("one",)}, "two different class names"),
        ({"labels": np.array([[0, 1]] * 3)}, r"patients must have shape \(3,\)"),
        ({"labels": np.zeros((4, 2, 1), dtype=int)}, r"multi-label, \(4, 2\), got \(4, 2, 1\)"),
    ],
)
def test_refuses_what_cannot_be_evaluated(changed: dict[str, Any], sentence: str) -> None:
    """Wrong lengths, labels, probabilities or classes are refused with what was expected."""
    with pytest.raises(BadInput, match=sentence):
        predictions(**changed)


def exams(**changed: Any) -> Predictions:
    """Three exams with two labels, with one field changed."""
    fields: dict[str, Any] = {
        "labels": np.array([[1, 0], [0, 0], [1, 1]]),
        "probabilities": np.array([[0.9, 0.9], [0.4, 0.5], [0.0, 1.0]]),
        "patients": np.array(["p", "q", "r"]),
        "sites": np.array(["north", "north", "south"]),
        "classes": ("abnormal", "acl"),
        "unit": "exam",
    }
    return Predictions(**(fields | changed))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"labels": np.array([[2, 0], [0, 0], [1, 1]])}, r"labels must lie in 0\.\.1"),
        ({"labels": np.array([[-1, 0], [0, 0], [1, 1]])}, r"labels must lie in 0\.\.1"),
        ({"labels": np.array([[1.0, 0], [0, 0], [1, 1]])}, "labels must be integers"),
        ({"labels": np.array([[1], [0], [1]])}, r"\(3, 2\), got \(3, 1\)"),
        ({"probabilities": np.full((3, 2), 1.001)}, r"must lie in \[0, 1\] \(apply a sigmoid"),
        ({"probabilities": np.full((3, 2), -0.001)}, r"must lie in \[0, 1\]"),
        ({"probabilities": np.full((3, 2), np.nan)}, "must be finite"),
        ({"probabilities": np.full((3, 3), 0.1)}, r"must have shape \(3, 2\), got \(3, 3\)"),
        ({"classes": ("same", "same")}, "one class name, none twice"),
    ],
)
def test_refuses_labels_that_cannot_be_evaluated(changed: dict[str, Any], sentence: str) -> None:
    """Multi-label ones too: labels other than 0 and 1, probabilities outside [0, 1]."""
    with pytest.raises(BadInput, match=sentence):
        exams(**changed)


def test_a_label_is_said_from_one_half_on() -> None:
    """Each label is decided for itself: none, one or all of a row; 0.5 says yes."""
    assert exams().multi_label
    assert exams().predicted.tolist() == [[True, True], [False, True], [False, True]]
    assert exams().labelled.tolist() == [[True, False], [False, False], [True, True]]


def test_of_classes_exactly_one_is_said() -> None:
    """Multi-class, a row has one true class and one predicted: of equals the first."""
    assert not predictions().multi_label
    assert predictions().labelled.argmax(axis=1).tolist() == [0, 1, 1, 0]
    assert predictions().predicted.sum(axis=1).tolist() == [1, 1, 1, 1]
    assert predictions().predicted.argmax(axis=1).tolist() == [0, 1, 0, 0]


def test_parts_keep_task_and_unit() -> None:
    """A selection of exams, an empty one too, is still one of exams with several labels."""
    parts = [exams().at_site(name) for name in ("nowhere", "south", "north")]
    joined = concatenate(parts)
    assert (joined.multi_label, joined.unit, len(joined)) == (True, "exam", 3)
    assert joined.labels.tolist() == [[1, 1], [1, 0], [0, 0]]


def test_tasks_and_units_are_not_mixed() -> None:
    """Classes with labels, or patients with exams, are refused."""
    classes = predictions(classes=("abnormal", "acl"), groups={})
    with pytest.raises(BadInput, match="one task and one unit"):
        concatenate([classes, exams(unit="patient")])
    with pytest.raises(BadInput, match="one task and one unit"):
        concatenate([exams(), exams(unit="patient")])


def test_collects_every_problem() -> None:
    """Two faults are reported in one sentence."""
    with pytest.raises(BadInput, match=r"labels must lie.*probabilities must be finite"):
        predictions(labels=np.array([7, 0, 0, 0]), probabilities=np.full((4, 2), np.inf))


def test_same_key_at_two_sites_is_two_patients() -> None:
    """Patient p of the north and patient p of the south are different people."""
    assert predictions().patient_index.tolist() == [0, 1, 1, 2]


def test_takes_the_images_of_a_site_and_of_a_subgroup() -> None:
    """A selection keeps order and takes every column along."""
    north = predictions().at_site("north")
    assert north.labels.tolist() == [0, 1, 1]
    assert north.groups["sex"].tolist() == ["F", "M", "M"]
    women = predictions().in_group("sex", "F")
    assert women.sites.tolist() == ["north", "south"]


def test_an_unknown_subgroup_column_is_named() -> None:
    """A column that the data do not have is refused with those it has."""
    with pytest.raises(BadInput, match=r"known: sex.*got 'age'"):
        predictions().in_group("age", "60")


def test_concatenation_undoes_the_split_by_site() -> None:
    """The sites' parts in order of name give back the whole."""
    whole = predictions()
    joined = concatenate([whole.at_site(name) for name in whole.site_names])
    for column in ("labels", "probabilities", "patients", "sites"):
        assert np.array_equal(getattr(joined, column), getattr(whole, column))
    assert joined.groups["sex"].tolist() == whole.groups["sex"].tolist()


def test_concatenation_refuses_parts_that_do_not_match() -> None:
    """Other classes, other columns, or nothing at all are refused."""
    with pytest.raises(BadInput, match="same ordered classes"):
        concatenate([predictions(), predictions(classes=("fibrosis", "healthy"))])
    with pytest.raises(BadInput, match="same subgroup columns"):
        concatenate([predictions(), predictions(groups={})])
    with pytest.raises(BadInput, match="got none"):
        concatenate([])

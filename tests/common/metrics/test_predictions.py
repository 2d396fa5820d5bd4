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
    ],
)
def test_refuses_what_cannot_be_evaluated(changed: dict[str, Any], sentence: str) -> None:
    """Wrong lengths, labels, probabilities or classes are refused with what was expected."""
    with pytest.raises(BadInput, match=sentence):
        predictions(**changed)


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

"""Every quantity that could leave is decided, and the words are the same everywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from common.config import Metric
from common.messages import Reply
from common.privacy.epsilon import Unit
from common.privacy.not_covered import (
    DECIDED,
    NOT_COVERED,
    Decision,
    NotCovered,
    names_not_covered,
    not_covered,
)
from common.statement import Statement

README = Path(__file__).parents[3] / "common" / "privacy" / "README.md"


def test_every_field_that_can_leave_is_decided_once() -> None:
    """A new metric, or a new field of a reply or a statement, fails here until it is decided."""
    fields = [f"Reply.{field.name}" for field in dataclasses.fields(Reply)]
    fields += [f"Statement.{name}" for name in Statement.model_fields]
    fields += [f"Metric.{name}" for name in get_args(Metric)]
    carried = [field for one in DECIDED for field in one.carries]
    assert sorted(carried) == sorted(fields)


def test_what_is_not_covered_is_what_reports_list() -> None:
    """The decisions of that kind are exactly the names that statements may carry."""
    open_ones = [one.name for one in DECIDED if one.decision is Decision.NOT_COVERED]
    assert open_ones == [name.value for name in NotCovered]
    assert set(NOT_COVERED) == set(NotCovered)


@pytest.mark.parametrize("quantity", ["count", "loss", "class weights", "normalisation", "best"])
def test_the_usual_leaks_are_shut(quantity: str) -> None:
    """Counts, losses, class weights, statistics and the best round are off or public."""
    found = {one.decision for one in DECIDED if quantity in one.name and not one.carries}
    assert found <= {Decision.OFF, Decision.PUBLIC}
    assert found


def test_a_weaker_unit_leaves_more_open() -> None:
    """Several exams or images of a patient are named where only one of them is hidden."""
    patient = names_not_covered(Unit.PATIENT)
    assert names_not_covered(Unit.EXAM) == (*patient, NotCovered.SEVERAL_EXAMS)
    assert names_not_covered(Unit.IMAGE) == (*patient, NotCovered.SEVERAL_IMAGES)


@pytest.mark.parametrize("unit", Unit)
def test_people_read_a_sentence_for_each_name(unit: Unit) -> None:
    """In the order of the names."""
    assert not_covered(unit) == tuple(NOT_COVERED[name] for name in names_not_covered(unit))


def test_the_readme_has_the_whole_table() -> None:
    """A line for each decision, word for word."""
    lines = README.read_text().splitlines()
    for one in DECIDED:
        assert f"| {one.name} | {one.decision} | {one.why} |" in lines

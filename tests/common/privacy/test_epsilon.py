"""An epsilon always says what it means."""

from __future__ import annotations

import dataclasses
import math

import pytest

from common.privacy.epsilon import Epsilon, Randomness, TrustModel, Unit, rounded_up

SEEDED = Epsilon(value=7.9812, delta=1e-5, unit=Unit.PATIENT, randomness=Randomness.SEEDED)


@pytest.mark.parametrize(
    "shown", [str(SEEDED), repr(SEEDED), f"{SEEDED}", f"{SEEDED:.2f}", f"{[SEEDED]}"]
)
def test_every_way_of_printing_shows_all_of_it(shown: str) -> None:
    """Value, unit, delta, adjacency, trust model and guarantee appear however it is printed."""
    for part in (
        "epsilon 7.99 per patient",
        "delta 1e-05",
        "add/remove one patient",
        "local: the site adds its noise itself",
        "guarantee: none (seeded)",
    ):
        assert part in shown


def test_it_is_no_number() -> None:
    """The bare number can't be had by accident."""
    with pytest.raises(TypeError):
        float(SEEDED)  # type: ignore[arg-type]  # that is the point


def test_only_secret_randomness_promises_anything() -> None:
    """The guarantee names the unit when the randomness was secret."""
    secret = dataclasses.replace(SEEDED, unit=Unit.EXAM, randomness=Randomness.SECRET)
    assert "guarantee: differential privacy per exam" in str(secret)
    assert "add/remove one exam" in str(secret)


def test_an_image_s_promise_says_what_it_is_not() -> None:
    """Where images are hidden, whoever reads the number learns that patients are hidden less."""
    for randomness in Randomness:
        image = dataclasses.replace(SEEDED, unit=Unit.IMAGE, randomness=randomness)
        for said in (str(image), str(image.as_json()["adjacency"])):
            assert "one of the images taken" in said
            assert "a patient with several is hidden far less" in said


def test_a_table_rounds_up_too() -> None:
    """Where the conditions stand beside a table, its numbers are still upper bounds."""
    assert rounded_up(7.991) == "8.00"


@pytest.mark.parametrize(
    ("value", "shown"), [(8.0, "8.0"), (7.9812, "7.99"), (0.0, "0.0"), (1234.5, "1240")]
)
def test_it_rounds_up(value: float, shown: str) -> None:
    """What is printed is never less than what was spent."""
    assert str(dataclasses.replace(SEEDED, value=value)).startswith(f"epsilon {shown} per")


def test_json_form_holds_the_whole_statement() -> None:
    """The JSON object has one entry for each part of the statement."""
    central = dataclasses.replace(SEEDED, trust_model=TrustModel.CENTRAL)
    assert central.as_json() == {
        "epsilon": 7.9812,
        "delta": 1e-5,
        "unit": "patient",
        "adjacency": "add/remove one patient",
        "trust_model": TrustModel.CENTRAL.value,
        "randomness": "seeded",
        "guarantee": "none (seeded)",
    }


@pytest.mark.parametrize(("value", "delta"), [(-1, 1e-5), (math.inf, 1e-5), (1, 0), (1, 1)])
def test_impossible_statements_are_refused(value: float, delta: float) -> None:
    """A negative or infinite epsilon, or a delta outside (0, 1), is not a statement."""
    with pytest.raises(ValueError, match=r"epsilon|delta"):
        dataclasses.replace(SEEDED, value=value, delta=delta)

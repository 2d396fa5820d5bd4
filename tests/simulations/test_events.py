"""Show 5 of issue 5: sites that refuse, withdraw, stay away; the study ends without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simulations
from common.config import load_study
from server.checkpoint import read_history
from simulations.result import RunResult

pytestmark = pytest.mark.usefixtures("no_report")

ROUNDS = 6
SITES = {"east": 8, "north": 8, "south": 8, "west": 8}
PRIVATE = (
    f"training.rounds={ROUNDS}",
    "privacy.enabled=true",
    "privacy.target_epsilon=8",
    "federation.min_sites=1",
)
WEST = "simulation.sites.west.budget={epsilon: 7.0}"  # three of six rounds, by the ledger's filter
NORTH = "simulation.sites.north.withdraws_before_round=3"
SOUTH = "simulation.sites.south.policy={approval: manual}"


def run(folder: Path, name: str, *changes: str) -> tuple[RunResult, list[dict[str, Any]]]:
    """A run of the tiny study without baselines, and its history."""
    study = load_study(folder / "study.yaml", (*PRIVATE, *changes))
    result = simulations.run(study, out=folder / name, baselines=False)
    return result, [dict(line) for line in read_history(folder / name / "history.jsonl")]


def test_a_study_ends_without_those_who_refuse(tmp_path: Path, write_tiny: Any) -> None:
    """The history says who and why; the weights are those of a run with whoever took part."""
    folder = write_tiny(tmp_path / "tiny", SITES)
    result, lines = run(folder, "refused", WEST, NORTH, SOUTH)
    *rounds, closing = lines
    assert [line["joined"] for line in rounds] == [
        ["east", "north", "west"],
        ["east", "north", "west"],
        ["east", "west"],
        ["east"],
        ["east"],
        ["east"],
    ]
    codes = [{site: why.split(":")[0] for site, why in one["left_out"].items()} for one in lines]
    unapproved, withdrawn = {"south": "not-approved"}, {"north": "withdrawn"}
    assert codes[:2] == [unapproved] * 2
    assert codes[2] == unapproved | withdrawn
    assert codes[3:6] == [unapproved | withdrawn | {"west": "over-budget"}] * 3
    assert codes[6] == unapproved | withdrawn  # evaluating costs nothing
    assert closing["without_statement"].keys() == {"south"}
    assert [result.sites[site]["rounds_joined"] for site in SITES] == [6, 2, 0, 3]

    east, north, south, west = (result.sites[site]["epsilon"] for site in SITES)
    assert south == 0 < north < west < 7 < east <= 8

    absent = [
        f"simulation.sites.north.absent_rounds={[*range(3, ROUNDS + 2)]}",
        f"simulation.sites.west.absent_rounds={[*range(4, ROUNDS + 1)]}",
    ]
    three = write_tiny(tmp_path / "three", {site: 8 for site in SITES if site != "south"})
    # A picture follows from its site's place: the same ones in both folders.
    for path in (three / "images").glob("west-*.png"):
        path.write_bytes((folder / "images" / path.name).read_bytes())
    other, others = run(three, "absent", *absent)
    assert [line.get("joined") for line in others] == [line.get("joined") for line in lines]
    assert others[3]["left_out"] == {"north": "not reachable", "west": "not reachable"}
    assert other.weights_sha256 == result.weights_sha256
    assert [one["weights_sha256"] for one in others] == [one["weights_sha256"] for one in lines]
    for site in ("east", "north", "west"):
        mine, theirs = result.predictions["federated"], other.predictions["federated"]
        assert np.array_equal(
            mine.probabilities[mine.sites == site], theirs.probabilities[theirs.sites == site]
        )


def test_a_simulated_budget_that_ends_early_is_said(
    tmp_path: Path, write_tiny: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A hospital with its default policy would refuse such a study: the data scientist reads it."""
    folder = write_tiny(tmp_path / "tiny", {"east": 8, "west": 8})
    with caplog.at_level("WARNING", "fedward"):
        run(folder, "short", WEST)
    assert "site west: its budget lasts for 3 of 6 rounds" in caplog.text
    assert "site east" not in caplog.text


def test_a_simulated_hospital_refuses_at_the_start_like_a_real_one(
    tmp_path: Path, write_tiny: Any
) -> None:
    """Where its policy asks for whole studies, not one round is trained, nor charged."""
    folder = write_tiny(tmp_path / "tiny", {"east": 8, "west": 8})
    whole = "simulation.sites.west.policy={whole_studies: required}"
    result, lines = run(folder, "whole", "simulation.sites.west.budget={epsilon: 8}", whole)
    assert [line["joined"] for line in lines[:-1]] == [["east"]] * ROUNDS
    assert result.sites["west"]["epsilon"] == 0


@pytest.mark.parametrize("folds", [None, 3])
def test_a_withdrawal_is_for_good(tmp_path: Path, write_tiny: Any, folds: int | None) -> None:
    """A site that is gone doesn't come back, in no later round and no later model."""
    folder = write_tiny(tmp_path / "tiny", {"east": 8, "west": 8})
    changes = ["training.rounds=2", "privacy.enabled=false"]
    changes += ["simulation.sites.west.withdraws_before_round=2"]
    changes += [] if folds is None else [f"data.folds={folds}"]
    study = load_study(folder / "study.yaml", changes)
    simulations.run(study, out=folder / "run", baselines=False)
    joined = [
        line["joined"]
        for path in sorted((folder / "run").rglob("history.jsonl"))
        for line in read_history(path)
        if "joined" in line
    ]
    assert joined == [["east", "west"], ["east"], *[["east"]] * (0 if folds is None else 4)]

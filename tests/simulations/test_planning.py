"""The price of privacy on paper: the accountant's own numbers, for every site, before anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import load_study
from common.errors import BadInput
from common.privacy.accounting import epsilon_spent
from simulations.planning import StudyPlan, plan_study

PRIVATE = "privacy.enabled=true"


def planned(tiny: Path, *changes: str) -> StudyPlan:
    """The plan of the tiny study under privacy."""
    return plan_study(load_study(tiny / "study.yaml", [PRIVATE, *changes]))


def test_the_numbers_are_the_accountants(tiny: Path) -> None:
    """Sigma meets the target over all rounds; epsilons are those of the steps that are taken."""
    for site in planned(tiny, "privacy.target_epsilon=4").as_json()["sites"].values():
        sigma, rate = site["noise_multiplier"], site["sampling_rate"]
        for key, steps in (("one_round", 2), ("all_rounds", 4)):
            found = site[key]["epsilon"]
            assert found == epsilon_spent([(sigma, rate, steps)], delta=1e-5)
        assert 3.9 < site["all_rounds"]["epsilon"] <= 4
        # 10 declared, three quarters of them on the training side, half of these in a step.
        assert site["expected_patients_per_step"] == pytest.approx(3.75)
        assert site["all_folds"] is None


def test_no_epsilon_without_its_conditions(tiny: Path) -> None:
    """Each epsilon comes with unit, delta, adjacency, trust model and source of randomness."""
    plan = planned(tiny)
    for site in plan.as_json()["sites"].values():
        for key in ("one_round", "all_rounds"):
            conditions = {"unit", "delta", "adjacency", "trust_model", "randomness", "guarantee"}
            assert conditions <= set(site[key])
    text = plan.text()
    for expected in ("patient", "delta 1e-05", "add/remove", "local", "none (seeded)", "real data"):
        assert expected in text


def test_folds_cost_more_together(tiny: Path) -> None:
    """With folds, the plan says what all models together would cost."""
    plan = planned(tiny, "data.folds=4")
    site = plan.as_json()["sites"]["north"]
    together = epsilon_spent([(site["noise_multiplier"], 0.5, 4 * 3)], delta=1e-5)
    assert site["all_folds"]["epsilon"] == together > site["all_rounds"]["epsilon"]
    assert "trains 4 models" in plan.text()


def test_nothing_to_plan_without_privacy(tiny: Path) -> None:
    """A study without privacy is refused, with the switch that turns it on."""
    with pytest.raises(BadInput, match=r"--set privacy\.enabled=true"):
        plan_study(load_study(tiny / "study.yaml"))


@pytest.mark.parametrize("change", ["privacy.target_delta=1e-4", "privacy.target_delta=0.01"])
def test_a_delta_above_the_ceiling_is_refused(tiny: Path, change: str) -> None:
    """Delta is at most 1e-5, whatever the study says."""
    with pytest.raises(BadInput, match=r"target_delta.*at most 1e-05"):
        planned(tiny, change)


def test_a_delta_too_large_for_one_site_is_refused(tiny: Path) -> None:
    """Delta is at most a tenth of 1 / patients at each site, with the reason."""
    with pytest.raises(BadInput, match="at most 5e-06 for 20000 declared patients"):
        planned(tiny, "simulation.sites.west.declared_patients=20000")

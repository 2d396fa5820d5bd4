"""The price of privacy on paper: the accountant's own numbers, for every site, before anything."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from common.config import load_study
from common.errors import BadInput
from common.privacy.accounting import epsilon_spent, noise_multiplier_for
from common.privacy.lifetime import lifetime_epsilon
from common.privacy.mechanism import Mechanism
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


def test_the_rounds_left_are_the_last_that_fit(tiny: Path) -> None:
    """One round more than what is left would be beyond the cap; what was spent before counts."""
    study = load_study(tiny / "study.yaml", [PRIVATE, "privacy.target_epsilon=2"])
    before = (Mechanism(3.0, 0.1, 100),)
    sites = plan_study(study, spent={"west": before}).as_json()["sites"]
    assert sites["north"]["budget"]["spent"]["epsilon"] == 0
    for name, spent in (("north", ()), ("west", before)):
        site, left = sites[name], sites[name]["budget"]["rounds_left"]
        sigma = site["noise_multiplier"]

        def lifetime(
            rounds: int, sigma: float = sigma, spent: tuple[Mechanism, ...] = spent
        ) -> float:
            return lifetime_epsilon([*spent, (sigma, 0.5, 2 * rounds)], delta=1e-5)

        assert lifetime(left) <= 10 < lifetime(left + 1)
        assert site["budget"]["spent"]["epsilon"] == lifetime(0)
        assert site["budget"]["after"]["epsilon"] == lifetime(2)
        assert site["budget"]["rounds_needed"] == 2
    assert sites["west"]["budget"]["rounds_left"] < sites["north"]["budget"]["rounds_left"]


def test_a_budget_that_does_not_last_is_said(tiny: Path) -> None:
    """A cap below the study's cost names the site, and the study can lower the cap itself."""
    enough = planned(tiny, "privacy.target_epsilon=2")
    assert "does not last" not in enough.text()
    short = planned(tiny, "privacy.target_epsilon=2", "simulation.sites.west.budget.epsilon=1.5")
    assert "The budget of west does not last" in short.text()
    asked = planned(tiny, "privacy.target_epsilon=2", "privacy.lifetime_epsilon=2")
    assert "The budget of east, north, west does not last" in asked.text()
    caps = [site["budget"]["cap"]["epsilon"] for site in asked.as_json()["sites"].values()]
    assert caps == [2, 2, 2]


def test_all_folds_are_charged_to_a_patient(tiny: Path) -> None:
    """A patient trains in every fold but one, and the budget has to last for all of them."""
    site = planned(tiny, "data.folds=4").as_json()["sites"]["north"]
    assert site["budget"]["rounds_needed"] == 3 * 2
    history = [(site["noise_multiplier"], 0.5, 12)]
    assert site["budget"]["after"]["epsilon"] == lifetime_epsilon(history, delta=1e-5)


def test_images_are_not_sold_as_patients(tiny: Path) -> None:
    """With unit image the plan says beside it what a patient with several of them loses."""
    images = [
        "privacy.unit=image",
        "privacy.images_per_patient=2",
        "simulation.site_defaults.declared_images=20",
    ]
    plan = planned(tiny, *images)
    site = plan.as_json()["sites"]["east"]
    assert site["all_rounds"]["unit"] == "image"
    assert site["patient"]["unit"] == "patient"
    history = [(site["noise_multiplier"], 0.5, 4, 2)]
    assert site["patient"]["epsilon"] == epsilon_spent(history, delta=1e-5)
    assert site["patient"]["epsilon"] > 1.5 * site["all_rounds"]["epsilon"]
    assert site["budget"]["after"]["unit"] == "patient"
    assert site["budget"]["after"]["epsilon"] == lifetime_epsilon(history, delta=1e-5)
    assert "a patient with 2 of them loses epsilon" in plan.text()
    assert "several images, where images are what is hidden" in plan.text()
    assert planned(tiny).as_json()["sites"]["east"]["patient"] is None


def test_what_a_change_would_buy(tiny: Path) -> None:
    """The noise of each alternative at the smallest site, from the accountant's own sigma."""
    smaller = ["simulation.sites.west.declared_patients=5", "data.image_size_px=32"]
    found = planned(tiny, *smaller).as_json()["alternatives"]
    assert found["site"] == "west"
    plans = {plan["change"]: plan for plan in found["plans"]}
    expected = {
        "the study as it is": (0.5, 4, 97_890),
        "half the sampling rate": (0.25, 4, 97_890),
        "half the steps": (0.5, 2, 97_890),
        "model frozen-efficientnet-lite0": (0.5, 4, 2562),
    }
    assert plans.keys() == expected.keys()
    for change, (rate, steps, parameters) in expected.items():
        plan = plans[change]
        sigma = noise_multiplier_for(8.0, delta=1e-5, sampling_rate=rate, steps=steps)
        per_coordinate = sigma / (rate * 5 * 0.75)
        assert plan["parameters"] == parameters
        assert plan["per_coordinate"] == pytest.approx(per_coordinate)
        norm = per_coordinate * math.sqrt(parameters)
        assert plan["noise_norm_of_a_step"] == pytest.approx(norm)
        assert plan["noise_norm_over_all_steps"] == pytest.approx(norm / math.sqrt(steps))
    assert "Most would help: model frozen-efficientnet-lite0" in found["advice"]


def test_the_smallest_model_has_nothing_to_be_changed_to(tiny: Path) -> None:
    """Where no change lowers the noise, the advice says what would."""
    plan = planned(tiny, "model.name=frozen-efficientnet-lite0", "data.image_size_px=32")
    assert "None of these changes would help; more patients would" in plan.text()


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

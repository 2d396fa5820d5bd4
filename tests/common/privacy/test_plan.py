"""The plan: what is promised on paper is what the accountant says afterwards."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from common.errors import BadInput
from common.privacy.accounting import epsilon_spent, noise_multiplier_for
from common.privacy.epsilon import Randomness, TrustModel, Unit
from common.privacy.plan import PrivacyPlan, plan


def planned(**changes: Any) -> PrivacyPlan:
    """A hospital of 50 patients, with one thing changed."""
    arguments: dict[str, Any] = {
        "target_epsilon": 8.0,
        "delta": 1e-5,
        "unit": Unit.PATIENT,
        "declared_patients": 50,
        "training_share": 0.8,
        "sampling_rate": 0.25,
        "steps_per_round": 4,
        "rounds": 10,
        "max_grad_norm": 1.0,
        "images_per_patient": 4,
    } | changes
    return plan(arguments.pop("target_epsilon"), **arguments)


def test_all_rounds_together_keep_to_the_target() -> None:
    """Epsilon grows with each round and ends just below the target."""
    site = planned()
    spent = [site.epsilon_after(n, randomness=Randomness.SECRET).value for n in (0, 1, 5, 10)]
    assert spent == sorted(set(spent))
    assert spent[0] == 0
    assert 7.98 < spent[-1] <= 8.0
    assert site.expected_patients == pytest.approx(0.25 * 50 * 0.8)


def test_epsilon_carries_the_plan_s_meaning() -> None:
    """Unit, delta and source of randomness are those of the plan and of the site."""
    epsilon = planned(unit=Unit.EXAM).epsilon_after(1, randomness=Randomness.SEEDED)
    assert (epsilon.unit, epsilon.delta, epsilon.guarantee) == (Unit.EXAM, 1e-5, "none (seeded)")


def test_a_plan_says_what_it_was_made_of() -> None:
    """Sites train by these numbers; the noise is the least for all steps together."""
    site = planned(training_share=1.0, images_per_patient=1, max_grad_norm=0.5)
    assert site == PrivacyPlan(
        unit=Unit.PATIENT,
        noise_multiplier=noise_multiplier_for(8.0, delta=1e-5, sampling_rate=0.25, steps=40),
        sampling_rate=0.25,
        steps_per_round=4,
        rounds=10,
        max_grad_norm=0.5,
        images_per_patient=1,
        expected_patients=0.25 * 50,
        delta=1e-5,
    )


def test_whoever_must_be_trusted_is_said() -> None:
    """A site that adds its noise itself, unless the plan is asked for another trust model."""
    for trust_model in TrustModel:
        epsilon = planned().epsilon_after(1, randomness=Randomness.SECRET, trust_model=trust_model)
        assert epsilon.trust_model is trust_model
    assert planned().epsilon_after(1, randomness=Randomness.SECRET).trust_model is TrustModel.LOCAL


def test_earlier_studies_count() -> None:
    """A plan on patients who took part before starts from what was spent on them."""
    site = planned()
    again = site.epsilon_after(10, randomness=Randomness.SECRET, spent=site.history(10))
    assert again.value == epsilon_spent(site.history(20), delta=1e-5) > 8.0


def test_images_hide_patients_far_less() -> None:
    """With unit image the plan knows what the patient of the most images really loses."""
    site = planned(unit=Unit.IMAGE, images_per_patient=4)
    image = site.epsilon_after(10, randomness=Randomness.SECRET)
    patient = site.patient_epsilon_after(10, randomness=Randomness.SECRET)
    assert (image.unit, patient and patient.unit) == (Unit.IMAGE, Unit.PATIENT)
    assert patient is not None
    assert patient.value > 3 * image.value
    history = [(site.noise_multiplier, 0.25, 40, 4)]
    assert patient.value == epsilon_spent(history, delta=1e-5)
    assert site.patient_history(10) == tuple(history)


@pytest.mark.parametrize("unit", [Unit.PATIENT, Unit.EXAM])
def test_where_patients_are_hidden_there_is_one_number(unit: Unit) -> None:
    """The images of a step are one unit: the cap on them changes no epsilon."""
    site = planned(unit=unit)
    epsilon = site.epsilon_after(3, randomness=Randomness.SECRET)
    assert site.patient_epsilon_after(3, randomness=Randomness.SECRET) == epsilon


def test_too_large_a_delta_is_refused() -> None:
    """A site of many patients needs a smaller delta."""
    with pytest.raises(BadInput, match="at most 5e-06 for 20000"):
        planned(declared_patients=20_000)


@pytest.mark.parametrize(
    "change",
    [
        {"training_share": 0.0},
        {"training_share": 1.01},
        {"steps_per_round": 0},
        {"rounds": 0},
        {"images_per_patient": 0},
        {"max_grad_norm": 0.0},
    ],
)
def test_impossible_plans_are_refused(change: dict[str, Any]) -> None:
    """A plan of nothing is an error."""
    with pytest.raises(ValueError, match="a plan needs"):
        planned(**change)


def test_importing_privacy_loads_neither_opacus_nor_torch_for_the_ledger() -> None:
    """Opacus loads only when it works, and what the ledger needs loads no torch either."""
    light = ["accounting", "epsilon", "lifetime", "not_covered", "plan", "randomness", "sampling"]
    code = "import sys\n" + "".join(f"import common.privacy.{name}\n" for name in light)
    code += "assert not {'torch', 'opacus'} & set(sys.modules)\n"
    code += "import common.privacy.patient_sgd\nassert 'opacus' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""What a simulated run says about privacy, everywhere in the same words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from client.training import privacy_plan
from common.config import SiteSettings, Study
from common.errors import BadInput
from common.privacy.epsilon import Epsilon, Randomness, TrustModel, rounded_up
from common.privacy.plan import PrivacyPlan
from simulations.arms import Arm

GUARANTEE = "none (seeded)"
NO_PRIVACY = "none: trained without differential privacy"


def site_plan(study: Study, site: SiteSettings) -> PrivacyPlan:
    """What a site will run under privacy; raises BadInput naming the site."""
    try:
        return privacy_plan(study, declared=site.declared(study.privacy.unit))
    except BadInput as error:
        raise BadInput(f"site {site.name}: {error}") from None


def epsilon_of(study: Study, site: SiteSettings, *, rounds: int) -> Epsilon | None:
    """What `rounds` rounds of one fold cost each of a site's patients; None without privacy."""
    if not study.privacy.enabled:
        return None
    return site_plan(study, site).epsilon_after(rounds, randomness=Randomness.SEEDED)


def round_note(study: Study) -> Callable[[int], str]:
    """What the line of a round adds under privacy: epsilon so far (its conditions come first)."""
    if not study.privacy.enabled:
        return lambda _: ""

    def note(round_number: int) -> str:
        plan = privacy_plan(study, declared=1)  # epsilon doesn't depend on the number
        epsilon = plan.epsilon_after(round_number, randomness=Randomness.SEEDED)
        return f", epsilon so far {rounded_up(epsilon.value)}"

    return functools.lru_cache(note)


def spent_so_far(study: Study) -> Callable[[int], str]:
    """What so many rounds cost a site that joined them all; for who can't know its randomness."""
    if not study.privacy.enabled:
        return lambda _: NO_PRIVACY

    def said(rounds: int) -> str:
        epsilon = privacy_plan(study, declared=1).epsilon_after(
            rounds, randomness=Randomness.SEEDED
        )
        return (
            f"epsilon so far {rounded_up(epsilon.value)} per {epsilon.unit} of a site that joined "
            f"all rounds (delta {epsilon.delta:g}, {epsilon.adjacency}, {epsilon.trust_model}; "
            "the source of its randomness each site signs at the end)"
        )

    return functools.lru_cache(said)


def all_folds_epsilon(study: Study, site: SiteSettings) -> Epsilon | None:
    """What all folds together would cost: each patient trains in every fold but one."""
    folds = study.data.folds
    if not study.privacy.enabled or folds is None:
        return None
    rounds = study.training.rounds * (folds - 1)
    return site_plan(study, site).epsilon_after(rounds, randomness=Randomness.SEEDED)


def model_statement(study: Study, sites: Mapping[str, SiteSettings]) -> dict[str, Any]:
    """The privacy statement that the federated model's file carries: the worst-off site's."""
    planned = [epsilon_of(study, site, rounds=study.training.rounds) for site in sites.values()]
    found = [epsilon for epsilon in planned if epsilon is not None]
    return _statement(max(found, key=lambda epsilon: epsilon.value, default=None))


def arm_statement(study: Study, arm: Arm, sites: Mapping[str, SiteSettings]) -> dict[str, Any]:
    """The privacy statement of a model that was trained for comparison."""
    if not arm.private:
        return _statement(None)
    declared = sum(sites[name].declared(study.privacy.unit) or 0 for name in arm.sites)
    plan = privacy_plan(study, declared=declared)
    epsilon = plan.epsilon_after(
        study.training.rounds, randomness=Randomness.SEEDED, trust_model=TrustModel.CENTRAL
    )
    return _statement(epsilon)


def _statement(epsilon: Epsilon | None) -> dict[str, Any]:
    if epsilon is None:
        return {"sentence": NO_PRIVACY}
    return {"sentence": str(epsilon), **epsilon.as_json()}

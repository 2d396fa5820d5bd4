"""What a study would cost each hospital's patients, on paper: `fedward privacy plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.config import SiteSettings, Study
from common.errors import BadInput
from common.privacy.epsilon import Epsilon, rounded_up
from common.privacy.plan import PrivacyPlan
from common.report.content import DataLabel
from common.report.text import format_table
from simulations.sites import data_label, simulated_sites
from simulations.statements import NOT_COVERED, all_folds_epsilon, epsilon_of, site_plan


@dataclass(frozen=True, slots=True)
class SitePlan:
    """One hospital's part of the plan."""

    site: SiteSettings
    plan: PrivacyPlan
    one_round: Epsilon
    all_rounds: Epsilon
    all_folds: Epsilon | None  # what cross-validation as a whole would cost; None without folds


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """The plan of a whole study."""

    study: Study
    data_label: DataLabel
    sites: tuple[SitePlan, ...]

    def as_json(self) -> dict[str, Any]:
        """What `fedward privacy plan --json` prints."""
        return {
            "study": self.study.name,
            "study_sha256": self.study.sha256,
            "data": self.data_label,
            "rounds": self.study.training.rounds,
            "not_covered": list(NOT_COVERED),
            "sites": {
                part.site.name: {
                    "declared_patients": part.site.declared_patients,
                    "noise_multiplier": part.plan.noise_multiplier,
                    "sampling_rate": part.plan.sampling_rate,
                    "steps_per_round": part.plan.steps_per_round,
                    "max_grad_norm": part.plan.max_grad_norm,
                    "expected_patients_per_step": part.plan.expected_patients,
                    "noise_std_of_mean_gradient": _noise(part.plan),
                    "one_round": part.one_round.as_json(),
                    "all_rounds": part.all_rounds.as_json(),
                    "all_folds": part.all_folds.as_json() if part.all_folds else None,
                }
                for part in self.sites
            },
        }

    def text(self) -> str:
        """The same for people."""
        study, first = self.study, self.sites[0]
        header = ("site", "declared", "a step", "sigma / C", "noise / C", "one round", "all rounds")
        rows = [
            (
                part.site.name,
                str(part.site.declared_patients),
                f"{part.plan.expected_patients:.1f}",
                f"{part.plan.noise_multiplier:.3f}",
                f"{_noise(part.plan):.3f}",
                rounded_up(part.one_round.value),
                rounded_up(part.all_rounds.value),
            )
            for part in self.sites
        ]
        lines = [
            f"Study {study.name} ({self.data_label} data): {study.training.rounds} rounds of "
            f"{first.plan.steps_per_round} noised steps; each {first.plan.unit} is in a step with "
            f"probability {first.plan.sampling_rate:g}.",
            "",
            format_table(header, rows),
            "",
            "declared: patients; a step: expected training patients in a step; noise / C: noise in "
            "each coordinate of a step's mean gradient, in units of the clipping norm C.",
            f"one round, all rounds: epsilon per {first.plan.unit} "
            f"({_conditions(first.all_rounds)}).",
        ]
        if first.all_folds is not None:
            lines.append(
                f"Cross-validation trains {study.data.folds} models, with each patient in all but "
                f"one; all of them together cost {first.all_folds}."
            )
        return "\n".join([*lines, "Not covered: " + "; ".join(NOT_COVERED) + "."])


def plan_study(study: Study) -> StudyPlan:
    """The plan of every simulated site; raises BadInput where there is nothing to plan."""
    if not study.privacy.enabled:
        raise BadInput(
            "privacy.enabled is false in this study, so there is nothing to plan; "
            "add --set privacy.enabled=true."
        )
    sites = simulated_sites(study)
    parts = tuple(_site_plan(study, site) for site in sites.values())
    return StudyPlan(study, data_label(sites), parts)


def _site_plan(study: Study, site: SiteSettings) -> SitePlan:
    one = epsilon_of(study, site, rounds=1)
    all_rounds = epsilon_of(study, site, rounds=study.training.rounds)
    assert one is not None  # the study has privacy enabled
    assert all_rounds is not None
    plan = site_plan(study, site)
    return SitePlan(site, plan, one, all_rounds, all_folds_epsilon(study, site))


def _noise(plan: PrivacyPlan) -> float:
    """Standard deviation of the noise in the mean gradient, in units of C."""
    return plan.noise_multiplier / plan.expected_patients


def _conditions(epsilon: Epsilon) -> str:
    """What an epsilon means, without its value."""
    return str(epsilon).partition("(")[2].rpartition(")")[0]

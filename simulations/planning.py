"""What a study would cost each hospital's patients, on paper: `fedward privacy plan`."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from client.ledger import lowered
from common.catalogue import CATALOGUE
from common.config import SiteSettings, Study
from common.errors import BadInput
from common.models import study_model, trained_part
from common.privacy.accounting import noise_multiplier_for
from common.privacy.epsilon import Epsilon, Randomness, Unit, rounded_up
from common.privacy.lifetime import lifetime_epsilon, times_left
from common.privacy.mechanism import Mechanism
from common.privacy.not_covered import not_covered
from common.privacy.plan import PrivacyPlan
from common.report.content import DataLabel
from common.report.text import format_table
from simulations.sites import data_label, simulated_sites
from simulations.statements import all_folds_epsilon, epsilon_of, site_plan

_MOST_ROUNDS = 1_000_000


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """What the worst-off patient of a site has lost, may lose, and for how long that lasts."""

    cap: Epsilon
    spent: Epsilon | None  # None: beyond any number worth printing
    after: Epsilon | None  # with the whole study, all folds
    rounds_needed: int  # in which one patient can take part
    rounds_left: int  # of this study's kind

    def as_json(self) -> dict[str, Any]:
        """The same as one JSON object."""
        return {
            "cap": self.cap.as_json(),
            "spent": self.spent.as_json() if self.spent else None,
            "after": self.after.as_json() if self.after else None,
            "rounds_needed": self.rounds_needed,
            "rounds_left": self.rounds_left,
        }


@dataclass(frozen=True, slots=True)
class SitePlan:
    """One hospital's part of the plan."""

    site: SiteSettings
    plan: PrivacyPlan
    one_round: Epsilon
    all_rounds: Epsilon
    all_folds: Epsilon | None  # what cross-validation as a whole would cost; None without folds
    patient: Epsilon | None  # what all rounds cost a patient where images are the unit
    budget: BudgetPlan


@dataclass(frozen=True, slots=True)
class Alternative:
    """The same target reached in another way, at one site; noise in units of C."""

    change: str
    parameters: int
    noise_multiplier: float  # sigma / C
    steps: int
    per_coordinate: float  # standard deviation of the noise in a step's mean gradient

    @property
    def a_step(self) -> float:
        """Norm of a step's noise; a step's signal is at most 1, where all patients agree."""
        return self.per_coordinate * math.sqrt(self.parameters)

    @property
    def all_steps(self) -> float:
        """The same over the whole training, where the signal adds up and the noise averages out."""
        return self.a_step / math.sqrt(self.steps)

    def as_json(self) -> dict[str, str | int | float]:
        """The same as one flat JSON object."""
        return {
            **dataclasses.asdict(self),
            "noise_norm_of_a_step": self.a_step,
            "noise_norm_over_all_steps": self.all_steps,
        }


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """The plan of a whole study; `alternatives` are its smallest site's, the plan itself first."""

    study: Study
    data_label: DataLabel
    sites: tuple[SitePlan, ...]
    alternatives: tuple[Alternative, ...]

    @property
    def smallest(self) -> SitePlan:
        """The site with the most noise in its mean."""
        return min(self.sites, key=lambda part: part.plan.expected_patients)

    def as_json(self) -> dict[str, Any]:
        """What `fedward privacy plan --json` prints."""
        return {
            "study": self.study.name,
            "study_sha256": self.study.sha256,
            "data": self.data_label,
            "rounds": self.study.training.rounds,
            "not_covered": list(not_covered(Unit(self.study.privacy.unit))),
            "sites": {
                part.site.name: {
                    "declared_patients": part.site.declared_patients,
                    "declared_images": part.site.declared_images,
                    "noise_multiplier": part.plan.noise_multiplier,
                    "sampling_rate": part.plan.sampling_rate,
                    "steps_per_round": part.plan.steps_per_round,
                    "max_grad_norm": part.plan.max_grad_norm,
                    "expected_patients_per_step": part.plan.expected_patients,
                    "noise_std_of_mean_gradient": _noise(part.plan),
                    "one_round": part.one_round.as_json(),
                    "all_rounds": part.all_rounds.as_json(),
                    "all_folds": part.all_folds.as_json() if part.all_folds else None,
                    "patient": part.patient.as_json() if part.patient else None,
                    "budget": part.budget.as_json(),
                }
                for part in self.sites
            },
            "alternatives": {
                "site": self.smallest.site.name,
                "epsilon": self.smallest.all_rounds.as_json(),
                "plans": [alternative.as_json() for alternative in self.alternatives],
                "advice": self.advice(),
            },
        }

    def text(self) -> str:
        """The same for people."""
        study, first = self.study, self.sites[0]
        unit = first.plan.unit
        header = ("site", "declared", "a step", "sigma / C", "noise / C", "one round", "all rounds")
        rows = [
            (
                part.site.name,
                str(part.site.declared(unit)),
                f"{part.plan.expected_patients:.1f}",
                f"{part.plan.noise_multiplier:.3f}",
                f"{_noise(part.plan):.3f}",
                rounded_up(part.one_round.value),
                rounded_up(part.all_rounds.value),
            )
            for part in self.sites
        ]
        units = f"{unit}s"
        lines = [
            f"Study {study.name} ({self.data_label} data): {study.training.rounds} rounds of "
            f"{first.plan.steps_per_round} noised steps; each {unit} is in a step with "
            f"probability {first.plan.sampling_rate:g}.",
            "",
            format_table(header, rows),
            "",
            f"declared: {units}; a step: expected training {units} in a step; noise / C: noise in "
            "each coordinate of a step's mean gradient, in units of the clipping norm C.",
            f"one round, all rounds: epsilon per {unit} ({_conditions(first.all_rounds)}).",
        ]
        if unit is Unit.IMAGE:
            lines.append(_of_a_patient(first))
        if first.all_folds is not None:
            lines.append(
                f"Cross-validation trains {study.data.folds} models, with each patient in all but "
                f"one; all of them together cost {first.all_folds}."
            )
        lines += ["", *self._budget_lines(), "", *self._alternative_lines(), ""]
        return "\n".join([*lines, "Not covered: " + "; ".join(not_covered(unit)) + "."])

    def advice(self) -> str:
        """One sentence: which change would help most."""
        planned, *others = self.alternatives
        best = min(others, key=lambda other: other.all_steps)
        if best.all_steps > 0.9 * planned.all_steps:
            return (
                "None of these changes would help; more patients would, or a higher target, or a "
                "higher sampling rate, which only takes more computing."
            )
        return (
            f"Most would help: {best.change}, with {best.all_steps:.2g} times the signal as noise "
            f"over all steps in place of {planned.all_steps:.2g}."
        )

    def _budget_lines(self) -> list[str]:
        header = ("site", "spent before", "after the study", "cap", "rounds left")
        rows = [
            (
                part.site.name,
                _shown(part.budget.spent),
                _shown(part.budget.after),
                rounded_up(part.budget.cap.value),
                f"{part.budget.rounds_left} of {part.budget.rounds_needed}"
                if part.budget.rounds_left < part.budget.rounds_needed
                else str(part.budget.rounds_left),
            )
            for part in self.sites
        ]
        first = self.sites[0].budget
        lines = [
            format_table(header, rows),
            "",
            f"spent, after, cap: epsilon per {first.cap.unit} over a lifetime "
            f"({_conditions(first.cap)}), of the worst-off one; it counts more than a study's own, "
            "since the next study may be chosen by the last one's results.",
        ]
        if short := [
            part.site.name
            for part in self.sites
            if part.budget.rounds_left < part.budget.rounds_needed
        ]:
            lines.append(
                f"The budget of {', '.join(short)} does not last: such a site refuses the study at "
                "its start (the rounds beyond it, where policy.whole_studies is optional, as in a "
                "simulation). Lower privacy.target_epsilon, or ask the site to raise its budget."
            )
        return lines

    def _alternative_lines(self) -> list[str]:
        smallest = self.smallest
        header = ("with", "parameters", "sigma / C", "noise / C", "a step", "all steps")
        rows = [
            (
                one.change,
                f"{one.parameters:,}",
                f"{one.noise_multiplier:.3f}",
                f"{one.per_coordinate:.3f}",
                f"{one.a_step:.3g}",
                f"{one.all_steps:.3g}",
            )
            for one in self.alternatives
        ]
        return [
            f"What a change would buy at {smallest.site.name}, the site with the fewest "
            f"{smallest.plan.unit}s, each at {smallest.all_rounds}:",
            "",
            format_table(header, rows),
            "",
            "a step: norm of the noise in a step's mean gradient, whose own norm is at most 1 (in "
            "units of C, where all agree); all steps: the same over the whole training, where "
            "noise averages out. The further above 1, the less is learned.",
            self.advice(),
        ]


def plan_study(
    study: Study, *, spent: Mapping[str, tuple[Mechanism, ...]] | None = None
) -> StudyPlan:
    """The plan of every simulated site; raises BadInput where there is nothing to plan.

    Args:
        study: what would run.
        spent: by site, what its worst-off patient was exposed to before, as the ledger has it.
    """
    if not study.privacy.enabled:
        raise BadInput(
            "privacy.enabled is false in this study, so there is nothing to plan; "
            "add --set privacy.enabled=true."
        )
    sites = simulated_sites(study)
    before = spent or {}
    parts = tuple(_site_plan(study, site, before.get(name, ())) for name, site in sites.items())
    smallest = min((part.plan for part in parts), key=lambda plan: plan.expected_patients)
    return StudyPlan(study, data_label(sites), parts, _alternatives(study, smallest))


def _site_plan(study: Study, site: SiteSettings, spent: tuple[Mechanism, ...]) -> SitePlan:
    one = epsilon_of(study, site, rounds=1)
    all_rounds = epsilon_of(study, site, rounds=study.training.rounds)
    assert one is not None  # the study has privacy enabled
    assert all_rounds is not None
    plan = site_plan(study, site)
    patient = None
    if plan.unit is Unit.IMAGE:
        patient = plan.patient_epsilon_after(study.training.rounds, randomness=Randomness.SEEDED)
    return SitePlan(
        site,
        plan,
        one,
        all_rounds,
        all_folds_epsilon(study, site),
        patient,
        _budget(study, site, plan, spent),
    )


def _budget(
    study: Study, site: SiteSettings, plan: PrivacyPlan, spent: tuple[Mechanism, ...]
) -> BudgetPlan:
    budget = lowered(site.budget, study.privacy.lifetime_epsilon)
    unit = Unit.PATIENT if plan.unit is Unit.IMAGE else plan.unit
    needed = study.training.rounds * ((study.data.folds or 2) - 1)  # all folds but the patient's

    def lifetime(history: tuple[Mechanism, ...]) -> Epsilon | None:
        value = lifetime_epsilon(history, delta=budget.delta)
        return said(value) if math.isfinite(value) else None

    def said(value: float) -> Epsilon:
        return Epsilon(value=value, delta=budget.delta, unit=unit, randomness=Randomness.SEEDED)

    (a_round,) = plan.patient_history(1)
    return BudgetPlan(
        cap=said(budget.epsilon),
        spent=lifetime(spent),
        after=lifetime((*spent, *plan.patient_history(needed))),
        rounds_needed=needed,
        rounds_left=times_left(
            spent, a_round, delta=budget.delta, cap=budget.epsilon, most=_MOST_ROUNDS
        ),
    )


def _alternatives(study: Study, plan: PrivacyPlan) -> tuple[Alternative, ...]:
    """The plan itself, then what a smaller rate, fewer steps and each smaller model would give."""
    steps = study.training.rounds * plan.steps_per_round
    rate, patients = plan.sampling_rate, plan.expected_patients

    def noise(sampling_rate: float, taken: int) -> float:
        return noise_multiplier_for(
            study.privacy.target_epsilon,
            delta=plan.delta,
            sampling_rate=sampling_rate,
            steps=taken,
        )

    def alternative(change: str, name: str, *, share: float = 1.0, taken: int) -> Alternative:
        sigma = noise(rate * share, taken)
        per_coordinate = sigma / (patients * share)
        return Alternative(change, _parameters(study, name), sigma, taken, per_coordinate)

    own = study.model.name
    smaller = sorted(
        (name for name in CATALOGUE if CATALOGUE[name].parameters < CATALOGUE[own].parameters),
        key=lambda name: CATALOGUE[name].parameters,
    )
    fitting = [
        name for name in smaller if CATALOGUE[name].smallest_image_px <= study.data.image_size_px
    ]
    return (
        alternative("the study as it is", own, taken=steps),
        alternative("half the sampling rate", own, share=0.5, taken=steps),
        *([alternative("half the steps", own, taken=steps // 2)] if steps > 1 else []),
        *(alternative(f"model {name}", name, taken=steps) for name in fitting),
    )


def _parameters(study: Study, name: str) -> int:
    """How many parameters of a model the study would train; its weights are never made."""
    changes: dict[str, Any] = {"name": name}
    if name != study.model.name:
        changes["patch_px"] = None  # which not every model has
    model = study.model.model_copy(update=changes)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.filterwarnings("ignore", message=".*non-meta parameter")
        trained = trained_part(study_model(study.model_copy(update={"model": model})))
    return sum(p.numel() for p in trained.parameters() if p.requires_grad)


def _of_a_patient(part: SitePlan) -> str:
    images = part.plan.images_per_patient
    cost = "more than can be counted" if part.patient is None else str(part.patient)
    return f"Only single images are hidden so well: a patient with {images} of them loses {cost}."


def _noise(plan: PrivacyPlan) -> float:
    """Standard deviation of the noise in the mean gradient, in units of C."""
    return plan.noise_multiplier / plan.expected_patients


def _shown(epsilon: Epsilon | None) -> str:
    """In a table whose conditions stand beside it."""
    return "unbounded" if epsilon is None else rounded_up(epsilon.value)


def _conditions(epsilon: Epsilon) -> str:
    """What an epsilon means, without its value."""
    return str(epsilon).partition("(")[2].rpartition(")")[0]

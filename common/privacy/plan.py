"""The privacy of a study on paper: how much noise, and what it costs, before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.privacy.accounting import check_delta, epsilon_spent, noise_multiplier_for
from common.privacy.epsilon import Epsilon, Randomness, TrustModel, Unit
from common.privacy.mechanism import Mechanism, merge


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """Everything public about a site's private training; fixed before round 1.

    Args:
        unit: whose presence is hidden.
        noise_multiplier: sigma / C.
        sampling_rate: probability q in (0, 1] that a unit takes part in a step.
        steps_per_round: noisy steps in each round, >= 1.
        rounds: rounds of the whole study, >= 1.
        max_grad_norm: C, > 0.
        images_per_patient: at most so many images of a unit in a step, >= 1; where images are the
            unit, at most so many of a patient in the whole study.
        expected_patients: the divisor, > 0: q x declared patients x training share.
        delta: at most 1e-5 and at most 1 / (10 x declared patients).
    """

    unit: Unit
    noise_multiplier: float
    sampling_rate: float
    steps_per_round: int
    rounds: int
    max_grad_norm: float
    images_per_patient: int
    expected_patients: float
    delta: float

    def history(self, rounds: int) -> tuple[Mechanism, ...]:
        """What `rounds` rounds add to a unit's history of mechanisms."""
        return merge([(self.noise_multiplier, self.sampling_rate, rounds * self.steps_per_round)])

    def patient_history(self, rounds: int) -> tuple[Mechanism, ...]:
        """The same for whoever owns the units: with unit image, a patient of the most images."""
        images = self.images_per_patient if self.unit is Unit.IMAGE else 1
        return merge([one._replace(images=images) for one in self.history(rounds)])

    def patient_epsilon_after(
        self,
        rounds: int,
        *,
        randomness: Randomness,
        trust_model: TrustModel = TrustModel.LOCAL,
    ) -> Epsilon | None:
        """What `rounds` rounds really cost such a patient; None where no number is worth printing.

        The same as `epsilon_after` unless images are the unit.
        """
        value = epsilon_spent(self.patient_history(rounds), delta=self.delta)
        unit = Unit.PATIENT if self.unit is Unit.IMAGE else self.unit
        if not math.isfinite(value):
            return None
        return Epsilon(
            value=value,
            delta=self.delta,
            unit=unit,
            randomness=randomness,
            trust_model=trust_model,
        )

    def epsilon_after(
        self,
        rounds: int,
        *,
        randomness: Randomness,
        trust_model: TrustModel = TrustModel.LOCAL,
        spent: tuple[Mechanism, ...] = (),
    ) -> Epsilon:
        """Epsilon after `rounds` rounds, on top of what was `spent` on the same units before."""
        return Epsilon(
            value=epsilon_spent((*spent, *self.history(rounds)), delta=self.delta),
            delta=self.delta,
            unit=self.unit,
            randomness=randomness,
            trust_model=trust_model,
        )


def plan(
    target_epsilon: float,
    *,
    delta: float,
    unit: Unit,
    declared_patients: int,
    training_share: float,
    sampling_rate: float,
    steps_per_round: int,
    rounds: int,
    max_grad_norm: float,
    images_per_patient: int,
) -> PrivacyPlan:
    """The plan with the least noise that keeps to `target_epsilon` over all rounds.

    Args:
        target_epsilon: in (0, 1000], per unit over all rounds.
        delta: see `check_delta`.
        unit: whose presence is hidden.
        declared_patients: the site's public, rounded number of units (of images, where they are
            the unit), >= 1.
        training_share: public share of them on the training side, in (0, 1].
        sampling_rate, steps_per_round, rounds, max_grad_norm, images_per_patient: as in the plan.

    Returns:
        The plan; it needs no data, so every site can print it before agreeing.

    Raises:
        BadInput: delta too large for the site, or no noise meets the target.
        ValueError: another number out of range.

    >>> site = plan(8.0, delta=1e-5, unit=Unit.PATIENT, declared_patients=100, training_share=0.8,
    ...     sampling_rate=0.16, steps_per_round=100, rounds=10, max_grad_norm=1.0,
    ...     images_per_patient=16)
    >>> round(site.noise_multiplier, 1), round(site.expected_patients, 1)
    (3.1, 12.8)
    """
    if not (
        0 < training_share <= 1
        and max_grad_norm > 0
        and min(steps_per_round, rounds, images_per_patient) >= 1
    ):
        raise ValueError(
            "a plan needs training_share in (0, 1], max_grad_norm > 0, and steps_per_round, rounds "
            f"and images_per_patient >= 1; got {training_share}, {max_grad_norm}, "
            f"{steps_per_round}, {rounds}, {images_per_patient}."
        )
    check_delta(delta, declared_patients)
    return PrivacyPlan(
        unit=unit,
        noise_multiplier=noise_multiplier_for(
            target_epsilon,
            delta=delta,
            sampling_rate=sampling_rate,
            steps=steps_per_round * rounds,
        ),
        sampling_rate=sampling_rate,
        steps_per_round=steps_per_round,
        rounds=rounds,
        max_grad_norm=max_grad_norm,
        images_per_patient=images_per_patient,
        expected_patients=sampling_rate * declared_patients * training_share,
        delta=delta,
    )

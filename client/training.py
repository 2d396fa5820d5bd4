"""Local training, with and without privacy: the one loop that every site and baseline runs."""

from __future__ import annotations

import torch
from torch import nn

from client.cohort import Examples
from common.config import Privacy, Study, Training
from common.errors import BadInput, RefusalCode, SiteRefusal
from common.privacy.epsilon import Unit
from common.privacy.patient_sgd import private_steps
from common.privacy.plan import PrivacyPlan, plan
from common.privacy.randomness import RoundSecret
from common.privacy.sampling import poisson_batches

MAX_IMAGES_AT_ONCE = 256  # bounds the memory of per-image gradients


def train_round(
    module: nn.Module,
    examples: Examples,
    study: Study,
    *,
    declared_patients: int | None,
    secret: RoundSecret,
    device: torch.device,
) -> None:
    """One round of a site's training as the study asks for it, in place.

    Raises:
        SiteRefusal: there is nobody to train on, or nobody has declared how many there are.
    """
    if study.privacy.enabled:
        if declared_patients is None:
            raise BadInput("declared_patients is missing in site.yaml; privacy needs it.")
        plan = privacy_plan(study, declared_patients=declared_patients)
        train_private(module, examples, study.privacy, plan=plan, secret=secret, device=device)
    elif len(examples.rows) == 0:
        raise SiteRefusal(RefusalCode.NO_TRAINING_PATIENTS)
    else:
        batch_size = study.training.batch_size
        train_plain(
            module, examples, study.training, batch_size=batch_size, secret=secret, device=device
        )


def train_plain(
    module: nn.Module,
    examples: Examples,
    settings: Training,
    *,
    batch_size: int,
    secret: RoundSecret,
    device: torch.device,
) -> None:
    """One round without privacy: epochs of shuffled batches of SGD, in place.

    Args:
        module: gives logits (B, classes); left on `device`.
        examples: at least one image.
        settings: epochs, learning rate, momentum, weight decay.
        batch_size: images a step; the last batch of an epoch may be smaller.
        secret: orders the batches.
        device: where torch computes.
    """
    module.to(device).train()
    optimizer = torch.optim.SGD(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    for epoch in range(settings.epochs):
        order = secret.stream("shuffled epoch", epoch).permutation(len(examples.rows))
        for start in range(0, len(order), batch_size):
            rows = examples.rows[order[start : start + batch_size]]
            images, labels = examples.batch(rows, device)
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images), labels).backward()  # type: ignore[no-untyped-call] # torch ships it untyped
            optimizer.step()


def train_private(
    module: nn.Module,
    examples: Examples,
    settings: Privacy,
    *,
    plan: PrivacyPlan,
    secret: RoundSecret,
    device: torch.device,
) -> None:
    """One round under differential privacy: noised steps on sampled patients, in place.

    Args:
        module: gives logits (B, classes); left on `device`.
        examples: the training side; none at all still takes every noisy step.
        settings: learning rate and momentum (what is done with a noised step is free).
        plan: rate, steps, clipping, noise and divisor; public.
        secret: decides who is sampled, which of their images, and the noise.
        device: where torch computes.

    Formal guarantees:
        `plan.history(1)` per patient under adding or removing one, by `poisson_batches` and
        `private_steps`; nothing else here depends on the data.
    """
    module.to(device).train()
    optimizer = torch.optim.SGD(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=settings.learning_rate,
        momentum=settings.momentum,
    )
    batches = poisson_batches(
        examples.by_patient(),
        sampling_rate=plan.sampling_rate,
        steps=plan.steps_per_round,
        images_per_patient=plan.images_per_patient,
        secret=secret,
    )
    with private_steps(
        module,
        optimizer,
        examples=lambda rows: examples.batch(rows, device),
        loss=nn.CrossEntropyLoss(reduction="none"),
        max_grad_norm=plan.max_grad_norm,
        noise_multiplier=plan.noise_multiplier,
        expected_patients=plan.expected_patients,
        noise=secret.stream("noise"),
        max_images_at_once=MAX_IMAGES_AT_ONCE,
    ) as step:
        for batch in batches:
            step(batch)


def privacy_plan(study: Study, *, declared_patients: int) -> PrivacyPlan:
    """What a site (or all sites' data pooled) of so many declared patients will run.

    Each site computes it from the study itself: no sigma is ever taken from the server.

    Raises:
        BadInput: delta is too large for the site.
    """
    return plan(
        study.privacy.target_epsilon,
        delta=study.privacy.target_delta,
        unit=Unit(study.privacy.unit),
        declared_patients=declared_patients,
        training_share=study.data.train_share,
        sampling_rate=study.privacy.sampling_rate,
        steps_per_round=study.privacy.steps_per_round,
        rounds=study.training.rounds,
        max_grad_norm=study.privacy.max_grad_norm,
        images_per_patient=study.privacy.images_per_patient,
    )

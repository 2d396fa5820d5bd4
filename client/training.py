"""Local training, with and without privacy: the one loop that every site and baseline runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.cohort import Examples
from common.config import Augmentation, Study
from common.data.augmentation import augment, mixup
from common.errors import BadInput, RefusalCode, SiteRefusal
from common.models import redraw_dropout, study_model, trained_part
from common.privacy.epsilon import Unit
from common.privacy.noise import noise_of
from common.privacy.patient_sgd import Loss, private_steps
from common.privacy.plan import PrivacyPlan, plan
from common.privacy.randomness import RoundSecret
from common.privacy.sampling import poisson_batches
from common.privacy.self_check import check_engine

PIXELS_AT_ONCE = 2**18  # bounds the memory of per-image gradients: 256 pictures of 32 x 32


def train_round(
    module: nn.Module,
    examples: Examples,
    study: Study,
    *,
    declared: int | None,
    secret: RoundSecret,
    device: torch.device,
) -> None:
    """One round of a site's training as the study asks for it, in place.

    Raises:
        SiteRefusal: there is nobody to train on, or nobody has declared how many there are.
    """
    if study.privacy.enabled:
        plan = privacy_plan(study, declared=declared)
        train_private(module, examples, study, plan=plan, secret=secret, device=device)
    elif len(examples.rows) == 0:
        raise SiteRefusal(RefusalCode.NO_TRAINING_PATIENTS)
    else:
        batch_size = study.training.batch_size
        train_plain(module, examples, study, batch_size=batch_size, secret=secret, device=device)


def train_plain(
    module: nn.Module,
    examples: Examples,
    study: Study,
    *,
    batch_size: int,
    secret: RoundSecret,
    device: torch.device,
) -> None:
    """One round without privacy: epochs of shuffled batches of SGD, in place.

    Args:
        module: gives logits (B, classes); left on `device`.
        examples: at least one image.
        study: epochs, learning rate, momentum, weight decay, augmentation.
        batch_size: images a step; the last batch of an epoch may be smaller.
        secret: orders the batches and draws dropout's masks.
        device: where torch computes.
    """
    module.to(device).train()
    settings, alpha = study.training, study.training.augmentation.mixup
    optimizer = torch.optim.SGD(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    load = loader(examples, settings.augmentation, secret, device)
    loss = loss_of(multi_label=examples.multi_label)
    for epoch in range(settings.epochs):
        order = secret.stream("shuffled epoch", epoch).permutation(len(examples.rows))
        for start in range(0, len(order), batch_size):
            images, targets = load(examples.rows[order[start : start + batch_size]], epoch)
            redraw_dropout(module, secret.stream("dropout", epoch, start))
            if alpha:
                stream = secret.stream("mixup", epoch, start)
                images, targets = _mixed(images, targets, len(study.classes), alpha, stream)
            optimizer.zero_grad()
            loss(module(images), targets).mean().backward()  # type: ignore[no-untyped-call] # torch ships it untyped
            optimizer.step()


def train_private(
    module: nn.Module,
    examples: Examples,
    study: Study,
    *,
    plan: PrivacyPlan,
    secret: RoundSecret,
    device: torch.device,
) -> None:
    """One round under differential privacy: noised steps on sampled patients, in place.

    Args:
        module: gives logits (B, classes); left on `device`.
        examples: the training side; none at all still takes every noisy step.
        study: learning rate and momentum (what is done with a noised step is free), augmentation.
        plan: rate, steps, clipping, noise and divisor; public.
        secret: decides who is sampled, which of their images, dropout's masks, and the noise.
        device: where torch computes.

    Formal guarantees:
        `plan.history(1)` per patient under adding or removing one, by `poisson_batches` and
        `private_steps`; nothing else here depends on the data.
    """
    module.to(device).train()
    optimizer = torch.optim.SGD(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        lr=study.privacy.learning_rate,
        momentum=study.privacy.momentum,
    )
    load = loader(examples, study.training.augmentation, secret, device)
    number = 0  # of the step that is running
    batches = poisson_batches(
        _units(examples, plan),
        sampling_rate=plan.sampling_rate,
        steps=plan.steps_per_round,
        images_per_patient=plan.images_per_patient,
        secret=secret,
    )
    with private_steps(
        module,
        optimizer,
        examples=lambda rows: load(rows, number),
        loss=loss_of(multi_label=examples.multi_label),
        max_grad_norm=plan.max_grad_norm,
        noise_multiplier=plan.noise_multiplier,
        expected_patients=plan.expected_patients,
        noise=noise_of(secret),
        max_images_at_once=images_at_once(examples.inputs.shape),
        engine=study.privacy.engine,
    ) as step:
        for number, batch in enumerate(batches):  # `load` reads it
            redraw_dropout(module, secret.stream("dropout", number))
            step(batch)


def _units(examples: Examples, plan: PrivacyPlan) -> Mapping[str, NDArray[np.int64]]:
    """The rows of each unit that is sampled, clipped and hidden as one."""
    if plan.unit is Unit.IMAGE:
        return examples.by_image(per_patient=plan.images_per_patient)
    return examples.by_patient()


def images_at_once(shape: tuple[int, ...]) -> int:
    """How many images, or features, of this shape a private step works on at once, >= 1."""
    return max(1, PIXELS_AT_ONCE // math.prod(shape))


def loss_of(*, multi_label: bool) -> Loss:
    """One value for each image: cross-entropy, over several labels their binary ones' mean."""
    if not multi_label:
        return nn.CrossEntropyLoss(reduction="none")

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        wrong = nn.functional.binary_cross_entropy_with_logits
        return wrong(logits, targets.to(logits), reduction="none").mean(dim=1)

    return loss


def _mixed(
    images: Tensor, targets: Tensor, classes: int, alpha: float, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A batch after mixup, its targets as shares (B, classes); never under privacy."""
    if targets.ndim == 1:
        targets = nn.functional.one_hot(targets, classes)
    return mixup(images, targets.to(images), alpha, generator)


def loader(
    examples: Examples, augmentation: Augmentation, secret: RoundSecret, device: torch.device
) -> Callable[[NDArray[np.int64], int], tuple[Tensor, Tensor]]:
    """What loads a batch: from rows (B,) and the number of the pass to inputs and targets.

    How an image is augmented depends on the secret, its patient and its place among the patient's
    images: removing a patient changes no other's images.
    """
    if augmentation.model_copy(update={"mixup": 0.0}) == Augmentation():
        return lambda rows, number: examples.batch(rows, device)

    places = examples.places()

    def load(rows: NDArray[np.int64], number: int) -> tuple[Tensor, Tensor]:
        images, targets = examples.batch(rows, device)
        streams = [
            secret.stream("augmentation", number, str(examples.patients[row]), int(places[row]))
            for row in rows
        ]
        return augment(images, augmentation, streams), targets

    return load


def check_study_engine(study: Study, *, input_shape: tuple[int, ...], device: torch.device) -> None:
    """Compare the study's privacy engine with a plain loop, on generated data of its shape alone.

    Args:
        study: its model, task and engine; fresh weights.
        input_shape: of one image, or of its features where the model's encoder is frozen.
        device: where torch computes.

    Raises:
        RunFailed: clipped sums differ, or a patient moves them by more than C.
    """
    multi_label = study.task == "multi-label"
    check_engine(
        trained_part(study_model(study)).to(device).train(),
        input_shape=input_shape,
        classes=len(study.classes),
        loss=loss_of(multi_label=multi_label),
        multi_label=multi_label,
        engine=study.privacy.engine,
        max_images_at_once=images_at_once(input_shape),
        device=device,
    )


def privacy_plan(study: Study, *, declared: int | None) -> PrivacyPlan:
    """What a site (or all sites' data pooled) of so many declared units will run.

    Each site computes it from the study itself: no sigma is ever taken from the server.

    Raises:
        BadInput: nothing is declared, or delta is too large for the site.
    """
    if declared is None:
        key = "declared_images" if study.privacy.unit == "image" else "declared_patients"
        raise BadInput(
            f"{key} is missing in site.yaml; privacy needs it. Add it (in a simulation: to "
            "simulation.site_defaults)."
        )
    return plan(
        study.privacy.target_epsilon,
        delta=study.privacy.target_delta,
        unit=Unit(study.privacy.unit),
        declared_patients=declared,
        training_share=study.data.train_share,
        sampling_rate=study.privacy.sampling_rate,
        steps_per_round=study.privacy.steps_per_round,
        rounds=study.training.rounds,
        max_grad_norm=study.privacy.max_grad_norm,
        images_per_patient=study.privacy.images_per_patient,
    )

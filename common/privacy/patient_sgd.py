"""DP-SGD whose unit is the patient (Abadi et al. 2016, arXiv:1607.00133; McMahan et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import BadInput
from common.privacy.bookkeeping import BookKeeper
from common.privacy.noise import Noise
from common.privacy.sampling import PatientBatch

Engine: TypeAlias = Literal["fast", "opacus", "plain"]
"""How a group's clipped sum is made: the same up to rounding.

fast: one backward pass for all patients (`bookkeeping.py`), for the layers that it has rules for;
opacus: the gradients of each image, by Opacus' hooks, for Opacus' layers; the oracle of the tests;
plain: an ordinary backward pass for each patient, for any layer that doesn't mix patients.
"""

Examples: TypeAlias = Callable[[NDArray[np.int64]], tuple[Tensor, Tensor]]
"""Rows (B,) -> inputs (B, ...) and targets (B, ...), on the module's device."""

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Outputs and targets -> one loss for each image (B,), as with reduction="none"."""


@contextmanager
def private_steps(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    examples: Examples,
    loss: Loss,
    max_grad_norm: float,
    noise_multiplier: float,
    expected_patients: float,
    noise: Noise,
    max_images_at_once: int,
    engine: Engine = "fast",
) -> Iterator[Callable[[PatientBatch], None]]:
    """Train `module` by clipped and noised steps; afterwards it is a plain module again.

    Each step averages a patient's gradients over that patient's images, clips the average to
    `max_grad_norm` (C), sums over patients, adds noise of standard deviation
    `noise_multiplier` x C, divides by `expected_patients` and lets `optimizer` step.

    Args:
        module: in train mode. A layer may see k rows of each image (the slices of a volume), an
            image's rows consecutive, and may be called several times.
        optimizer: over exactly the module's trainable parameters.
        examples: loads the rows of a batch; each image from itself alone (no mixup).
        loss: one value for each image, from that image alone (no weights fitted to the data).
        max_grad_norm: C, > 0.
        noise_multiplier: sigma / C, >= 0; 0 clips without any privacy.
        expected_patients: public divisor, > 0: sampling rate x declared patients x training share.
        noise: the round's own source (`noise_of`).
        max_images_at_once: memory bound, >= 1; a batch with more is worked through in groups of
            whole patients, and a patient with more in pieces. A patient alone in a group costs
            little more than without privacy: with volumes, 1 is fastest. Where memory runs out all
            the same, a group is halved and done again.
        engine: how clipped sums are made.

    Yields:
        `step(batch)`; it returns nothing, since a training loss is not covered by the noise.

    Raises:
        BadInput: a layer that can't be trained privately; all of them are named.
        ValueError: a number out of range, foreign optimizer parameters, a loss that is not one
            value for each image, rows that can't be shared out among the images, or inputs that
            are not contiguous.

    Formal guarantees:
        One step is the Gaussian mechanism with sensitivity C under adding or removing a patient.
        With batches from `poisson_batches` at rate q, T steps are accounted as
        (noise_multiplier, q, T) per patient. Public: every argument except `examples` and `noise`.
        Sensitive: batches and their sizes, gradients, losses. What a patient adds to a group's sum
        is at most C, whatever the weights (opacus: up to 1e-5 of C more, as its norms are float32
        sums; fast: 3e-6 of C were seen where a patient had a thousand equal rows in a layer); the
        float32 sum of all of them is rounded by about 1e-6 of C. Not covered: weights
        made absurd on purpose can amplify rounding until a patient's gradient depends on who
        shares its group; `plain` has one patient a group and isn't touched by that.

    Edge cases:
        ===============================  ==================================================
        empty batch                      the noisy step is taken all the same
        one patient                      the divisor stays `expected_patients`
        gradient not finite or over 1e18 that patient counts as zero in this step
        fault inside a step              the hooks go; give the weights up, nothing was sent
        ===============================  ==================================================
    """
    if not (max_grad_norm > 0 and noise_multiplier >= 0 and expected_patients > 0):
        raise ValueError(
            "expected max_grad_norm > 0, noise_multiplier >= 0, expected_patients > 0; "
            f"got {max_grad_norm}, {noise_multiplier}, {expected_patients}."
        )
    if max_images_at_once < 1:
        raise ValueError(f"max_images_at_once must be >= 1; got {max_images_at_once}.")
    trainable = [p for p in module.parameters() if p.requires_grad]
    stepped = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if sorted(map(id, trainable)) != sorted(map(id, stepped)):
        raise ValueError("the optimizer must hold exactly the module's trainable parameters.")
    refuse_unsupported(module, engine)

    from common.privacy._opacus import PatientOptimizer, image_hooks

    private = PatientOptimizer(
        optimizer,
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_patients=expected_patients,
        noise=noise,
    )
    books = BookKeeper(module)

    def losses(rows: NDArray[np.int64]) -> Tensor:
        return _losses(module, rows, examples=examples, loss=loss)

    def add(group: PatientBatch, limit: int) -> None:
        """Add a group's clipped sum, as the last thing: a fault before it has added nothing."""
        group = tuple(sorted(group, key=len))  # as many images side by side: faster sums
        rows, sizes = np.concatenate(group), [len(rows) for rows in group]
        if len(group) == 1:
            # A patient alone needs no gradients by image, so this is faster; and as gradients
            # add up in place, the memory bound holds however many images the patient has.
            for piece in _pieces(rows, limit):
                (losses(piece).sum() / len(rows)).backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
            private.add_patient()
        elif engine == "fast":
            private.add(
                books.clipped(lambda: losses(rows), sizes, max_grad_norm=max_grad_norm).sums
            )
        else:
            assert hooks is not None  # opacus: a group of `plain` is a single patient
            with hooks.on(images=len(rows)):
                losses(rows).sum().backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
            private.add_by_image(sizes)

    def step(batch: PatientBatch) -> None:
        private.zero_grad(set_to_none=True)
        for group in _whole_patients(batch, 1 if engine == "plain" else max_images_at_once):
            _halved_until_it_fits(add, group, max_images_at_once, forget=private.forget_images)
        private.step()

    with image_hooks(module) if engine == "opacus" else nullcontext() as hooks:
        try:
            yield step
        finally:
            private.close()


def clipped_sum(
    module: nn.Module,
    batch: PatientBatch,
    *,
    examples: Examples,
    loss: Loss,
    max_grad_norm: float,
    max_images_at_once: int,
    engine: Engine = "fast",
) -> tuple[Tensor, ...]:
    """What the noise is added to: the sum over patients of their clipped gradients.

    For tests and audits only, never to be sent. Arguments and errors as in `private_steps`.

    Returns:
        One tensor for each trainable parameter, in the module's order.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    sums: list[Tensor] = []
    optimizer.register_step_pre_hook(
        lambda *_: sums.extend(p.grad.clone() for p in parameters if p.grad is not None)
    )
    with private_steps(
        module,
        optimizer,
        examples=examples,
        loss=loss,
        max_grad_norm=max_grad_norm,
        noise_multiplier=0.0,
        expected_patients=1.0,
        noise=lambda total, *, std: None,
        max_images_at_once=max_images_at_once,
        engine=engine,
    ) as step:
        step(batch)
    return tuple(sums)


def refuse_unsupported(module: nn.Module, engine: Engine = "fast") -> None:
    """Raise BadInput naming every layer of `module` that `engine` can't train privately.

    Per-image gradients that are silently wrong are clipped to the wrong norm, and nobody notices;
    so whatever an engine has no exact rule for is refused before the first image is read.
    """
    from common.privacy._opacus import problems

    if found := problems(module, engine):
        raise BadInput(
            "This model can't be trained with differential privacy: " + "; ".join(found) + "."
        )


def _whole_patients(batch: PatientBatch, limit: int) -> Iterator[PatientBatch]:
    """The batch in groups of at most `limit` images; no patient is split.

    A patient in two groups would be clipped twice and so count double.
    """
    group: list[NDArray[np.int64]] = []
    for rows in batch:
        if group and sum(map(len, group)) + len(rows) > limit:
            yield tuple(group)
            group = []
        group.append(rows)
    if group:
        yield tuple(group)


def _halved_until_it_fits(
    add: Callable[[PatientBatch, int], None],
    group: PatientBatch,
    limit: int,
    *,
    forget: Callable[[], None],
) -> None:
    """Add a group of patients; when memory runs out, both its halves, of whole patients.

    A patient alone goes in smaller pieces of images.
    """
    try:
        return add(group, limit)
    except (MemoryError, RuntimeError) as error:
        images = min(limit, sum(map(len, group)))
        if not _is_out_of_memory(error) or images == 1:
            raise
    forget()  # outside of the handler, whose traceback holds what filled the memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(group) // 2
    for part in (group[:half], group[half:]) if half else (group,):
        _halved_until_it_fits(add, part, limit if half else images // 2, forget=forget)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "DefaultCPUAllocator" in str(error)  # torch has no type for it on the CPU


def _pieces(rows: NDArray[np.int64], limit: int) -> list[NDArray[np.int64]]:
    return [rows[start : start + limit] for start in range(0, len(rows), limit)]


def _losses(
    module: nn.Module, rows: NDArray[np.int64], *, examples: Examples, loss: Loss
) -> Tensor:
    """One loss for each image of `rows` (B,)."""
    inputs, targets = examples(rows)
    if len(inputs) != len(rows):
        raise ValueError(f"expected the inputs of {len(rows)} images; got {len(inputs)}.")
    if not inputs.is_contiguous():
        # Opacus' convolution rule gives half the true norm on channels_last, without a word.
        raise ValueError("inputs must be contiguous; call .contiguous() on them.")
    losses = loss(module(inputs), targets)
    if losses.shape != (len(rows),):
        raise ValueError(
            f"the loss must give one value for each image, shape ({len(rows)},); "
            f'got {tuple(losses.shape)}. Use reduction="none".'
        )
    return losses

"""The door to Opacus' training half: imported by patient_sgd only, and lazily (it is slow)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from common.privacy.randomness import gaussian

Sampler: TypeAlias = Callable[[Any, list[Tensor], Tensor], dict[nn.Parameter, Tensor]]
"""Layer, its inputs and its outputs' gradients -> gradients (rows, *shape) a parameter."""


class PatientOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus ships no types
    """Opacus' own clipping and scaling over patients in place of images, with the round's noise.

    Opacus clips the rows of `grad_sample`, whatever they stand for: `average_by_patient` makes
    them patients. Only the source of the noise is replaced.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_patients: float,
        noise: np.random.Generator,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_patients,  # the divisor: public, never the realised size
        )
        self.noise = noise

    def average_by_patient(self, sizes: Sequence[int]) -> None:
        """Replace each `grad_sample` (B, *shape) by its means over patients (U, *shape).

        `sizes` (U,) are the patients' numbers of images, in the order of the batch.
        """
        for p in self.params:
            if not sizes:
                p.grad_sample = p.new_zeros((0, *p.shape))
                continue
            images = self._get_flat_grad_sample(p)  # (B, *shape)
            if len(sizes) == len(images):
                p.grad_sample = images
            else:
                p.grad_sample = torch.stack([g.mean(0) for g in images.split(list(sizes))])
        self._leave_out_not_finite()

    def take_patient(self) -> None:
        """Make what an ordinary backward left in `grad` a single patient's `grad_sample`."""
        for p in self.params:
            p.grad_sample = (torch.zeros_like(p) if p.grad is None else p.grad).unsqueeze(0)
        self._leave_out_not_finite()

    def _leave_out_not_finite(self) -> None:
        """Count such a patient's gradient as zero: one NaN would tell the world who is there."""
        rows = [p.grad_sample.flatten(1).isfinite().all(1) for p in self.params]
        finite = torch.stack(rows).all(0)  # (U,)
        for p in self.params:
            p.grad_sample[~finite] = 0

    def add_noise(self) -> None:
        """Gaussian noise of sigma x C on the clipped sum, in the optimizer's parameter order."""
        std = self.noise_multiplier * self.max_grad_norm
        for p in self.params:
            _check_processed_flag(p.summed_grad)
            noise = torch.from_numpy(gaussian(self.noise, tuple(p.shape), std=std))
            # In float64 on the CPU, rounded once: see `gaussian`.
            p.grad = (p.summed_grad.cpu().double() + noise).to(p)
            _mark_as_processed(p.summed_grad)

    def close(self) -> None:
        """Leave nothing of any gradient on the parameters."""
        for p in self.params:
            p.grad = None
            del p.summed_grad  # the rest of what Opacus hangs on a parameter goes with the hooks


class ImageHooks(GradSampleHooks):  # type: ignore[misc]  # Opacus ships no types
    """Opacus' hooks, for layers that may see several rows of an image (the slices of a volume).

    A layer's weight gets its image's gradient from each of that image's rows, and the gradient of
    a sum is the sum of the gradients: so the rows are summed, not averaged.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, loss_reduction="sum", strict=False)
        self.GRAD_SAMPLERS: dict[type[nn.Module], Sampler] = {
            kind: partial(self._by_image, sampler)
            for kind, sampler in GradSampleHooks.GRAD_SAMPLERS.items()
        }
        self.images = 0
        self.remove_hooks()  # until `on`

    @contextmanager
    def on(self, *, images: int) -> Iterator[None]:
        """Let backward leave each image's gradient in `grad_sample`, (images, *shape)."""
        self.images = images
        self.add_hooks(loss_reduction=self.loss_reduction)
        try:
            yield
        finally:
            self.remove_hooks()

    def _by_image(
        self,
        sampler: Sampler,
        layer: Any,
        activations: list[Tensor],
        backprops: Tensor,
    ) -> dict[nn.Parameter, Tensor]:
        """Gradients (B, *shape) of a layer that saw k x B rows, an image's rows consecutive."""
        if len(backprops) % self.images:
            raise ValueError(
                f"a {type(layer).__name__} saw {len(backprops)} rows of {self.images} images; "
                "expected as many rows of each image."
            )
        layer.max_batch_len = self.images  # Opacus makes room for so many
        by_row = sampler(layer, activations, backprops)  # (k x B, *shape) each
        return {p: rows.reshape(self.images, -1, *p.shape).sum(1) for p, rows in by_row.items()}


@contextmanager
def image_hooks(module: nn.Module) -> Iterator[ImageHooks]:
    """What makes gradients by image when asked; afterwards `module` is plain again."""
    hooks = ImageHooks(module)
    try:
        with warnings.catch_warnings():
            # The first layer's input needs no gradient, and Opacus doesn't look at that.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield hooks
    finally:
        hooks.cleanup()
        for layer in module.modules():
            layer.__dict__.pop("activations", None)  # after a fault they would keep images alive
            layer.__dict__.pop("max_batch_len", None)


def problems(module: nn.Module) -> list[str]:
    """Why `module` can't be trained privately, a sentence for each layer; empty if it can."""
    found = []
    for name, layer in module.named_modules():
        where = f"{name or 'the model itself'} ({type(layer).__name__})"
        trainable = any(p.requires_grad for p in layer.parameters(recurse=False))
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            found.append(
                f"{where} mixes the patients of a batch and keeps their statistics; use GroupNorm"
            )
        elif getattr(layer, "track_running_stats", False):
            found.append(f"{where} keeps private statistics; set track_running_stats=False")
        elif trainable and type(layer) not in GradSampleHooks.GRAD_SAMPLERS:
            found.append(
                f"{where} has parameters of its own, for which no per-image gradient is known; "
                "build it from Conv, Linear, Embedding, GroupNorm or LayerNorm, or freeze it"
            )
        elif trainable and not layer.training:
            found.append(f"{where} is in eval mode; call module.train() first")
        if trainable and getattr(layer, "padding_mode", "zeros") != "zeros":
            found.append(f"{where} pads with something else than zeros; use padding_mode='zeros'")
        if getattr(layer, "inplace", False):
            found.append(f"{where} overwrites what its neighbour needs; use inplace=False")
        if any(not p.is_contiguous() for p in layer.parameters(recurse=False)):
            found.append(f"{where} has weights in channels_last order; use torch.contiguous_format")
    return found or [str(error) for error in ModuleValidator.validate(module)]

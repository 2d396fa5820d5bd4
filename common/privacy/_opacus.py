"""The door to Opacus' training half: imported by patient_sgd only, and lazily (it is slow)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from common.models.layers import ClassToken, PositionEmbedding
from common.privacy.bookkeeping import RULES, Gradients, clip_factors, squared_norms
from common.privacy.noise import Noise

if TYPE_CHECKING:
    from common.privacy.patient_sgd import Engine

Sampler: TypeAlias = Callable[[Any, list[Tensor], Tensor], dict[nn.Parameter, Tensor]]
"""Layer, its inputs and its outputs' gradients -> gradients (rows, *shape) a parameter."""

SAMPLERS: dict[type[nn.Module], Sampler] = GradSampleHooks.GRAD_SAMPLERS | {
    ClassToken: lambda layer, _inputs, backprops: {layer.token: backprops[:, 0]},
    PositionEmbedding: lambda layer, _inputs, backprops: {layer.embedding: backprops},
}


class PatientOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus ships no types
    """Opacus' optimizer with patients in place of images, and the round's noise.

    Groups of patients are clipped and added one after another; `step` adds the noise to their sum.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_patients: float,
        noise: Noise,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_patients,  # the divisor: public, never the realised size
        )
        self.noise = noise

    def add(self, clipped: Gradients) -> None:
        """Add a group's clipped gradients, which are ours from here on; it asks for no memory."""
        for p in self.params:
            if p in clipped and p.summed_grad is None:
                p.summed_grad = clipped[p]
            elif p in clipped:
                p.summed_grad += clipped[p]

    def add_patient(self) -> None:
        """Clip and add what an ordinary backward left in `grad`: a single patient's gradient."""
        found = {p: p.grad for p in self.params if p.grad is not None}
        squares = sum(squared_norms(grad.reshape(1, -1)) for grad in found.values())
        factor = clip_factors(torch.as_tensor(squares), self.max_grad_norm).item()
        for grad in found.values():
            # Zero times infinity isn't zero.
            _ = grad.mul_(factor) if factor else grad.zero_()
        self.add(found)
        self.original_optimizer.zero_grad(set_to_none=True)

    def add_by_image(self, sizes: Sequence[int]) -> None:
        """Average each `grad_sample` (B, *shape) by patient, and let Opacus clip and sum them.

        `sizes` (U,) are the patients' numbers of images, in the order of the batch.
        """
        for p in self.params:
            images = self._get_flat_grad_sample(p)  # (B, *shape)
            if len(sizes) < len(images):
                images = torch.stack([g.mean(0) for g in images.split(list(sizes))])
            p.grad_sample = images
        rows = [p.grad_sample.flatten(1).isfinite().all(1) for p in self.params]
        finite = torch.stack(rows).all(0)  # (U,)
        for p in self.params:
            p.grad_sample[~finite] = 0  # one NaN would tell the world who is there
        earlier = {p: p.summed_grad for p in self.params if p.summed_grad is not None}
        for p in self.params:
            p.summed_grad = None
        try:
            self.clip_and_accumulate()
        except BaseException:
            for p in self.params:
                p.summed_grad = earlier.get(p)
            raise
        self.add(earlier)
        self.forget_images()

    def forget_images(self) -> None:
        """Drop what a group left on the parameters, but for the sums."""
        for p in self.params:
            p.grad = None
            p.grad_sample = None

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """Noise and divisor; everybody is clipped already."""
        for p in self.params:
            if p.summed_grad is None:
                p.summed_grad = torch.zeros_like(p)
        self.add_noise()
        for p in self.params:
            p.grad /= self.expected_batch_size
            p.summed_grad = None
        return True

    def add_noise(self) -> None:
        """Gaussian noise of sigma x C on the clipped sum, in the optimizer's parameter order."""
        for p in self.params:
            self.noise(p.summed_grad, std=self.noise_multiplier * self.max_grad_norm)
            p.grad = p.summed_grad

    def close(self) -> None:
        """Leave nothing of any gradient on the parameters."""
        for p in self.params:
            p.grad = None
            for name in ("grad_sample", "summed_grad"):
                p.__dict__.pop(name, None)


class ImageHooks(GradSampleHooks):  # type: ignore[misc]  # Opacus ships no types
    """Opacus' hooks, for layers that may see several rows of an image (the slices of a volume).

    A layer's weight gets its image's gradient from each of that image's rows, and the gradient of
    a sum is the sum of the gradients: so the rows are summed, not averaged.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, loss_reduction="sum", strict=False)
        self.GRAD_SAMPLERS: dict[type[nn.Module], Sampler] = {
            kind: partial(self._by_image, sampler) for kind, sampler in SAMPLERS.items()
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


def problems(module: nn.Module, engine: Engine) -> list[str]:
    """Why `engine` can't train `module` privately, a sentence for each layer; empty if it can."""
    found = []
    seen: dict[nn.Parameter, str] = {}
    for name, layer in module.named_modules():
        where = f"{name or 'the model itself'} ({type(layer).__name__})"
        trained = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            found.append(
                f"{where} mixes the patients of a batch and keeps their statistics; use GroupNorm"
            )
        elif getattr(layer, "track_running_stats", False):
            found.append(f"{where} keeps private statistics; set track_running_stats=False")
        elif trained and not layer.training:
            found.append(f"{where} is in eval mode; call module.train() first")
        elif engine != "plain":
            found += [f"{where} {wrong}" for wrong in _by_layer(layer, trained, engine)]
            found += [
                f"{where} shares weights with {seen[p]}; {_PLAIN}" for p in trained if p in seen
            ]
            seen |= dict.fromkeys(trained, where)
    if engine == "plain":
        return found
    return found or [str(error) for error in ModuleValidator.validate(module)]


_PLAIN = "privacy.engine: plain would take it"


def _by_layer(layer: nn.Module, trained: list[nn.Parameter], engine: Engine) -> list[str]:
    """What gradients found layer by layer can't cope with."""
    wrong = []
    if trained and type(layer) not in (RULES if engine == "fast" else SAMPLERS):
        wrong.append(
            f"has parameters of its own, for which privacy.engine: {engine} knows no per-image "
            f"gradient; {_PLAIN}, or freeze it"
        )
    elif trained and getattr(layer, "padding_mode", "zeros") != "zeros":
        wrong.append(f"pads with something else than zeros; use padding_mode='zeros', or {_PLAIN}")
    if getattr(layer, "inplace", False):
        wrong.append(f"overwrites what its neighbour needs; use inplace=False, or {_PLAIN}")
    if any(not p.is_contiguous() for p in layer.parameters(recurse=False)):
        wrong.append(
            f"has weights in channels_last order; use torch.contiguous_format, or {_PLAIN}"
        )
    return wrong

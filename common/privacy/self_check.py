"""Is this machine's private step what it should be? A second of generated data, before a study.

Another processor, another release of torch or a model that nobody tried may give wrong norms
without a word; so a site compares before it trains. None of its files is opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import RunFailed
from common.privacy.patient_sgd import Engine, Loss, clipped_sum
from common.privacy.sampling import PatientBatch

_SUMS = 1e-4  # of the sum's length may the engine be off
_ABOVE_C = 1e-4  # of C may a unit move the sum by more: here, with all that float32 rounds
# At the kink of a ReLU one last bit of the forward pass can change a gradient by more than that; an
# engine that is wrong is wrong on any images.
_TRIES = 3
_UNITS: PatientBatch = tuple(np.array(rows) for rows in ([0, 1, 2, 3], [4], [5, 6]))


def check_engine(
    module: nn.Module,
    *,
    input_shape: tuple[int, ...],
    classes: int,
    loss: Loss,
    multi_label: bool,
    engine: Engine,
    max_images_at_once: int,
    device: torch.device,
) -> None:
    """Compare clipped sums with a plain autograd loop, and take units away.

    Args:
        module: on `device`, in train mode; its weights, and torch's random state, stay as they are.
        input_shape: of one image.
        classes: number of logits.
        loss: the study's, one value an image.
        multi_label: whether targets are (B, classes) of 0 and 1, in place of a class each.
        engine: the study's.
        max_images_at_once: the site's.

    Raises:
        RunFailed: sums differ, or a unit moves the sum by more than C.
    """
    for seed in range(_TRIES):
        off, moved = _compared(
            module,
            *_generated(seed, input_shape, classes, multi_label=multi_label),
            loss=loss,
            engine=engine,
            max_images_at_once=max_images_at_once,
            device=device,
        )
        if off <= _SUMS and moved <= 1 + _ABOVE_C:
            return
    others = " or ".join(name for name in ("opacus", "plain") if name != engine)
    raise RunFailed(
        f"privacy.engine: {engine} gives wrong clipped gradients on this machine (sums off by "
        f"{off:.1e}, at most {_SUMS:.0e} allowed; a patient moves them by {moved:.5f} C, "
        f"at most 1 allowed), so nothing is trained. Set privacy.engine to {others} in the "
        "study, and report this with the versions of torch and of the processor."
    )


def _generated(
    seed: int, input_shape: tuple[int, ...], classes: int, *, multi_label: bool
) -> tuple[Tensor, Tensor]:
    """Seven images and their targets, two of them in pairs whose gradients nearly cancel."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(7, *input_shape, generator=generator) * 2 - 1
    images[1] = images[0]  # the same picture with two answers
    images[3] = images[2]
    images[5:] *= 8.0
    if multi_label:
        return images, (torch.arange(7 * classes).view(7, -1) + torch.arange(7).view(7, 1)) % 2
    return images, torch.arange(7) % classes


def _compared(
    module: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    loss: Loss,
    engine: Engine,
    max_images_at_once: int,
    device: torch.device,
) -> tuple[float, float]:
    """How far the sum is off, relative, and by how much of C a unit moves it at most."""
    images, targets = images.to(device), targets.to(device)

    def examples(rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[Tensor, Tensor]:
        at = torch.from_numpy(rows).to(device)
        return images[at], targets[at]

    def summed(batch: PatientBatch, max_grad_norm: float) -> Tensor:
        sums = clipped_sum(
            module,
            batch,
            examples=examples,
            loss=loss,
            max_grad_norm=max_grad_norm,
            max_images_at_once=max_images_at_once,
            engine=engine,
        )
        return torch.cat([s.flatten() for s in sums]).double()

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        plain = []
        for rows in _UNITS:
            inputs, answers = examples(rows)
            trained = [p for p in module.parameters() if p.requires_grad]
            found = torch.autograd.grad(
                loss(module(inputs), answers).mean(), trained, allow_unused=True
            )
            pairs: Iterable[tuple[Tensor, Tensor | None]] = zip(trained, found, strict=True)
            flat = [(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs]
            plain.append(torch.cat(flat).double())
        norms = [float(gradient.norm()) for gradient in plain]
        limit = sorted(norms)[1]  # the middle one: some are clipped, some are not
        if not (math.isfinite(sum(norms)) and limit > 0):
            return math.inf, math.inf  # fresh weights have gradients: something is wrong already
        expected = sum(g * min(1.0, limit / n) for g, n in zip(plain, norms, strict=True) if n)
        whole = summed(_UNITS, limit)
        off = float((whole - expected).norm() / torch.as_tensor(expected).norm())
        moved = [
            float((whole - summed(_UNITS[:i] + _UNITS[i + 1 :], limit)).norm()) / limit
            for i in range(len(_UNITS))
        ]
    return off, max(moved)

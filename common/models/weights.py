"""A model's trained weights as one flat array, and their hash.

One array a message costs a quarter of twenty (each is a signed call of its own, facts); names and
shapes need not travel, since both ends know them from the model itself. Only trained parameters
count: a frozen encoder is installed code, and no buffer (BatchNorm) may leave a site.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes of a model's trained parameters, in the order of the flat array."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Number of values in the flat array."""
        return sum(prod(shape) for shape in self.shapes)

    def split(self, flat: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """The flat array (size,) as named views of the parameters' shapes."""
        arrays, start = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            arrays[name] = flat[start : start + prod(shape)].reshape(shape)
            start += prod(shape)
        return arrays


def trained_layout(model: nn.Module) -> Layout:
    """The layout of `model`: its parameters that require a gradient, sorted by name."""
    trained = sorted((n, tuple(p.shape)) for n, p in model.named_parameters() if p.requires_grad)
    return Layout(tuple(n for n, _ in trained), tuple(s for _, s in trained))


def pack(model: nn.Module) -> NDArray[np.float32]:
    """The trained parameters as one float32 array (size,), in the order of `trained_layout`."""
    parameters = dict(model.named_parameters())
    pieces = [
        parameters[name].detach().cpu().numpy().ravel() for name in trained_layout(model).names
    ]
    return np.concatenate(pieces).astype(np.float32, copy=False)


@torch.no_grad()
def unpack(flat: NDArray[np.float32], model: nn.Module) -> None:
    """Copy a flat array (size,) into the trained parameters of `model`.

    Raises:
        ValueError: the array has another dtype or length, or is not finite.
    """
    layout = trained_layout(model)
    if flat.dtype != np.float32 or flat.shape != (layout.size,):
        raise ValueError(f"weights must be float32 ({layout.size},); got {flat.dtype} {flat.shape}")
    if not np.isfinite(flat).all():
        raise ValueError("weights must be finite")
    parameters = dict(model.named_parameters())
    for name, array in layout.split(flat).items():
        parameters[name].copy_(torch.from_numpy(array.copy()))


def weights_sha256(flat: NDArray[np.float32], layout: Layout) -> str:
    """Hash over sorted (name, dtype, shape, little-endian bytes), hexadecimal."""
    digest = hashlib.sha256()
    for name, array in sorted(layout.split(flat).items()):
        digest.update(f"{name}\0float32\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array, dtype="<f4").data)
    return digest.hexdigest()

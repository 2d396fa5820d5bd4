"""Gaussian noise from a round's secret, and what its low bits would give away.

A Gaussian draw in floating point takes only certain values; added to a sum, the ones that are
missing tell sums apart (Mironov, CCS 2012; Haney et al. 2022, arXiv:2207.13793).
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from randomgen import AESCounter
from torch import Tensor

from common.privacy.epsilon import Randomness
from common.privacy.randomness import RoundSecret

_GRID_BITS = 16  # the grid's step is 2^-16 of the standard deviation, or up to half of that
_AT_ONCE = 2**14  # numbers that are worked on at once: what stays near the processor


class Noise(Protocol):
    """An endless source of noise."""

    def __call__(self, total: Tensor, *, std: float) -> None:
        """Add independent Gaussian values to `total` (float32, contiguous), in place.

        Args:
            std: standard deviation, >= 0; 0 adds and draws nothing.
        """


def noise_of(secret: RoundSecret) -> Noise:
    """The noise of a round, in the quality that its secret is worth.

    Formal guarantees: from a secret source, that of `secret_noise`; from a seeded one none, since
    whoever has the seed can take the noise away again.
    """
    key = secret.key("noise")
    return secret_noise(key) if secret.randomness is Randomness.SECRET else seeded_noise(key)


def seeded_noise(key: bytes) -> Noise:
    """Noise for simulation, as fast as torch draws it: one float32 draw a value.

    The same key gives the same bits on the same wheels, whatever the device.
    """
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little"))
    space = torch.empty(0)

    def add(total: Tensor, *, std: float) -> None:
        nonlocal space
        if std == 0:
            return
        if len(space) < total.numel():  # fresh memory would cost as much as the draws
            space = torch.empty(total.numel())
        draws = space[: total.numel()].view(total.shape)
        total += draws.normal_(0, std, generator=generator).to(total.device)

    return add


def secret_noise(key: bytes) -> Noise:
    """Noise that withstands attacks on floating-point values.

    The draw is in float64 (numpy's ziggurat on AES-128 in counter mode), the sum is taken in
    float64, and what comes out is rounded to a public grid of step s, at most 2^-16 of the standard
    deviation: nobody ever sees a low bit. Without the float64 this were the Gaussian mechanism and
    something done with its result, which costs nothing.

    With it: the generator's values lie at most 2^-50 standard deviations apart where nearly all of
    them fall (in the tail farther: 2^-48 at five, 2^-32 at eight), so a step of the grid holds 2^33
    of them or more, and its probability is right to 2^-33 of itself. Over 10^11 values (11 M
    weights, 10^4 steps) these factors multiply to e^(+-0.0003) but with probability 1e-10 (they
    are independent: Hoeffding's inequality), by an estimate that leaves the few values of the tail
    out. So epsilon is off by less than 0.001. That beats a sum of four draws (Holohan & Braghin
    2021, arXiv:2107.10138), which only makes the search for what is missing long, and takes four
    times as long itself.

    Args:
        key: at least 16 bytes that nothing else is drawn from.
    """
    generator = np.random.Generator(AESCounter(key=int.from_bytes(key[:16], "little")))
    space = np.empty(_AT_ONCE)

    def add(total: Tensor, *, std: float) -> None:
        if std == 0:
            return
        values = total.cpu()  # itself, if it is there already
        flat: NDArray[np.float32] = values.view(-1).numpy()
        step = grid_step(std)
        for start in range(0, len(flat), _AT_ONCE):
            part = flat[start : start + _AT_ONCE]
            noisy = generator.standard_normal(out=space[: len(part)])
            noisy *= std
            noisy += part
            noisy /= step  # a power of two: exact, as is the product below
            np.rint(noisy, out=noisy)
            noisy *= step
            part[:] = noisy
        if values is not total:
            total.copy_(values)

    return add


def grid_step(std: float) -> float:
    """The largest power of two that is at most 2^-16 of `std`, > 0."""
    return math.ldexp(1.0, math.frexp(std)[1] - 1 - _GRID_BITS)

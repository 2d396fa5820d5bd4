"""Gaussian noise from a round's secret, and what its low bits would give away.

A Gaussian draw in floating point takes only certain values; added to a sum, the ones that are
missing tell sums apart (Mironov, CCS 2012; Haney et al. 2022, arXiv:2207.13793).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

from common.privacy.epsilon import Randomness
from common.privacy.randomness import RoundSecret

_GRID_BITS = 16  # the grid's step is 2^-16 of the standard deviation, or up to half of that
_AT_ONCE = 2**16  # values that are drawn at once: they stay near the processor


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
    """Noise for simulation, as fast as it can be had: one float32 draw a value.

    The same key gives the same bits on the same wheels and kind of processor, whatever the device.
    """
    draw = _standard_normals(key, torch.float32)

    def add(total: Tensor, *, std: float) -> None:
        if std == 0:
            return
        for part, draws in draw(total):
            part.add_(draws.to(part.device), alpha=std)

    return add


def secret_noise(key: bytes) -> Noise:
    """Noise that withstands attacks on floating-point values.

    The draw is in float64, the sum is taken in float64, and what comes out is rounded to a public
    grid of step s, at most 2^-16 of the standard deviation: nobody ever sees a low bit. Without the
    float64 this were the Gaussian mechanism and something done with its result, which costs
    nothing.

    With it: up to 5 standard deviations out, where all but one of a million values fall, the
    angles of a radius put 2^32 values or more into a step of the grid, and rounding moves its edges
    by 2^-32 of it or less (at 9 by four times that); so its probability is right to 2^-31 of
    itself. Over 10^11 values (11 M weights, 10^4 steps) these factors multiply to e^(+-0.001) but
    with probability 1e-10 (they are independent: Hoeffding's inequality), by an estimate that
    leaves the few values of the tail out. So epsilon, which compares two sums, is off by about
    0.002. That beats a sum of four draws (Holohan & Braghin 2021, arXiv:2107.10138), which only
    makes the search for what is missing long, and takes four times as long itself.

    Args:
        key: at least 16 bytes that nothing else is drawn from.
    """
    draw = _standard_normals(key, torch.float64)

    def add(total: Tensor, *, std: float) -> None:
        if std == 0:
            return
        values = total.cpu()  # itself, if it is there already
        step = grid_step(std)  # a power of two: to divide and multiply by it is exact
        for part, draws in draw(values):
            part.copy_(draws.mul_(std).add_(part).div_(step).round_().mul_(step))
        if values is not total:
            total.copy_(values)

    return add


def grid_step(std: float) -> float:
    """The largest power of two that is at most 2^-16 of `std`, > 0."""
    return math.ldexp(1.0, math.frexp(std)[1] - 1 - _GRID_BITS)


def _standard_normals(
    key: bytes, dtype: torch.dtype
) -> Callable[[Tensor], Iterator[tuple[Tensor, Tensor]]]:
    """Endless standard normal values from AES-128 in counter mode.

    Returns:
        Given a tensor, each part of it in turn (a view, flat) and as many fresh values on the CPU,
        which are the caller's to overwrite.
    """
    word = {torch.float32: torch.int32, torch.float64: torch.int64}[dtype]
    cipher = Cipher(AES128(key[:16]), CTR(bytes(16))).encryptor()
    zeros = bytes(_AT_ONCE * word.itemsize)
    stream = bytearray(len(zeros) + 15)  # the cipher wants room for one block more
    words = torch.frombuffer(stream, dtype=word, count=_AT_ONCE)
    values = torch.empty(0, dtype=dtype)

    def draw(total: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal values
        rest = total.view(-1)
        while len(rest):
            if not len(values):
                cipher.update_into(zeros, stream)
                values = _box_muller(words, dtype)
            draws, values = values[: len(rest)], values[len(rest) :]
            yield rest[: len(draws)], draws
            rest = rest[len(draws) :]

    return draw


def _box_muller(words: Tensor, dtype: torch.dtype) -> Tensor:
    """As many standard normal values as random words (N,), N even; two are a radius and an angle.

    Box & Muller, Ann. Math. Stat. 29 (1958). None is drawn again, as by methods that reject: how
    long it takes tells nothing of the values (Jin et al., S&P 2022, arXiv:2112.05307).
    """
    scale = 2.0 ** (1 - 8 * words.itemsize)
    radius, angle = words.to(dtype).chunk(2)  # within 1 / scale of 0
    radius.abs_().add_(0.5).mul_(scale)  # in (0, 1], and small numbers are as exact as large ones
    radius.log_().mul_(-2).sqrt_()
    angle.mul_(math.pi * scale)
    values = torch.empty(len(words), dtype=dtype)
    one, other = values.chunk(2)
    torch.cos(angle, out=one).mul_(radius)
    torch.sin(angle, out=other).mul_(radius)
    return values

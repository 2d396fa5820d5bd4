"""Noise: Gaussian out to its tails, repeatable by its key, and without low bits where it counts."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import ECB
from randomgen import AESCounter
from scipy import stats

from common.privacy.epsilon import Randomness
from common.privacy.noise import (
    Noise,
    _box_muller,
    grid_step,
    noise_of,
    secret_noise,
    seeded_noise,
)
from common.privacy.randomness import RoundSecret

KEY = bytes(range(32))
STD = 2.5
SOURCES = pytest.mark.parametrize("source", [secret_noise, seeded_noise])


def drawn(source: Noise, *shape: int, std: float = STD) -> torch.Tensor:
    """What is added to zeros."""
    total = torch.zeros(shape)
    source(total, std=std)
    return total


@SOURCES
def test_noise_is_gaussian_out_to_its_tails(source: Callable[[bytes], Noise]) -> None:
    """A Kolmogorov-Smirnov test, four moments and the counts beyond 3 and 4 sigma fit."""
    z = drawn(source(KEY), 1000, 1000).double().numpy().ravel() / STD
    n = len(z)
    assert stats.kstest(z[:100_000], "norm").pvalue > 1e-3
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs(stats.skew(z)) < 4 * np.sqrt(6 / n)
    assert abs(stats.kurtosis(z)) < 4 * np.sqrt(24 / n)
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 4 / np.sqrt(n)
    for limit in (3, 4):
        expected = n * 2 * stats.norm.sf(limit)
        assert abs((np.abs(z) > limit).sum() - expected) < 4 * np.sqrt(expected)


@SOURCES
def test_the_same_key_gives_the_same_noise(source: Callable[[bytes], Noise]) -> None:
    """Draw after draw; torch's own seed plays no part, and another key gives other noise."""
    one, other = source(KEY), source(KEY)
    first = drawn(one, 3, 40_000)
    torch.manual_seed(1)
    assert torch.equal(first, drawn(other, 3, 40_000))
    second = drawn(one, 17)
    assert torch.equal(second, drawn(other, 17))
    assert not torch.isclose(second, first.flatten()[:17]).any()
    assert not torch.isclose(drawn(source(bytes(32)), 17), first.flatten()[:17]).any()


@SOURCES
def test_noise_is_added_in_place(source: Callable[[bytes], Noise]) -> None:
    """The sum stays beneath it, in its own memory."""
    total = torch.full((2, 30_000), 1e4)
    source(KEY)(total, std=STD)
    assert torch.allclose(total - 1e4, drawn(source(KEY), 2, 30_000), atol=2e-3)


@SOURCES
def test_no_noise_draws_nothing(source: Callable[[bytes], Noise]) -> None:
    """A standard deviation of 0 leaves sum and stream alone; so does an empty sum."""
    noise = source(KEY)
    assert not drawn(noise, 2, 3, std=0.0).any()
    assert drawn(noise, 0, 3).shape == (0, 3)
    assert torch.equal(drawn(noise, 5), drawn(source(KEY), 5))


@pytest.mark.parametrize("std", [1.0, 2.5, 1e-7, 3e8])
def test_secret_noise_leaves_only_public_steps(std: float) -> None:
    """Whatever the sum's low bits are, the result is a multiple of a grid's step."""
    step = grid_step(std)
    assert std * 2**-17 < step <= std * 2**-16
    assert np.frexp(step)[0] == 0.5  # a power of two
    total = torch.rand(50_000, generator=torch.Generator().manual_seed(1)) * std
    secret_noise(KEY)(total, std=std)
    steps = total.double().numpy() / step
    assert np.array_equal(steps, np.rint(steps))


def test_neighbouring_steps_come_equally_often() -> None:
    """No step of the grid is missing, nor favoured, whatever the sum is: 0 or a third of one."""
    step = grid_step(1.0)
    for offset in (0.0, step / 3):
        total = torch.full((4_000_000,), offset)
        secret_noise(KEY)(total, std=1.0)
        steps = np.rint(total.double().numpy() / step).astype(int)
        near = np.bincount(steps[np.abs(steps) <= 500] + 500, minlength=1001)
        assert stats.chisquare(near).pvalue > 1e-3


@pytest.mark.parametrize(
    ("source", "word", "off"), [(secret_noise, "int64", 1e-12), (seeded_noise, "int32", 1e-5)]
)
def test_noise_is_box_and_mullers_on_aes(
    source: Callable[[bytes], Noise], word: str, off: float
) -> None:
    """AES-128 in counter mode as an independent AES gives it, a pair at a time by plain math."""
    n = 2**16
    blocks = AESCounter(key=int.from_bytes(KEY[:16], "little"))
    for counter, block in enumerate((bytes(16), (1).to_bytes(16, "little"))):
        assert blocks.random_raw(2).astype("<u8").tobytes() == ecb(block), counter
    size = np.dtype(word).itemsize
    words = np.frombuffer(
        b"".join(ecb(i.to_bytes(16, "big")) for i in range(n * size // 16)),
        dtype=f"<{word[0]}{size}",
    )
    ends = 2.0 ** (8 * size - 1)
    expected = [
        math.sqrt(-2 * math.log((abs(int(one)) + 0.5) / ends)) * turn(math.pi * int(other) / ends)
        for turn in (math.cos, math.sin)
        for one, other in zip(words[: n // 2], words[n // 2 :], strict=True)
    ]
    found = drawn(source(KEY), n + 1).double().numpy() / STD
    step = grid_step(STD) / STD if source is secret_noise else 0.0
    assert np.abs(found[:n] - expected).max() < step / 2 + off
    assert found[n] != found[0]  # the stream goes on


def ecb(block: bytes) -> bytes:
    """AES-128 of one block."""
    return Cipher(AES128(KEY[:16]), ECB()).encryptor().update(block)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_the_uniform_distribution_are_numbers(dtype: torch.dtype) -> None:
    """A word of 0 gives the longest radius, those at the ends give 0: never infinity or NaN."""
    word = torch.int32 if dtype == torch.float32 else torch.int64
    ends = torch.iinfo(word)
    radii = torch.tensor([0, 1, -1, ends.min, ends.max], dtype=word)
    values = _box_muller(torch.cat([radii, torch.zeros_like(radii)]), dtype)
    bits = 8 * word.itemsize
    longest = [math.sqrt(2 * math.log(2) * bits), *[math.sqrt(2 * math.log(2**bits / 3))] * 2]
    assert values[:3].tolist() == pytest.approx(longest, rel=1e-6)
    assert not values[3:].any()


def test_a_secret_source_gets_secret_noise() -> None:
    """And a seeded one the fast noise, each by its own key."""
    for randomness, source in (
        (Randomness.SECRET, secret_noise),
        (Randomness.SEEDED, seeded_noise),
    ):
        secret = RoundSecret(KEY, randomness=randomness)
        assert torch.equal(drawn(noise_of(secret), 50), drawn(source(secret.key("noise")), 50))

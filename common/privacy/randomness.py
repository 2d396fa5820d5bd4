"""All privacy randomness of a round from 32 secret bytes (HMAC: RFC 2104; ChaCha20: RFC 8439)."""

from __future__ import annotations

import hmac
import math
import secrets
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from randomgen import ChaCha

from common.privacy.epsilon import Randomness

_BYTES = 32


class RoundSecret:
    """The 32 bytes that decide which patients, which of their images and what noise.

    Formal guarantees: whoever does not hold the bytes cannot tell the streams from true
    randomness (as long as HMAC-SHA256 and ChaCha20 stand), nor learn one stream from another.
    With `Randomness.SEEDED` anybody with the study's seed can, so nothing is guaranteed.

    Edge cases: never shown by `repr`, never pickled, of no use after `erase`.

    Args:
        material: exactly 32 bytes.
        randomness: where they came from; decides what may be promised.

    Raises:
        ValueError: not 32 bytes.
    """

    __slots__ = ("_material", "randomness")

    def __init__(self, material: bytes, *, randomness: Randomness) -> None:
        if len(material) != _BYTES:
            raise ValueError(f"a round's secret has {_BYTES} bytes; got {len(material)}.")
        self._material = bytearray(material)
        self.randomness = randomness

    @classmethod
    def from_os(cls) -> Self:
        """Fresh bytes from the operating system: the only source that gives a guarantee."""
        return cls(secrets.token_bytes(_BYTES), randomness=Randomness.SECRET)

    @classmethod
    def seeded(
        cls,
        seed: int,
        *,
        study_hash: str,
        fold: int,
        round_number: int,
        weights_sha256: str,
        data_fingerprint: str,
    ) -> Self:
        """Repeatable bytes for simulation and tests: the same arguments give the same round."""
        parts = (study_hash, fold, round_number, weights_sha256, data_fingerprint)
        key = _encode("fedward seeded round", seed)
        return cls(hmac.digest(key, _encode(*parts), "sha256"), randomness=Randomness.SEEDED)

    def reveal(self) -> bytes:
        """The bytes themselves, for the site's ledger only (a killed round is resumed with them).

        Raises:
            RuntimeError: they have been erased.
        """
        if not any(self._material):
            raise RuntimeError("This round's secret has been erased.")
        return bytes(self._material)

    def erase(self) -> None:
        """Overwrite the bytes; later draws raise. Copies that Python made stay until reused."""
        self._material[:] = bytes(_BYTES)

    def stream(self, purpose: str, *parts: str | int) -> np.random.Generator:
        """An endless cryptographic stream of its own for each purpose and parts."""
        digest = hmac.digest(self.reveal(), _encode(purpose, *parts), "sha256")
        key = int.from_bytes(digest, "little")
        return np.random.Generator(ChaCha(key=key, rounds=20))

    def __repr__(self) -> str:
        return f"RoundSecret(<hidden>, randomness={self.randomness.value!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A round's secret is never pickled.")


def _encode(*parts: str | int) -> bytes:
    """Parts as bytes so that no two different lists of parts give the same bytes."""
    encoded = ((b"i" if isinstance(part, int) else b"s", str(part).encode()) for part in parts)
    return b"".join(b"%b%d:%b" % (tag, len(text), text) for tag, text in encoded)


def gaussian(
    generator: np.random.Generator, shape: tuple[int, ...], *, std: float
) -> NDArray[np.float64]:
    """Independent Gaussian values that withstand attacks on floating-point noise.

    A single draw reaches only certain floats, and the missing ones give away the value that was
    hidden (Mironov 2012). As Opacus' secure mode does, each value is the sum of four float64 draws
    over 2 (Holohan & Braghin 2021, arXiv:2107.10138, section 5.1), for which the search is out of
    reach. Add it in float64 and round once, afterwards.

    Args:
        generator: a stream of the round's secret.
        shape: of the result; may hold zeros.
        std: standard deviation, >= 0; 0 gives zeros and draws nothing.

    Returns:
        float64 array of `shape`.
    """
    total = np.zeros(math.prod(shape))
    if std:
        draw = np.empty_like(total)
        for _ in range(4):
            generator.standard_normal(out=draw)
            total += draw
        total *= std / 2
    return total.reshape(shape)

"""All privacy randomness of a round from 32 secret bytes (HMAC: RFC 2104; ChaCha20: RFC 8439)."""

from __future__ import annotations

import hmac
import secrets
from typing import NoReturn, Self

import numpy as np
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
        key = int.from_bytes(self.key(purpose, *parts), "little")
        return np.random.Generator(ChaCha(key=key, rounds=20))

    def key(self, purpose: str, *parts: str | int) -> bytes:
        """32 bytes of its own for each purpose and parts."""
        return hmac.digest(self.reveal(), _encode(purpose, *parts), "sha256")

    def __repr__(self) -> str:
        return f"RoundSecret(<hidden>, randomness={self.randomness.value!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A round's secret is never pickled.")


def _encode(*parts: str | int) -> bytes:
    """Parts as bytes so that no two different lists of parts give the same bytes."""
    encoded = ((b"i" if isinstance(part, int) else b"s", str(part).encode()) for part in parts)
    return b"".join(b"%b%d:%b" % (tag, len(text), text) for tag, text in encoded)

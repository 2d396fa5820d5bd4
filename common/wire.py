"""What a site's update looks like on its way: float32, bfloat16, or int8 with a scale a block.

The two short forms carry the difference from the incoming weights, which both ends have, rounded
stochastically (Gupta et al., ICML 2015, arXiv:1502.02551): up or down by chance, so that the mean
is the value itself. Nothing of the rounding is kept for the next round (no error feedback), so a
round stays a function of what came in, the data and the round's secret.

Formal guarantees: the update is rounded after it was noised, so what leaves is computed from a
private value and public ones alone: the promise is untouched. The chance comes from the round's
secret: it is never sent, and nothing relies on it staying unknown.

`short` gives float32 values that the short form holds exactly; `pack` and `unpack` are exact, so a
reply is the same bytes whenever it is packed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.config import Wire

Packed = NDArray[np.float32] | NDArray[np.uint16] | NDArray[np.uint8]

DTYPES: Final[dict[Wire, str]] = {"float32": "float32", "bfloat16": "uint16", "int8": "uint8"}
BLOCK: Final = 256  # values that share a scale, which is a power of two
_MOST = 127
_LEAST_EXPONENT = -126  # a scale is a normal float32 number
_LARGE_EXPONENT = 121  # 127 x 2^121 is finite
_AT_ONCE = 2**20  # values: a multiple of BLOCK


def short(
    update: NDArray[np.float32], wire: Wire, stream: np.random.Generator
) -> NDArray[np.float32]:
    """An update rounded by chance to what `wire` holds exactly.

    Args:
        update: (size,), finite; the new weights minus the incoming ones.
        wire: bfloat16 or int8; with float32 it stays as it is.
        stream: where the chance comes from.

    Returns:
        (size,): of bfloat16 8 bits of precision are left, of int8 127 steps to the largest
        magnitude in each block of 256, at most twice as large as they need be.
    """
    if wire == "float32":
        return update
    found = np.empty_like(update)
    for part in _parts(update.size):
        chance = stream.random(found[part].size, dtype=np.float32)
        found[part] = (_to_bfloat16 if wire == "bfloat16" else _to_steps)(update[part], chance)
    return found


def pack(update: NDArray[np.float32], wire: Wire) -> Packed:
    """The values as they travel; raises ValueError where they are not what `short` gives.

    Returns:
        float32 as it is; bfloat16 as uint16 (size,); int8 as uint8 (size + blocks,): the steps,
        then the power of two of each block.
    """
    if wire == "float32":
        return update
    if wire == "bfloat16":
        bits = update.view(np.uint32)
        if (bits & 0xFFFF).any():
            raise ValueError("expected values that bfloat16 holds exactly")
        return (bits >> 16).astype(np.uint16)
    blocks = -(-update.size // BLOCK)
    packed = np.empty(update.size + blocks, dtype=np.uint8)
    steps, powers = packed[: update.size].view(np.int8), packed[update.size :].view(np.int8)
    for part in _parts(update.size):
        exponents = _exponents(update[part])
        scaled = np.ldexp(update[part], -_spread(exponents, update[part].size))
        with np.errstate(invalid="ignore"):  # what isn't finite is refused below
            steps[part] = scaled
        powers[part.start // BLOCK : part.start // BLOCK + exponents.size] = exponents
        if not np.array_equal(steps[part], scaled):
            raise ValueError("expected values that int8 holds exactly")
    return packed


def unpack(packed: Packed, wire: Wire) -> NDArray[np.float32] | None:
    """What `pack` was given; None for a length that no update has."""
    if wire == "float32":
        return packed.view(np.float32)
    if wire == "bfloat16":
        return (packed.astype(np.uint32) << 16).view(np.float32)
    size = packed.size - -(-packed.size // (BLOCK + 1))
    if size + -(-size // BLOCK) != packed.size:
        return None
    steps, powers = packed[:size].view(np.int8), packed[size:].view(np.int8)
    found = np.empty(size, dtype=np.float32)
    for part in _parts(size):
        exponents = powers[part.start // BLOCK : -(-part.stop // BLOCK)].astype(np.int32)
        with np.errstate(over="ignore"):  # infinite values are refused as such
            np.ldexp(
                steps[part].astype(np.float32),
                _spread(exponents, found[part].size),
                out=found[part],
            )
    return found


def _parts(size: int) -> Iterator[slice]:
    """Slices of whole blocks, so that temporary copies stay small."""
    return (slice(start, min(start + _AT_ONCE, size)) for start in range(0, size, _AT_ONCE))


def _to_bfloat16(values: NDArray[np.float32], chance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Add up to one step, then cut: the magnitude goes up in proportion to what is cut off."""
    bits = values.view(np.uint32)
    raised = (bits + (chance * 65_536).astype(np.uint32)) & np.uint32(0xFFFF0000)
    cut = bits & np.uint32(0xFFFF0000)
    infinite = (raised & np.uint32(0x7F800000)) == 0x7F800000  # the largest magnitudes go down
    return np.where(infinite, cut, raised).view(np.float32)


def _to_steps(values: NDArray[np.float32], chance: NDArray[np.float32]) -> NDArray[np.float32]:
    exponents = _spread(_exponents(values), values.size)
    # In float64 a quotient and chance add up exactly enough: 24 + 24 bits.
    steps = np.floor(np.ldexp(values.astype(np.float64), -exponents) + chance)
    most = np.where(exponents > _LARGE_EXPONENT, _MOST // 2, _MOST)  # 64 x 2^122 would be infinite
    rounded: NDArray[np.float32] = np.ldexp(np.clip(steps, -most, most), exponents).astype("f4")
    return rounded


def _exponents(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """For each block the least power of two of which 127 reach its largest magnitude."""
    largest = np.maximum.reduceat(np.abs(values), np.arange(0, values.size, BLOCK)).astype(
        np.float64
    )
    fraction, exponent = np.frexp(largest / _MOST)
    least = exponent - (fraction == 0.5)  # itself a power of two
    return np.maximum(np.where(largest > 0, least, 0), _LEAST_EXPONENT).astype(np.int32)


def _spread(exponents: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    """Each block's for each of its values."""
    return np.repeat(exponents, BLOCK)[:size]

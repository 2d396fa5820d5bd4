"""Short wires: exact once rounded, right in the mean, bounded in size and error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from common.config import Wire
from common.wire import BLOCK, DTYPES, pack, short, unpack

SHORT: tuple[Wire, ...] = ("bfloat16", "int8")
FINITE = arrays.arrays(
    np.float32,
    st.integers(0, 3 * BLOCK),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def stream(seed: int = 0) -> np.random.Generator:
    """A source of chance."""
    return np.random.default_rng(seed)


@pytest.mark.parametrize("wire", SHORT)
@given(update=FINITE)
def test_what_was_rounded_travels_exactly(wire: Wire, update: NDArray[np.float32]) -> None:
    """Packed and unpacked again, and packed again: the same bits; and it stays finite."""
    found = short(update, wire, stream())
    assert np.isfinite(found).all()
    packed = pack(found, wire)
    assert packed.dtype == DTYPES[wire]
    back = unpack(packed, wire)
    assert back is not None
    assert np.array_equal(back, found)
    assert pack(back, wire).tobytes() == packed.tobytes()


@pytest.mark.parametrize("wire", SHORT)
@given(update=FINITE)
def test_a_value_moves_by_less_than_a_step(wire: Wire, update: NDArray[np.float32]) -> None:
    """bfloat16: 1/128 of the value; int8: 2/127 of the largest in its block."""
    found = short(update, wire, stream()).astype(np.float64)
    exact = update.astype(np.float64)
    if wire == "bfloat16":
        bound = np.maximum(np.abs(exact) / 128, 2.0**-133)
    else:
        padded = np.zeros(-(-max(update.size, 1) // BLOCK) * BLOCK)
        padded[: update.size] = np.abs(exact)
        largest = padded.reshape(-1, BLOCK).max(1)
        bound = np.maximum(np.repeat(largest, BLOCK)[: update.size] * 2 / 127, 2.0**-126)
    assert (np.abs(found - exact) <= bound).all()


@pytest.mark.parametrize("wire", SHORT)
def test_rounding_is_right_in_the_mean(wire: Wire) -> None:
    """Over many draws the mean is the value, for both signs and for what is far below a step."""
    values = np.array([1.0, -0.3, 0.001, -0.0001, 0.7, 0.0], dtype=np.float32)
    draws = np.stack([short(values, wire, stream(seed)) for seed in range(4000)])
    spread = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - values) <= 5 * spread + 1e-9).all()
    assert draws.std(0)[1] > 0


@pytest.mark.parametrize("wire", SHORT)
def test_large_updates_are_rounded_as_small_ones(wire: Wire) -> None:
    """Beyond what is done at once the stream goes on, and nothing depends on the last block."""
    update = stream().normal(size=2**20 + 3 * BLOCK + 5).astype(np.float32)
    found = short(update, wire, stream())
    assert np.abs(found - update).max() < 0.07  # a step is a power of two: up to 5 / 64
    assert np.array_equal(short(update[: 2**20], wire, stream()), found[: 2**20])
    packed = pack(found, wire)
    assert packed.nbytes == {"bfloat16": 2 * update.size, "int8": update.size + 4100}[wire]
    assert np.array_equal(unpack(packed, wire), found)


@pytest.mark.parametrize("wire", SHORT)
def test_what_was_not_rounded_is_refused(wire: Wire) -> None:
    """Values that the form doesn't hold exactly can't be packed: nothing is cut unseen."""
    with pytest.raises(ValueError, match="holds exactly"):
        pack(np.array([1.0, 1 / 3], dtype=np.float32), wire)


def test_float32_stays_as_it_is() -> None:
    """The long form has the very values."""
    values = np.array([1 / 3, -0.0], dtype=np.float32)
    assert short(values, "float32", stream()) is values
    assert pack(values, "float32") is values


def test_lengths_that_no_update_has() -> None:
    """A block's scale without the block is none."""
    for length in range(1, 3 * BLOCK):
        found = unpack(np.zeros(length, dtype=np.uint8), "int8")
        fits = [size for size in range(length) if size + -(-size // BLOCK) == length]
        assert (found is None) == (not fits)
        assert found is None or found.size == fits[0]

"""Weights as one array: what goes in comes out, in an order and a hash that never change."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common.models import (
    Layout,
    pack,
    trained_layout,
    unpack,
    weights_sha256,
)


class Odd(nn.Module):
    """Parameters that are named out of order, one frozen, one scalar, and a buffer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.z = nn.Parameter(torch.randn(2, 3, generator=random))
        self.a = nn.Parameter(torch.randn(4, generator=random))
        self.frozen = nn.Parameter(torch.randn(5, generator=random), requires_grad=False)
        self.scale = nn.Parameter(torch.randn((), generator=random))
        self.register_buffer("mean", torch.randn(6, generator=random))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_packed_weights_unpack_to_the_bit(seed: int) -> None:
    """Trained parameters become those of the other model; nothing else is touched."""
    source, target, untouched = Odd(seed), Odd(seed + 1), Odd(seed + 1)
    unpack(pack(source), target)
    for name in ("z", "a", "scale"):
        assert torch.equal(getattr(target, name), getattr(source, name))
        assert getattr(target, name).requires_grad
    for name in ("frozen", "mean"):
        assert torch.equal(getattr(target, name), getattr(untouched, name))
    assert np.array_equal(pack(target), pack(source))


def test_the_order_is_by_name() -> None:
    """Parameters stand in the order of their names, each row by row."""
    model = Odd(1)
    layout = trained_layout(model)
    assert layout == Layout(("a", "scale", "z"), ((4,), (), (2, 3)))
    assert layout.size == 11
    flat = pack(model)
    assert flat.dtype == np.float32
    expected = [*model.a.tolist(), model.scale.item(), *model.z.flatten().tolist()]
    assert flat.tolist() == expected
    named = layout.split(flat)
    assert np.array_equal(named["z"], model.z.detach().numpy())


def test_packed_weights_are_a_copy() -> None:
    """A model that trains on does not change what was packed, nor the other way round."""
    model = Odd(1)
    flat = pack(model)
    before = flat.copy()
    with torch.no_grad():
        model.z += 1
    assert np.array_equal(flat, before)
    unpack(flat, model)
    flat[:] = 0
    assert np.array_equal(pack(model), before)


def test_read_only_weights_unpack() -> None:
    """What came in a message is read-only memory."""
    flat = np.frombuffer(pack(Odd(1)).tobytes(), dtype=np.float32)
    model = Odd(2)
    unpack(flat, model)
    assert np.array_equal(pack(model), flat)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros(10, np.float32), r"float32 \(11,\); got float32 \(10,\)"),
        (np.zeros(12, np.float32), r"got float32 \(12,\)"),
        (np.zeros((1, 11), np.float32), r"got float32 \(1, 11\)"),
        (np.zeros(11, np.float64), "got float64"),
        (np.full(11, np.nan, np.float32), "finite"),
        (np.array([0] * 10 + [np.inf], np.float32), "finite"),
    ],
)
def test_other_weights_are_refused_whole(bad: np.ndarray, words: str) -> None:
    """Another length, shape or type, or a value that isn't finite, changes nothing."""
    model = Odd(1)
    before = pack(model)
    with pytest.raises(ValueError, match=words):
        unpack(bad, model)
    assert np.array_equal(pack(model), before)


def plain_hash(model: Odd) -> str:
    """The hash written out: name, dtype, shape and little-endian bytes, sorted by name."""
    text = b""
    text += b"a\0float32\0(4,)\0" + model.a.detach().numpy().astype("<f4").tobytes()
    text += b"scale\0float32\0()\0" + model.scale.detach().numpy().astype("<f4").tobytes()
    text += b"z\0float32\0(2, 3)\0" + model.z.detach().numpy().astype("<f4").tobytes()
    return hashlib.sha256(text).hexdigest()


def test_the_hash_is_that_of_the_bytes_written_out() -> None:
    """It agrees with the rule as the model file's format states it."""
    model = Odd(3)
    assert weights_sha256(pack(model), trained_layout(model)) == plain_hash(model)


def test_the_hash_sees_every_bit_and_every_shape() -> None:
    """One bit, a sign of zero, another name or another shape is another hash."""
    flat = np.zeros(6, np.float32)
    layout = Layout(("w",), ((2, 3),))
    hashes = {
        weights_sha256(flat, layout),
        weights_sha256(flat, Layout(("w",), ((3, 2),))),
        weights_sha256(flat, Layout(("v",), ((2, 3),))),
        weights_sha256(flat, Layout(("v", "w"), ((3,), (3,)))),
        weights_sha256(np.array([0, 0, 0, 0, 0, -0.0], np.float32), layout),
        weights_sha256(np.array([1e-45, 0, 0, 0, 0, 0], np.float32), layout),
    }
    assert len(hashes) == 6
    big_endian = np.arange(6, dtype=">f4")
    assert weights_sha256(big_endian, layout) == (
        weights_sha256(np.arange(6, dtype=np.float32), layout)
    )

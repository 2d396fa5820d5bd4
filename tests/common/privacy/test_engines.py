"""Every engine gives the sums of a plain autograd loop, and no unit adds more than C."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.errors import BadInput
from common.models import MODELS, Shape, build_model, trained_part
from common.privacy import bookkeeping
from common.privacy.bookkeeping import RULES, BookKeeper
from common.privacy.patient_sgd import Engine, clipped_sum, refuse_unsupported
from common.privacy.sampling import PatientBatch

ENGINES: tuple[Engine, ...] = ("fast", "opacus", "plain")
LONG = ("resnet50", "vit-small", "vit-base")
SIZES = (3, 1, 8, 2, 2, 1)
IMAGES = sum(SIZES)


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """As in training: one thread and deterministic algorithms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


class Data:
    """Generated images of two classes, loaded by row."""

    def __init__(self, *shape: int, images: int = IMAGES) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.rand(images, *shape, generator=generator) * 2 - 1
        self.targets = torch.arange(images) % 2

    def __call__(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The examples of `rows`."""
        at = torch.from_numpy(rows)
        return self.inputs[at], self.targets[at]


def batch_of(*sizes: int) -> PatientBatch:
    """Units of so many images each."""
    return tuple(np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]))


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """(B, K), (B,) -> (B,)."""
    return functional.cross_entropy(outputs, targets, reduction="none")


def smooth(name: str, planes: int = 0) -> tuple[nn.Module, Data]:
    """A model whose gradients don't jump, so that engines can be compared to the last digits.

    At the kink of a ReLU or in the choice of a maximum, one last bit of the forward pass, which
    depends on how many images pass together, changes a gradient by much more.
    """
    model = build_model(name, Shape(2, 1, 32, planes, 4 if planes else 0), seed=1)
    module = trained_part(model)
    generator = torch.Generator().manual_seed(3)
    for layer in module.modules():
        for child, what in layer.named_children():
            if isinstance(what, nn.ReLU):
                setattr(layer, child, nn.GELU())
            elif isinstance(what, nn.MaxPool2d):
                setattr(layer, child, nn.AvgPool2d(what.kernel_size, what.stride, what.padding))
    for p in module.parameters():
        spread = 0.2 / p[0].numel() ** 0.5
        p.data += torch.randn(p.shape, generator=generator) * spread
    shape: tuple[int, ...] = (planes, 4, 32, 32) if planes else (1, 32, 32)
    if module is not model:
        shape = model.feature_shape
    return module.train(), Data(*shape)


def summed(
    module: nn.Module,
    batch: PatientBatch,
    data: Any,
    engine: Engine,
    *,
    max_grad_norm: float,
    at_once: int = 100,
) -> Tensor:
    """The clipped sum, all parameters in a row."""
    sums = clipped_sum(
        module,
        batch,
        examples=data,
        loss=loss,
        max_grad_norm=max_grad_norm,
        max_images_at_once=at_once,
        engine=engine,
    )
    return torch.cat([s.flatten() for s in sums]).double()


def plain_gradients(module: nn.Module, batch: PatientBatch, data: Any) -> list[Tensor]:
    """The oracle: each unit's mean gradient, by ordinary autograd."""
    trained = [p for p in module.parameters() if p.requires_grad]
    found = []
    for rows in batch:
        inputs, targets = data(rows)
        gradients = torch.autograd.grad(loss(module(inputs), targets).mean(), trained)
        found.append(torch.cat([g.flatten() for g in gradients]).double())
    return found


def clipped(gradients: list[Tensor], max_grad_norm: float) -> Tensor:
    """The oracle's sum."""
    parts = [g * min(1.0, max_grad_norm / float(g.norm())) for g in gradients]
    return torch.stack(parts).sum(0)


def in_float64(name: str, batch: PatientBatch, data: Data, planes: int = 0) -> list[Tensor]:
    """The oracle of a model so deep that float32 itself is no oracle for it."""
    module, _ = smooth(name, planes)

    def wide(rows: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = data(rows)
        return inputs.double(), targets

    return plain_gradients(module.double(), batch, wide)


def apart(got: Tensor, expected: Tensor) -> float:
    """How far, relative to what is expected."""
    return float((got - expected).norm() / expected.norm())


NAMES = [  # without resnet50, which has a test of its own
    pytest.param(n, marks=pytest.mark.long) if n in LONG else n for n in MODELS if n != "resnet50"
]


@pytest.mark.parametrize("name", NAMES)
def test_all_engines_give_the_sums_of_a_plain_loop(name: str) -> None:
    """For every model: sums to 1e-4, norms to 1e-5, whatever the grouping."""
    module, data = smooth(name)
    batch = batch_of(*SIZES)
    gradients = plain_gradients(module, batch, data)
    norms = torch.stack([g.norm() for g in gradients])
    limit = float(norms.median())
    expected = clipped(gradients, limit)
    for engine in ENGINES:
        for at_once in (100, 8, 3) if name not in LONG else (8,):
            got = summed(module, batch, data, engine, max_grad_norm=limit, at_once=at_once)
            assert float((got - expected).norm() / expected.norm()) <= 1e-4
    inputs, targets = data(np.concatenate(batch))
    found = BookKeeper(module).clipped(
        lambda: loss(module(inputs), targets), SIZES, max_grad_norm=limit
    )
    assert float(((found.norms - norms) / norms).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_engines_agree_on_volumes(name: str) -> None:
    """Three planes, whose slices are a layer's rows."""
    module, data = smooth(name, planes=3)
    batch = batch_of(1, 2, 1)
    gradients = plain_gradients(module, batch, data)
    limit = float(torch.stack([g.norm() for g in gradients]).median())
    expected = clipped(gradients, limit)
    for engine in ENGINES:
        got = summed(module, batch, data, engine, max_grad_norm=limit)
        assert float((got - expected).norm() / expected.norm()) <= 1e-4


@pytest.mark.long
@pytest.mark.parametrize("planes", [0, 3])
def test_a_deep_model_is_as_near_to_the_truth_as_a_plain_loop(planes: int) -> None:
    """Its float32 gradients differ from those in float64 by up to .5 %; no engine's by more.

    So sums of `resnet50` can't be compared to 1e-4: rounding grows through its 53 layers.
    """
    module, data = smooth("resnet50", planes)
    batch = batch_of(1, 2, 1)
    truth = in_float64("resnet50", batch, data, planes)
    limit = float(torch.stack([g.norm() for g in truth]).median())
    expected = clipped(truth, limit)
    plain = apart(clipped(plain_gradients(module, batch, data), limit), expected)
    assert plain < 0.005
    for engine in ENGINES:
        got = summed(module, batch, data, engine, max_grad_norm=limit)
        assert apart(got, expected) <= max(1e-4, 1.01 * plain)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sizes", [(), (1,), (8,), (1, 2, 3, 4, 5, 6, 7, 8), (4, 4, 4)])
def test_units_of_all_sizes(engine: Engine, sizes: tuple[int, ...]) -> None:
    """Empty batches, single units and units of 1 to 8 images."""
    module, _ = smooth("cnn-small")
    data = Data(1, 32, 32, images=40)
    batch = batch_of(*sizes) if sizes else ()
    got = summed(module, batch, data, engine, max_grad_norm=0.05)
    if not sizes:
        assert not got.any()
        return
    expected = clipped(plain_gradients(module, batch, data), 0.05)
    assert float((got - expected).norm() / expected.norm()) <= 1e-5


class Zoo(nn.Module):
    """Layers as odd as the rules allow, both called twice and frozen in part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        self.grouped = nn.Conv2d(6, 6, 3, padding="same", groups=3)
        self.point = nn.Conv2d(6, 6, 1, bias=False)
        self.norm = nn.GroupNorm(2, 6)
        self.lines = nn.LayerNorm((6, 5), bias=False)
        self.wide = nn.Linear(5, 40)
        self.out = nn.Linear(40, 2)
        self.out.bias.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 2, 12, 8) -> (B, 2)."""
        maps = self.point(self.norm(self.grouped(self.first(images))).tanh())
        maps = self.norm(self.point(maps)).tanh()
        lines = self.lines(maps.mean(2)[..., :5])  # (B, 6, 5)
        twice = self.wide(lines).tanh().mean(1) + self.wide(lines[:, 0])
        return self.out(twice)


@pytest.mark.parametrize("ways", ["kept", "booked"])
def test_every_rule_in_both_ways(ways: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strides, dilation, groups, padding, several calls, frozen parts: by Gram and by keeping."""
    monkeypatch.setattr(bookkeeping, "_KEPT_COST", 0.0 if ways == "kept" else 1e12)
    module, data = Zoo(), Data(2, 12, 8)
    batch = batch_of(3, 1, 5, 5, 1)
    gradients = plain_gradients(module, batch, data)
    limit = float(torch.stack([g.norm() for g in gradients]).median())
    for max_grad_norm in (limit, 1e3):
        got = summed(module, batch, data, "fast", max_grad_norm=max_grad_norm)
        expected = clipped(gradients, max_grad_norm)
        assert apart(got, expected) <= 1e-5


class OneToken(nn.Module):
    """Reads one token of six, as a transformer does at its end, and none of a second layer's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lines, self.idle, self.out = nn.Linear(5, 7), nn.Linear(5, 3), nn.Linear(7, 2)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 2, 12, 8) -> (B, 2)."""
        tokens = images[:, 0, :6, :5]
        read = self.out(self.lines(tokens).tanh()[:, 2])
        return read + 0 * self.idle(tokens).sum((1, 2)).unsqueeze(1)


@pytest.mark.parametrize("ways", ["kept", "booked"])
def test_tokens_without_a_gradient_are_left_out(ways: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer that reads one only that one is; the sums are those of all."""
    monkeypatch.setattr(bookkeeping, "_KEPT_COST", 0.0 if ways == "kept" else 1e12)
    worked_on: list[int] = []
    rule = bookkeeping.RULES[nn.Linear]

    def outputs(gradients: Tensor) -> Tensor:
        worked_on.append(rule.outputs(gradients).shape[1])
        return rule.outputs(gradients)

    monkeypatch.setitem(bookkeeping.RULES, nn.Linear, replace(rule, outputs=outputs))
    module, data, batch = OneToken(), Data(2, 12, 8), batch_of(3, 1, 2)
    got = summed(module, batch, data, "fast", max_grad_norm=0.05)
    assert apart(got, clipped(plain_gradients(module, batch, data), 0.05)) <= 1e-5
    assert max(worked_on) == 2  # of six: the one, and the first, which always is


class Gated(nn.Module):
    """Reads an image's second token only if a pixel of it says so."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lines = nn.Linear(5, 2)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 2, 12, 8) -> (B, 2)."""
        first, second = self.lines(images[:, 0, :2, :5]).unbind(1)
        return first + second.where(images[:, 1, 0, :1] > 0, 0)


@pytest.mark.parametrize("ways", ["kept", "booked"])
@pytest.mark.parametrize("others_gate", [-1.0, 1.0])
def test_an_unread_infinity_counts_alike_whoever_is_there(
    ways: str, others_gate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who adds nothing beside one patient adds nothing beside another, or 2 C would hang on it."""
    monkeypatch.setattr(bookkeeping, "_KEPT_COST", 0.0 if ways == "kept" else 1e12)
    module, data, batch = Gated(), Data(2, 12, 8), batch_of(1, 1)
    data.inputs[0, 0, 1, 0], data.inputs[0, 1, 0, 0] = torch.inf, -1.0
    data.inputs[1, 1, 0, 0] = others_gate
    alone = summed(module, batch[1:], data, "plain", max_grad_norm=0.1)
    both = summed(module, batch, data, "fast", max_grad_norm=0.1)
    assert alone.any()
    assert torch.allclose(both, alone, rtol=1e-5)


class Summed(nn.Module):
    """Ends in a norm and a sum, whose gradient is one number for all places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 2, 12, 8) -> (B, 4)."""
        return self.norm(self.conv(images).tanh()).sum((2, 3))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 1, 2)])
def test_gradients_that_are_one_number_in_memory(sizes: tuple[int, ...]) -> None:
    """Torch expands them; who read them as memory would find other numbers."""
    module, data, batch = Summed(), Data(2, 12, 8), batch_of(*sizes)
    with torch.no_grad():
        module.norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
    got = summed(module, batch, data, "fast", max_grad_norm=0.05)
    expected = clipped(plain_gradients(module, batch, data), 0.05)
    assert float((got - expected).norm() / expected.norm()) <= 1e-5


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("ways", ["as it comes", "booked"])
@pytest.mark.parametrize("name", ["cnn-small", "vit-tiny", "cnn-li2014"])
def test_no_unit_adds_more_than_c(
    name: str, ways: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights scaled up to 1e4, and images of a unit whose gradients nearly cancel."""
    if ways == "booked":
        monkeypatch.setattr(bookkeeping, "_KEPT_COST", 1e12)
    module, _ = smooth(name)
    data = Data(1, 32, 32, images=12)
    data.inputs[1] = data.inputs[0] + 1e-6  # 0 and 1: the same with the other answer
    data.inputs[3] = data.inputs[2] + 1e-7
    data.targets[:4] = torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        for p in module.parameters():
            p *= scale
    batch, limit = batch_of(2, 2, 4, 1, 3), 0.01
    inputs, targets = data(np.concatenate(batch))

    def forward() -> Tensor:
        return loss(module(inputs), targets)

    books = BookKeeper(module)
    for chosen in range(len(batch)):
        # What the unit adds within its group: everybody else's part is multiplied by zero.
        real = contribution(books, forward, [len(rows) for rows in batch], chosen, limit)
        assert real <= limit * (1 + 1e-6)


def contribution(
    books: BookKeeper, forward: Any, sizes: list[int], unit: int, max_grad_norm: float
) -> float:
    """The norm of what one unit adds to the group's sum, all others having no gradient there."""
    first = sum(sizes[:unit])
    alone = torch.zeros(sum(sizes))
    alone[first : first + sizes[unit]] = 1
    found = books.clipped(lambda: forward() * alone, sizes, max_grad_norm=max_grad_norm)
    return float(torch.cat([s.flatten() for s in found.sums.values()]).double().norm())


def test_the_guard_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the product of near-cancelling rows is rounded by more than the slack."""
    monkeypatch.setattr(bookkeeping, "_KEPT_COST", 1e12)
    torch.manual_seed(0)
    module = nn.Linear(20, 300, bias=False)  # the Gram matrix is made of the narrow side
    signs = torch.tensor([1.0, -1.0])

    def norm(inputs: Tensor) -> float:
        twice = torch.stack([inputs, inputs + 1e-5 * inputs.roll(1)]) * 1e3
        books = BookKeeper(module)
        found = books.clipped(lambda: module(twice).sum(1) * signs, [2], max_grad_norm=0.01)
        return float(found.sums[module.weight].double().norm())

    images = torch.randn(20, 20)
    norms = list(map(norm, images))
    assert max(norms) <= 0.01 * (1 + 1e-6)
    assert min(norms) >= 0.01 * (1 - 1e-4)
    monkeypatch.setattr(bookkeeping, "_CANCELS", 1e9)
    norms = list(map(norm, images))
    assert max(norms) > 0.01 * (1 + 1e-3)


@pytest.mark.parametrize(("depth", "width"), [(64, 300), (300, 300), (512, 512)])
def test_equal_numbers_are_not_taken_for_shorter(depth: int, width: int) -> None:
    """Adding a constant up rounds the same way each time; rows just short of cancelling show it."""
    torch.manual_seed(0)
    module, signs = nn.Linear(depth, width, bias=False), torch.tensor([1.0, -1.0])
    for scale in torch.rand(100) + 1:
        inputs = torch.stack([torch.full((depth,), float(scale * q)) for q in (1.0, 4.99 / 6.99)])
        found = BookKeeper(module).clipped(
            lambda x=inputs: module(x).sum(1) * signs, [2], max_grad_norm=0.01
        )
        assert float(found.sums[module.weight].double().norm()) <= 0.01 * (1 + 1e-6)


@pytest.mark.parametrize("value", [1.99499, 1.99, 1.87, 1.6])
def test_norms_of_equal_numbers_are_right(value: float) -> None:
    """Of 600,000 of them, as a server gets by weights of 0: to the slack."""
    matrix = torch.full((2, 600_000), value)
    expected = 600_000 * float(matrix[0, 0].double()) ** 2
    found = bookkeeping.squared_norms(matrix)
    assert float((found / expected - 1).abs().max()) <= 2 * bookkeeping.SLACK


def test_a_row_that_overflows_downwards_hides_nothing() -> None:
    """Minus infinity in a booked norm, beside a finite one: the unit adds nothing."""
    module = nn.Linear(64, 64)
    inputs = torch.zeros(9, 64)
    inputs[1:, 0], inputs[0, 0] = 4.7, 0.1
    scale = torch.full((9,), 1.1e18 * 9)
    scale[0] = -1.8e19 * 9
    found = BookKeeper(module).clipped(
        lambda: module(inputs)[:, 0] * scale, [9], max_grad_norm=1e-3
    )
    assert float(torch.cat([s.flatten() for s in found.sums.values()]).norm()) <= 1e-3 * (1 + 1e-6)


@pytest.mark.parametrize("ways", ["kept", "booked"])
@pytest.mark.parametrize("a", [1e-30, 1e-8, 1.0, 1e12, 1e22])
@pytest.mark.parametrize("g", [1e-3, 1e17, 1e26, 1e38])
def test_absurd_numbers_add_no_more_than_c(
    a: float, g: float, ways: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Factors and what they make of small numbers are too small for float32: 1.7 C was seen."""
    monkeypatch.setattr(bookkeeping, "_KEPT_COST", 0.0 if ways == "kept" else 1e12)
    module = nn.Linear(24, 40)
    generator = torch.Generator().manual_seed(0)
    inputs = a * (0.5 + torch.rand(2, 5, 24, generator=generator))
    inputs[1] = 0
    at_outputs = g * (0.5 + torch.rand(2, 5, 40, generator=generator))
    at_outputs[1] = 0
    found = BookKeeper(module).clipped(
        lambda: (module(inputs) * at_outputs).flatten(1).sum(1),
        [1, 1],
        max_grad_norm=0.1,
    )
    total = torch.cat([s.flatten().double() for s in found.sums.values()])
    assert float(total.norm()) <= 0.1 * (1 + 1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ways", ["kept", "booked"])
def test_a_unit_that_is_not_finite_adds_nothing(
    engine: Engine, ways: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it touch the others, in either way."""
    monkeypatch.setattr(bookkeeping, "_KEPT_COST", 0.0 if ways == "kept" else 1e12)
    module, data = smooth("cnn-small")
    batch = batch_of(2, 1, 2)
    without = summed(module, batch[1:], data, engine, max_grad_norm=0.1)
    data.inputs[0, 0, 3, 3] = torch.inf
    got = summed(module, batch, data, engine, max_grad_norm=0.1)
    assert float((got - without).norm()) <= 1e-6


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "python", "cpu"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_group_that_does_not_fit_is_halved(engine: Engine, error: Exception) -> None:
    """By whole units, then by images of one; nothing is added twice, and nothing is lost."""
    module, data = smooth("cnn-small")
    batch, seen = batch_of(3, 1, 2, 2), []

    def examples(rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        seen.append(len(rows))
        if len(rows) > 2:
            raise error
        return data(rows)

    expected = summed(module, batch, data, engine, max_grad_norm=0.05)
    got = summed(module, batch, examples, engine, max_grad_norm=0.05)
    assert max(seen) > 2
    assert apart(got, expected) <= 1e-5  # Opacus' own 1e-6 on norms


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_that_runs_out_in_the_backward_pass_adds_nothing_twice(engine: Engine) -> None:
    """A fault halfway through the layers leaves no part of the group in the sum."""
    module, data = smooth("cnn-small")
    batch, faults = batch_of(3, 1, 2, 2), [1]

    def hook(gradient: Tensor) -> None:
        if faults:
            faults.pop()
            raise MemoryError

    def examples(rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        inputs, targets = data(rows)
        inputs = inputs.requires_grad_()
        inputs.register_hook(hook)
        return inputs, targets

    expected = summed(module, batch, data, engine, max_grad_norm=0.05)
    got = summed(module, batch, examples, engine, max_grad_norm=0.05)
    assert float((got - expected).norm() / expected.norm()) <= 1e-6


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_that_a_single_image_lacks_is_an_error(engine: Engine) -> None:
    """There is nothing left to halve; other faults are never tried again."""
    module, data = smooth("cnn-small")

    def examples(rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        raise MemoryError

    with pytest.raises(MemoryError):
        summed(module, batch_of(2, 1), examples, engine, max_grad_norm=0.05)
    assert len(data.inputs) == IMAGES


@pytest.mark.parametrize("engine", ENGINES)
def test_afterwards_the_module_is_as_it_was(engine: Engine) -> None:
    """No hook, no replaced forward; it can be pickled and gives the same bytes."""
    module, data = smooth("vit-tiny")
    before = pickle.dumps(module)
    summed(module, batch_of(2, 1), data, engine, max_grad_norm=0.05)
    assert all(p.requires_grad for p in module.parameters())
    assert not any(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
        for layer in module.modules()
    )
    # Removed hooks leave a flag behind that says they weren't of the old kind.
    assert pickle.dumps(module) == before or engine == "opacus"


class InPlace(nn.Module):
    """Overwrites what its layer said."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 4) -> (B, 2)."""
        return functional.relu(self.layer(inputs), inplace=True)


def test_what_is_overwritten_in_place_is_noticed() -> None:
    """The gradient at a layer's output would be another's."""
    with pytest.raises(ValueError, match="overwritten in place"):
        summed(InPlace(), batch_of(1, 2), Data(4), "fast", max_grad_norm=1.0)
    summed(InPlace(), batch_of(1, 2), Data(4), "plain", max_grad_norm=1.0)


class Shared(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 4) -> (B, 4)."""
        return self.other(self.one(inputs).tanh())


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.Conv3d(1, 2, 3), r"Conv3d\).*engine: fast knows no per-image gradient.*engine: plain"),
        (nn.MultiheadAttention(4, 2), r"MultiheadAttention\).*privacy.engine: plain would take it"),
        (Shared(), r"other \(Linear\) shares weights with 0\.one"),
    ],
    ids=["unknown", "attention", "shared"],
)
def test_what_fast_cannot_do_plain_can(layer: nn.Module, says: str) -> None:
    """The refusal names the layer and the way out."""
    module = nn.Sequential(layer)
    with pytest.raises(BadInput, match=says):
        refuse_unsupported(module, "fast")
    refuse_unsupported(module, "plain")


@pytest.mark.parametrize("engine", ENGINES)
def test_no_engine_takes_a_layer_that_mixes_patients(engine: Engine) -> None:
    """Not even the one that has a single patient in each pass: its statistics would stay."""
    with pytest.raises(BadInput, match=r"0 \(BatchNorm2d\) mixes the patients"):
        refuse_unsupported(nn.Sequential(nn.BatchNorm2d(2)), engine)


def test_the_saved_moments_are_torchs() -> None:
    """Names that torch's notes on autograd promise; a release might change them."""
    inputs = torch.randn(2, 4, 3, requires_grad=True)
    for layer in (nn.GroupNorm(2, 4), nn.LayerNorm(3)):
        node: Any = layer(inputs).grad_fn
        shape = (2, 2, -1) if isinstance(layer, nn.GroupNorm) else (2, 4, 3)
        assert torch.allclose(node._saved_result1.flatten(), inputs.view(shape).mean(2).flatten())
    assert set(RULES) >= {nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm}


@pytest.mark.parametrize("ways", ["as it comes", "booked"])
@pytest.mark.parametrize("bound", [1.0, 1e-3, 1e-6])
def test_gradients_too_small_for_float32_beside_huge_inputs_are_clipped(
    bound: float, ways: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Squares of 1e-23 vanish in float32: with inputs of 1e18 beside them, the gradient doesn't."""
    if ways == "booked":
        monkeypatch.setattr(bookkeeping, "_KEPT_COST", 1e12)
    module = build_model("cnn-li2014", Shape(classes=2, channels=1, image_size_px=32), seed=0)
    module.train()
    layers = module.encoder.layers
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        for parameter, value in (
            (layers[0].weight, 1e4),
            (layers[0].bias, 1e4),
            (layers[4].weight, 1e4),
            (layers[7].weight, 1e3),
        ):
            parameter.fill_(value)
        module.head.bias.copy_(torch.tensor([0.0, -52.0]))
    images = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    answers = torch.zeros(6, dtype=torch.long)

    def summed(*batch: list[int]) -> torch.Tensor:
        sums = clipped_sum(
            module,
            tuple(np.array(rows) for rows in batch),
            examples=lambda rows: (images[rows], answers[rows]),
            loss=nn.CrossEntropyLoss(reduction="none"),
            max_grad_norm=bound,
            max_images_at_once=64,
            engine="fast",
        )
        return torch.cat([total.flatten() for total in sums]).double()

    moved = summed([0, 1, 2, 3], [4, 5]) - summed([4, 5])
    assert float(moved.norm()) <= bound * (1 + 1e-6)

"""Patient-level DP-SGD against a plain autograd loop, and the promise that it makes."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.errors import BadInput
from common.privacy.noise import seeded_noise
from common.privacy.patient_sgd import Loss, clipped_sum, private_steps, refuse_unsupported
from common.privacy.sampling import PatientBatch

SIZES = (5, 1, 4, 2)
BATCH: PatientBatch = tuple(
    np.arange(sum(SIZES[:i]), sum(SIZES[: i + 1])) for i in range(len(SIZES))
)
C = 0.3


class PerImageCrossEntropy:
    """One loss for each image."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B, K), (B,) -> (B,)."""
        return functional.cross_entropy(outputs, targets, reduction="none")


LOSS: Loss = PerImageCrossEntropy()


class Data:
    """Twelve images (or feature vectors) with labels, loaded by row."""

    def __init__(self, *shape: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(12, *shape, generator=generator) * 2
        self.targets = torch.randint(0, 2, (12,), generator=generator)

    def __call__(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The examples of `rows`."""
        return self.inputs[torch.from_numpy(rows)], self.targets[torch.from_numpy(rows)]


def network() -> nn.Module:
    """A small CNN of the layers that fedward's models use, with odd strides and groups."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding="valid", groups=2, bias=False),
        nn.GroupNorm(1, 8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


def head() -> nn.Module:
    """A linear head on features."""
    torch.manual_seed(0)
    return nn.Linear(6, 2)


CASES = [(network, Data(1, 8, 8)), (head, Data(6))]


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """As in training: one thread, deterministic algorithms, and warnings are errors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def summed(module: nn.Module, batch: PatientBatch, data: Data, **changes: Any) -> list[Tensor]:
    """The clipped sum over `batch`, with one thing changed."""
    arguments: dict[str, Any] = {"max_grad_norm": C, "max_images_at_once": 100} | changes
    return list(clipped_sum(module, batch, examples=data, loss=LOSS, **arguments))


def plain_clipped_sum(
    module: nn.Module, batch: PatientBatch, data: Data, max_grad_norm: float
) -> list[Tensor]:
    """The oracle: one ordinary backward for each patient."""
    parameters = list(module.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for rows in batch:
        inputs, targets = data(rows)
        gradient = torch.autograd.grad(
            functional.cross_entropy(module(inputs), targets), parameters
        )
        scale = min(1.0, max_grad_norm / norm(list(gradient)))
        total = [t + scale * g for t, g in zip(total, gradient, strict=True)]
    return total


def norm(tensors: list[Tensor]) -> float:
    """The Euclidean norm of all of them together."""
    return float(torch.sqrt(sum((t.double().square().sum() for t in tensors), torch.zeros(()))))


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The distance between two lists of tensors."""
    return norm([a.double() - b.double() for a, b in zip(one, other, strict=True)])


@pytest.mark.parametrize(("build", "data"), CASES, ids=["cnn", "head"])
@pytest.mark.parametrize("max_grad_norm", [0.05, 0.5, 1e3])
def test_the_clipped_sum_is_that_of_a_plain_loop(
    build: Any, data: Data, max_grad_norm: float
) -> None:
    """Averaging over a patient, then clipping, then summing: equal to plain autograd to 1e-5."""
    module = build()
    ours = summed(module, BATCH, data, max_grad_norm=max_grad_norm)
    oracle = plain_clipped_sum(module, BATCH, data, max_grad_norm)
    for a, b in zip(ours, oracle, strict=True):
        assert norm([a - b]) <= 1e-5 * norm([b]) + 1e-7


@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("gone", range(len(SIZES)))
def test_removing_a_patient_moves_the_sum_by_at_most_c(gone: int, scale: float) -> None:
    """Adjacency: with all of a patient's images gone the sum moves by C at most."""
    module, data = network(), Data(1, 8, 8)
    for p in module.parameters():
        p.data *= scale ** (1 / 4)
    without = tuple(rows for i, rows in enumerate(BATCH) if i != gone)
    moved = difference(summed(module, BATCH, data), summed(module, without, data))
    assert 0 < moved <= C * (1 + 1e-5)


def test_clipping_by_image_would_break_that_promise() -> None:
    """With each image its own unit the same removal moves the sum by more than C."""
    module, data = network(), Data(1, 8, 8)
    images = tuple(rows[i : i + 1] for rows in BATCH for i in range(len(rows)))
    assert difference(summed(module, images, data), summed(module, images[5:], data)) > 1.5 * C


@pytest.mark.parametrize("limit", [1, 3, 6, 7, 12])
def test_memory_bound_does_not_change_the_sum(limit: int) -> None:
    """Groups of whole patients give the same sum, though some patients exceed the bound."""
    module, data = network(), Data(1, 8, 8)
    whole = summed(module, BATCH, data)
    assert difference(summed(module, BATCH, data, max_images_at_once=limit), whole) < 1e-6


def test_the_memory_bound_is_kept() -> None:
    """No more images at once than allowed, of several patients or of one who has more."""
    data = Data(1, 8, 8)
    seen: list[int] = []

    def examples(rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        seen.append(len(rows))
        return data(rows)

    clipped_sum(
        network(), BATCH, examples=examples, loss=LOSS, max_grad_norm=C, max_images_at_once=3
    )
    assert seen == [3, 2, 1, 3, 1, 2]


def train(module: nn.Module, batches: list[PatientBatch], data: Any, **changes: Any) -> nn.Module:
    """Plain SGD at rate 1 over the batches, with one thing changed."""
    arguments: dict[str, Any] = {
        "max_grad_norm": C,
        "noise_multiplier": 1.0,
        "expected_patients": 4.0,
        "noise": seeded_noise(bytes(16)),
        "max_images_at_once": 100,
        "optimizer": torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1.0),
        "loss": LOSS,
    } | changes
    optimizer = arguments.pop("optimizer")
    with private_steps(module, optimizer, examples=data, **arguments) as step:
        for batch in batches:
            step(batch)
    return module


def moved(module: nn.Module, start: nn.Module) -> Tensor:
    """How far each weight went."""
    pairs = zip(module.parameters(), start.parameters(), strict=True)
    return torch.cat([(a - b).detach().flatten() for a, b in pairs])


@pytest.mark.parametrize("batch", [(), BATCH[:1]], ids=["empty batch", "one patient"])
def test_the_divisor_is_public(batch: PatientBatch) -> None:
    """Whoever joins, the clipped sum is divided by the expected number of patients."""
    start, data = network(), Data(1, 8, 8)
    step = moved(train(network(), [batch], data, noise_multiplier=0.0), start)
    expected = torch.cat([t.flatten() for t in summed(network(), batch, data)]) / -4.0
    assert torch.allclose(step, expected, atol=1e-6)
    assert bool(step.any()) == bool(batch)


@pytest.mark.parametrize("groups", [100, 5], ids=["at once", "in groups"])
@pytest.mark.parametrize("batch", [(), BATCH], ids=["empty batch", "full batch"])
def test_noise_comes_once_per_step_with_the_right_scale(batch: PatientBatch, groups: int) -> None:
    """Its standard deviation is sigma x C / expected patients, in empty batches and groups too."""
    torch.manual_seed(0)
    wide, data = nn.Linear(6, 2000), Data(6)
    start = nn.Linear(6, 2000)
    start.load_state_dict(wide.state_dict())
    quiet = nn.Linear(6, 2000)
    quiet.load_state_dict(wide.state_dict())
    noisy = moved(
        train(wide, [batch], data, noise_multiplier=2.0, max_images_at_once=groups), start
    )
    noise = noisy - moved(train(quiet, [batch], data, noise_multiplier=0.0), start)
    std = 2.0 * C / 4.0
    assert float(noise.std()) == pytest.approx(std, rel=4 / (2 * len(noise)) ** 0.5)
    assert abs(float(noise.mean())) < 4 * std / len(noise) ** 0.5


def test_each_step_draws_fresh_noise() -> None:
    """Two noisy steps over nobody don't repeat each other, nor do two parameters."""
    start, data = network(), Data(1, 8, 8)
    once = moved(train(network(), [()], data), start)
    twice = moved(train(network(), [(), ()], data), start)
    assert not torch.isclose(twice, 2 * once).any()
    assert len(set(once.tolist())) > 0.99 * len(once)


def test_the_same_stream_gives_the_same_bits() -> None:
    """Equal secrets give equal weights, other ones don't; torch's own seed plays no part."""
    data = Data(1, 8, 8)
    weights: list[Tensor] = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(weights))
        fresh = network()
        trained = train(fresh, [BATCH, (), BATCH[2:]], data, noise=seeded_noise(bytes([seed]) * 16))
        weights.append(torch.cat([p.detach().flatten() for p in trained.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_groups_and_steps_do_not_leak_into_each_other() -> None:
    """Two steps give what two separate runs of one step give."""
    data = Data(1, 8, 8)
    at_once = train(network(), [BATCH, BATCH[1:]], data, noise_multiplier=0.0, max_images_at_once=5)
    apart = train(network(), [BATCH], data, noise_multiplier=0.0)
    train(apart, [BATCH[1:]], data, noise_multiplier=0.0)
    assert float(moved(at_once, apart).abs().max()) < 1e-6


@pytest.mark.parametrize("limit", [100, 1], ids=["at once", "patient by patient"])
def test_a_gradient_that_is_not_finite_counts_as_zero(limit: int) -> None:
    """A patient whose image overflows leaves no NaN behind, which would show their presence."""
    data = Data(1, 8, 8)
    without = summed(network(), BATCH[1:], data)
    data.inputs[0] = torch.inf
    assert difference(summed(network(), BATCH, data, max_images_at_once=limit), without) < 1e-6


@pytest.mark.parametrize("fault", [False, True], ids=["normally", "by a fault"])
def test_afterwards_the_module_is_plain(fault: bool) -> None:
    """Hooks, per-image gradients and kept images are gone, however training ended."""
    module, data = network(), Data(1, 8, 8)
    before = {name: set(vars(layer)) for name, layer in module.named_modules()}

    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        raise OSError("disk gone")

    if fault:
        with pytest.raises(OSError, match="disk gone"):
            train(module, [BATCH], data, loss=broken)
    else:
        train(module, [BATCH], data)
    assert {name: set(vars(layer)) for name, layer in module.named_modules()} == before
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in module.modules())
    assert not any(
        hasattr(p, name)
        for p in module.parameters()
        for name in ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample")
    )
    assert all(p.grad is None for p in module.parameters())
    train(module, [BATCH], data)  # and it can be trained again


def test_frozen_layers_stay() -> None:
    """A frozen layer neither moves nor gets a gradient."""
    module, start, data = network(), network(), Data(1, 8, 8)
    first = next(module.children())
    first.requires_grad_(False)
    train(module, [BATCH], data)
    assert not moved(first, next(start.children())).any()
    assert moved(module, start).any()


def test_stateful_optimizers_work() -> None:
    """Adam steps on the noised gradient alone."""
    module, start, data = network(), network(), Data(1, 8, 8)
    train(module, [BATCH, ()], data, optimizer=torch.optim.Adam(module.parameters(), lr=0.01))
    assert 0 < float(moved(module, start).abs().max()) < 0.03


class OwnParameter(nn.Module):
    """A layer with a raw parameter, which Opacus would handle silently and slowly."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1))


class NearlyLinear(nn.Linear):
    """A subclass, whose forward may do anything."""


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.BatchNorm2d(4), r"1 \(BatchNorm2d\) mixes the patients"),
        (nn.BatchNorm1d(4).eval().requires_grad_(False), r"1 \(BatchNorm1d\) mixes the patients"),
        (nn.InstanceNorm2d(4, track_running_stats=True), r"1 \(InstanceNorm2d\) keeps private"),
        (nn.ReLU(inplace=True), r"1 \(ReLU\) overwrites"),
        (nn.LSTM(4, 4), r"1 \(LSTM\) has parameters of its own"),
        (nn.MultiheadAttention(4, 2), r"1 \(MultiheadAttention\) has parameters of its own"),
        (OwnParameter(), r"1 \(OwnParameter\) has parameters of its own"),
        (NearlyLinear(4, 4), r"1 \(NearlyLinear\) has parameters of its own"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), r"1 \(Conv2d\) pads"),
        (nn.Linear(4, 4).eval(), r"1 \(Linear\) is in eval mode"),
        (
            nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last),
            r"1 \(Conv2d\) has weights in channels",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_opacus_gets_wrong_is_refused_by_name(layer: nn.Module, says: str) -> None:
    """The layer's place, its type and the remedy are named, before any image is read."""
    module = nn.Sequential(nn.Conv2d(1, 4, 3), layer)
    with pytest.raises(BadInput, match=says):
        refuse_unsupported(module)
    with pytest.raises(BadInput, match=says):
        train(module, [BATCH], None)


def test_all_problems_are_named_at_once() -> None:
    """Two bad layers give one sentence with both."""
    with pytest.raises(BadInput, match=r"0 \(BatchNorm2d\).*1 \(ReLU\)"):
        refuse_unsupported(nn.Sequential(nn.BatchNorm2d(1), nn.ReLU(inplace=True)))


def test_channels_last_inputs_are_refused() -> None:
    """Opacus' norms would be silently wrong on them."""
    data = Data(2, 8, 8)
    data.inputs = data.inputs.contiguous(memory_format=torch.channels_last)

    def examples(rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        inputs, targets = data(rows)
        return inputs.contiguous(memory_format=torch.channels_last), targets

    with pytest.raises(ValueError, match="contiguous"):
        train(nn.Sequential(nn.Conv2d(2, 2, 8), nn.Flatten()), [BATCH], examples)


def test_a_reduced_loss_is_refused() -> None:
    """A mean over the batch would make norms too small, without a word."""
    with pytest.raises(ValueError, match="one value for each image"):
        train(network(), [BATCH], Data(1, 8, 8), loss=functional.cross_entropy)


@pytest.mark.parametrize(
    "change",
    [
        {"max_grad_norm": 0.0},
        {"noise_multiplier": -1.0},
        {"expected_patients": 0.0},
        {"max_images_at_once": 0},
        {"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    """Numbers out of range and an optimizer of another model are errors."""
    with pytest.raises(ValueError, match=r"expected|must"):
        train(network(), [BATCH], Data(1, 8, 8), **change)


def test_opacus_is_the_release_this_was_written_for() -> None:
    """Skipped steps, `grad_sample` rows and cleanup are internals that a minor may change."""
    assert importlib.metadata.version("opacus").startswith("1.6.")

"""Private training on volumes: gradients by exam against plain autograd, and adjacency."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.errors import BadInput
from common.models import Shape, build_model, trained_part
from common.models.planes import Pooling, SliceEncoder
from common.privacy.patient_sgd import clipped_sum, refuse_unsupported
from common.privacy.sampling import PatientBatch

C = 0.3
PLANES = 3
POOLINGS: list[Pooling] = ["max", "attention"]
SHAPE = Shape(2, 1, 32, planes=PLANES, slices=4)
BATCH: PatientBatch = tuple(np.array(rows) for rows in ([0, 1], [2], [3], [4, 5, 6]))
EXAMS = 7


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


class Data:
    """Seven exams, some with empty slices, one with an empty plane; loaded by row."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs
        self.targets = torch.arange(2 * len(inputs)).reshape(-1, 2).remainder(3).clamp(max=1.0)

    def __call__(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The exams of `rows`."""
        at = torch.from_numpy(rows)
        return self.inputs[at], self.targets[at]


def volumes() -> Tensor:
    """Exams (7, 3, 4, 32, 32)."""
    generator = torch.Generator().manual_seed(1)
    exams = torch.rand(EXAMS, PLANES, 4, 32, 32, generator=generator) * 2 - 1
    exams[1, 0, 2:] = -1
    exams[2, 1] = -1
    exams[5, :, 3:] = -1
    return exams


def features() -> Tensor:
    """Stored features (7, 3, 4, 1280), zeros where slices are empty."""
    generator = torch.Generator().manual_seed(2)
    found = torch.randn(EXAMS, PLANES, 4, 1280, generator=generator)
    found[1, 0, 2:] = 0
    found[2, 1] = 0
    return found


def shaken(model: nn.Module) -> nn.Module:
    """The model with no weight at 0, so that every part has a gradient."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            spread = 0.2 / parameter[0].numel() ** 0.5
            parameter.data += torch.randn(parameter.shape, generator=generator) * spread
    return model.train()


def whole(name: str, pooling: Pooling) -> nn.Module:
    """A model that is trained whole, from pixels."""
    return shaken(build_model(name, SHAPE, seed=1, pooling=pooling))


def head(pooling: Pooling) -> nn.Module:
    """The trained part of a frozen model, from stored features."""
    model = build_model("frozen-efficientnet-lite0", SHAPE, seed=1, pooling=pooling)
    return shaken(trained_part(model))


class CalledTwice(nn.Module):
    """One layer on single rows of an exam, on many, and on the exam as a whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.slices = nn.Conv2d(1, 3, 5, stride=3)
        self.norm = nn.LayerNorm(3)
        self.shared = nn.Linear(3, 2)

    def forward(self, exams: Tensor) -> Tensor:
        """(B, 3, 4, 32, 32) -> (B, 2)."""
        first = self.slices(exams[:, 0, :1])  # B rows
        rest = self.slices(exams[:, 1:].flatten(0, 2).unsqueeze(1))  # 8 B rows
        one = self.norm(first.amax(dim=(2, 3)))  # (B, 3)
        many = self.norm(rest.amax(dim=(2, 3)))  # (8 B, 3)
        logits: Tensor = self.shared(many).tanh().view(len(exams), -1, 2).sum(1)
        return logits + self.shared(one)


CASES: dict[str, tuple[Callable[[], nn.Module], Data]] = {
    f"{name}, {pooling}": (partial(whole, name, pooling), Data(volumes()))
    for name in ("cnn-small", "elnet-like")
    for pooling in POOLINGS
} | {f"head, {pooling}": (partial(head, pooling), Data(features())) for pooling in POOLINGS}
CASES["layers called twice"] = (CalledTwice, Data(volumes()))


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Several labels an exam: one loss for each exam (B, K), (B, K) -> (B,)."""
    by_label = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    return by_label.mean(dim=1)


def summed(
    module: nn.Module, batch: PatientBatch, data: Data, *, at_once: int, max_grad_norm: float = C
) -> list[Tensor]:
    """The clipped sum over `batch`."""
    return list(
        clipped_sum(
            module,
            batch,
            examples=data,
            loss=loss,
            max_grad_norm=max_grad_norm,
            max_images_at_once=at_once,
        )
    )


def plain_clipped_sum(
    module: nn.Module, batch: PatientBatch, data: Data, max_grad_norm: float
) -> list[Tensor]:
    """The oracle: an ordinary backward for each exam by itself, in float64 from there on."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for rows in batch:
        average = [torch.zeros_like(t) for t in total]
        for row in rows:
            inputs, targets = data(np.array([row]))
            found = torch.autograd.grad(loss(module(inputs), targets).sum(), parameters)
            average = [a + g.double() / len(rows) for a, g in zip(average, found, strict=True)]
        scale = min(1.0, max_grad_norm / (norm(average) + 1e-6))  # Opacus' own 1e-6
        total = [t + scale * a for t, a in zip(total, average, strict=True)]
    return total


def norm(tensors: list[Tensor]) -> float:
    """The Euclidean norm of all of them together."""
    return float(torch.cat([t.double().flatten() for t in tensors]).norm())


@pytest.mark.parametrize("at_once", [100, 1], ids=["all at once", "patient by patient"])
@pytest.mark.parametrize("max_grad_norm", [0.02, 1e3], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("case", list(CASES))
def test_the_clipped_sum_is_that_of_a_plain_loop(
    case: str, max_grad_norm: float, at_once: int
) -> None:
    """With empty slices and several exams of a patient, each weight's sum is right to 1e-5.

    (Or to 1e-6 of all weights together, where a weight's own gradients nearly cancel.)
    """
    build, data = CASES[case]
    module = build()
    ours = summed(module, BATCH, data, at_once=at_once, max_grad_norm=max_grad_norm)
    expected = plain_clipped_sum(module, BATCH, data, max_grad_norm)
    for one, other in zip(ours, expected, strict=True):
        assert norm([other]) > 0
        assert norm([one.double() - other]) <= max(1e-5 * norm([other]), 1e-6 * norm(expected))


@pytest.mark.parametrize("at_once", [100, 3, 1])
@pytest.mark.parametrize("case", ["cnn-small, max", "elnet-like, attention", "head, attention"])
def test_removing_a_patient_moves_the_sum_by_at_most_c(case: str, at_once: int) -> None:
    """Adjacency: whoever is gone, with all slices of all exams, the sum moves by C at most."""
    build, data = CASES[case]
    module = build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 1.5  # so that gradients are long
    everybody = summed(module, BATCH, data, at_once=at_once, max_grad_norm=0.01)
    for gone in range(len(BATCH)):
        without = summed(
            module, BATCH[:gone] + BATCH[gone + 1 :], data, at_once=at_once, max_grad_norm=0.01
        )
        moved = norm([a.double() - b for a, b in zip(everybody, without, strict=True)])
        assert 0.009 < moved <= 0.01 * (1 + 1e-4)


@pytest.mark.parametrize("at_once", [100, 1])
def test_a_private_step_gives_the_same_bits_twice(at_once: int) -> None:
    """The sum over volumes with empty slices is deterministic."""
    build, data = CASES["elnet-like, max"]
    one, other = (summed(build(), BATCH, data, at_once=at_once) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_memory_bound_holds_within_a_patient() -> None:
    """A patient with more exams than the bound is worked through in pieces of it."""
    data, seen = Data(volumes()), []

    def examples(rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        seen.append(rows.tolist())
        return data(rows)

    arguments = {"loss": loss, "max_grad_norm": C, "max_images_at_once": 2}
    clipped_sum(CalledTwice(), BATCH, examples=examples, **arguments)
    assert seen == [[0, 1], [2, 3], [4, 5], [6]]


class Pairs(nn.Module):
    """Every second exam goes through a layer alone: no number of rows an exam."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 2) -> (B, 2)."""
        some: Tensor = self.layer(inputs[: len(inputs) - 1])
        return functional.pad(some, (0, 0, 0, 1))


def test_rows_that_belong_to_no_exam_are_refused() -> None:
    """A layer whose rows can't be shared out among the exams is an error, not a guess."""
    with pytest.raises(ValueError, match="Linear saw 6 rows of 7 images"):
        summed(Pairs(), BATCH, Data(torch.randn(EXAMS, 2)), at_once=100)


def test_other_inputs_than_asked_for_are_refused() -> None:
    """Fewer exams than rows would be taken for whole patients."""
    data = Data(features())
    with pytest.raises(ValueError, match="inputs of 7 images; got 4"):
        clipped_sum(
            head("max"),
            BATCH,
            examples=lambda rows: data(rows[:4]),
            loss=loss,
            max_grad_norm=C,
            max_images_at_once=100,
        )


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ["cnn-small", "elnet-like"])
def test_models_of_volumes_can_be_trained_privately(name: str, pooling: Pooling) -> None:
    """None of their layers is refused."""
    refuse_unsupported(whole(name, pooling))


def test_a_batch_norm_in_a_backbone_is_refused() -> None:
    """The wrapper hides no layer that would mix exams."""
    backbone = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    with pytest.raises(BadInput, match=r"backbone\.1 \(BatchNorm2d\) mixes the patients"):
        refuse_unsupported(SliceEncoder(backbone))

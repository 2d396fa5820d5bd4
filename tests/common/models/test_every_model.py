"""What holds for each model of the registry, whatever it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.catalogue import CATALOGUE
from common.models import (
    MODELS,
    Classifier,
    Shape,
    build_model,
    frozen_encoder,
    pack,
    redraw_dropout,
    trained_layout,
    trained_part,
)
from common.models.layers import ClassToken, PositionEmbedding

SHAPE = Shape(2, 1, 32)
VOLUMES = Shape(3, 1, 32, planes=3, slices=2)
# Whatever has parameters is one of these, since every privacy engine has a rule for them.
KNOWN = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.Embedding)
OWN = (ClassToken, PositionEmbedding)


@pytest.fixture(autouse=True, scope="module")
def deterministic() -> Iterator[None]:
    """As in training: an operation without a deterministic form would raise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


# These differ from vit-tiny by numbers alone and take seconds a test.
LARGE = ("vit-small", "vit-base")
EACH = [pytest.param(n, marks=pytest.mark.long if n in LARGE else ()) for n in MODELS]


@pytest.fixture(scope="module", params=EACH)
def name(request: pytest.FixtureRequest) -> str:
    """Every model in turn."""
    return str(request.param)


@pytest.fixture(scope="module")
def built(name: str) -> Classifier:
    """The model on pictures; the large ones take seconds to build, so tests share one."""
    return build_model(name, SHAPE, seed=1)


@pytest.fixture
def model(built: Classifier) -> Iterator[Classifier]:
    """The model in train mode, as built; tests may train it."""
    before = pack(built)
    yield built.train()
    parameters = (p for _, p in sorted(built.named_parameters()) if p.requires_grad)
    with torch.no_grad():
        start = 0
        for parameter in parameters:
            stop = start + parameter.numel()
            parameter.copy_(torch.from_numpy(before[start:stop]).view_as(parameter))
            parameter.grad, start = None, stop


def images(count: int = 4, shape: Shape = SHAPE) -> Tensor:
    """Pictures or volumes in [-1, 1]."""
    lead = (shape.planes, shape.slices) if shape.planes else (shape.channels,)
    size = (count, *lead, shape.image_size_px, shape.image_size_px)
    return torch.rand(size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def gradients(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Of the trained parameters, for a loss that no symmetry makes 0."""
    logits = model(inputs)
    weights = torch.arange(1.0, logits.numel() + 1).view_as(logits)
    trained = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad((logits * weights).sum(), trained))


class Mutations(TorchDispatchMode):
    """Records the operations that overwrite what a gradient may need."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and look at its schema; a constant may be made in any way."""
        if func._schema.is_mutable and args[0].requires_grad:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
def test_the_catalogue_counts_what_is_trained(name: str) -> None:
    """Parameters for grey pictures of 32 x 32 px and two classes, pinned."""
    is_frozen = name == "frozen-efficientnet-lite0"
    with torch.device("cpu" if is_frozen else "meta"):  # shapes alone, at once
        model = build_model(name, SHAPE, seed=1)
    assert trained_layout(model).size == CATALOGUE[name].parameters


def test_only_layers_that_every_engine_knows_have_parameters(model: Classifier) -> None:
    """No BatchNorm, and no raw parameter outside the two layers of our own."""
    for path, layer in trained_part(model).named_modules():
        if list(layer.parameters(recurse=False)):
            assert type(layer) in (*KNOWN, *OWN), path
        assert not getattr(layer, "track_running_stats", False), path


def test_nothing_is_overwritten(model: Classifier) -> None:
    """No operation of the trained part is in place, not even a hidden `+=`."""
    frozen = frozen_encoder(model)
    inputs = images() if frozen is None else frozen[0](images())
    with Mutations() as mutations:
        trained_part(model)(inputs.requires_grad_())
    assert mutations.names == []
    assert not any(getattr(layer, "inplace", False) for layer in trained_part(model).modules())


def test_hidden_mutations_are_seen() -> None:
    """The recorder of the test above is not blind."""
    with Mutations() as mutations:
        total = torch.ones(2, requires_grad=True) * 2
        total += 1
    assert mutations.names == ["aten.add_.Tensor"]


def test_the_gradient_reaches_every_parameter(model: Classifier) -> None:
    """No trained parameter is out of the loss's reach: each would be noise and nothing else."""
    with torch.no_grad():
        for parameter in trained_part(model).parameters():
            if not parameter.any():  # a head on frozen features begins as 0
                parameter.fill_(0.1)
    found = gradients(model, images())
    names = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    unreached = [key for key, gradient in zip(names, found, strict=True) if not gradient.any()]
    assert unreached == []


def test_an_image_does_not_depend_on_its_neighbours(model: Classifier) -> None:
    """In training too, each image's logits are its own: else patients would mix in a batch."""
    redraw_dropout(model, np.random.default_rng(0))
    batch = images()
    alone = torch.cat([model(image[None]) for image in batch])
    assert torch.allclose(model(batch), alone, atol=1e-5)


def test_nothing_but_trained_parameters_changes_in_training(model: Classifier) -> None:
    """A step moves what is in the layout, and no buffer and no frozen parameter."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        nn.functional.cross_entropy(model(images()), torch.tensor([0, 1, 1, 0])).backward()
        optimizer.step()
    changed = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == set(trained_layout(model).names)


def test_a_step_gives_the_same_bits_twice(model: Classifier) -> None:
    """Forward and backward are deterministic."""
    first, second = (gradients(model, images()) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_seed_alone_gives_the_initial_weights(name: str, built: Classifier) -> None:
    """The same seed gives the same bits, wherever torch's own randomness stands."""
    torch.manual_seed(77)
    assert np.array_equal(pack(build_model(name, SHAPE, seed=1)), pack(built))
    if name != "frozen-efficientnet-lite0":  # its head begins as 0
        assert not np.array_equal(pack(build_model(name, SHAPE, seed=2)), pack(built))


def test_volumes_go_through_slice_by_slice(name: str) -> None:
    """Three planes of slices become one logit a class; an empty slice changes nothing."""
    model = build_model(name, VOLUMES, seed=1).eval()
    exams = images(2, VOLUMES)
    exams[0, 1, 1] = -1.0
    other = exams.clone()
    other[0, 1, 1] = 0.5
    logits = model(exams)
    assert logits.shape == (2, 3)
    assert torch.isfinite(logits).all()
    assert torch.allclose(model(other), logits, atol=1e-6)

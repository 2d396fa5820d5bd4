"""Volumes through 2D backbones: pooling, empty slices, fusion, and what is stored of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from common.models import Classifier, Shape, build_model, feature_shape, frozen_encoder
from common.models.planes import PlanesHead, Pooling, SliceEncoder

POOLINGS: list[Pooling] = ["max", "attention"]
SHAPE = Shape(2, 1, 32, planes=3, slices=4)


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """As in training: an operation without a deterministic form would raise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def volumes(count: int = 3, shape: Shape = SHAPE) -> Tensor:
    """Volumes in [-1, 1] without empty slices."""
    generator = torch.Generator().manual_seed(3)
    size = (count, shape.planes, shape.slices, shape.image_size_px, shape.image_size_px)
    return torch.rand(size, generator=generator) * 2 - 1


def model(name: str = "cnn-small", pooling: Pooling = "max", shape: Shape = SHAPE) -> Classifier:
    """A model whose every part matters: no weight is 0."""
    built = build_model(name, shape, seed=1, pooling=pooling)
    generator = torch.Generator().manual_seed(2)
    for parameter in built.head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return built


@pytest.fixture(scope="module")
def frozen() -> Classifier:
    """The frozen model on volumes, whose encoder takes a moment to read."""
    return model("frozen-efficientnet-lite0", "attention")


def plain_logits(built: Classifier, exam: Tensor, pooling: Pooling) -> Tensor:
    """The oracle: slice by slice and plane by plane, (planes, slices, H, W) -> (classes,)."""
    assert isinstance(built.encoder, SliceEncoder)
    assert isinstance(built.head, PlanesHead)
    said = []
    for plane, classifier in zip(exam, built.head.planes, strict=True):
        slices = [s for s in plane if s.min() != s.max()]
        if not slices:
            said.append(classifier(torch.zeros(feature_shape(built)[-1])))
            continue
        features = torch.stack([built.encoder.backbone(s[None, None])[0] for s in slices])
        if pooling == "max":
            pooled = features.max(dim=0).values
            if len(slices) > 1:
                pooled = pooled - features.mean(dim=0)
        else:
            assert built.head.score is not None
            weights = torch.cat([built.head.score(f) for f in features]).softmax(0)
            pooled = sum((w * f for w, f in zip(weights, features, strict=True)), torch.zeros(()))
        said.append(classifier(pooled))
    fused: Tensor = built.head.fusion(torch.cat(said))
    return fused


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ["cnn-small", "elnet-like"])
def test_a_volume_is_read_as_a_plain_loop_would(name: str, pooling: Pooling) -> None:
    """Logits of full volumes, of ones with empty slices and with an empty plane, are the loop's."""
    exams = volumes()
    exams[1, 0, 2:] = -1
    exams[1, 2, :1] = 0.5
    exams[2, 1] = -1
    built = model(name, pooling)
    expected = torch.stack([plain_logits(built, exam, pooling) for exam in exams])
    assert torch.allclose(built(exams), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_empty_slices_change_nothing(pooling: Pooling) -> None:
    """However many slices fill a volume up, and wherever, it says the same."""
    built, exams = model(pooling=pooling), volumes(2)
    padded = torch.full((2, 3, 9, 32, 32), -1.0)
    padded[:, :, 3:7] = exams
    assert torch.allclose(built(padded), built(exams), atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ["cnn-small", "elnet-like"])
def test_nothing_becomes_nan_where_nothing_is(name: str, pooling: Pooling) -> None:
    """An empty plane, and an empty exam, give finite logits and finite gradients."""
    exams = volumes(2)
    exams[0, 1] = -1
    exams[1] = 0.25
    built = model(name, pooling)
    logits = built(exams)
    logits.square().sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in built.parameters() if p.grad is not None)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_empty_slices_teach_nothing(pooling: Pooling) -> None:
    """No gradient of the backbone comes from them, though it sees them."""
    exams = volumes(1)
    exams[0, 0, 1:] = 0.7
    exams[0, 1:] = -1
    lone = exams[:, :1, :1]
    built = model(pooling=pooling)
    assert isinstance(built.encoder, SliceEncoder)
    assert isinstance(built.head, PlanesHead)
    weight = next(built.encoder.backbone.parameters())
    (found,) = torch.autograd.grad(built(exams).sum(), weight)
    # The same from the one slice that is left, through its plane's part of the fusion.
    features = built.encoder.backbone(lone.flatten(0, 2).unsqueeze(1))
    said = built.head.planes[0](features)
    (expected,) = torch.autograd.grad((said @ built.head.fusion.weight[:, :2].T).sum(), weight)
    assert expected.abs().max() > 0
    assert torch.allclose(found, expected, atol=1e-6)


def test_what_stands_out_is_each_features_own() -> None:
    """A tear in one slice is seen above the mean of all that aren't empty, in any order."""
    head = PlanesHead([nn.Linear(2, 1)], pooling="max")
    features = torch.tensor([[[[1.0, -5.0], [-3.0, -4.0], [0.0, 0.0]]]])
    with torch.no_grad():
        expected = head.fusion(head.planes[0](torch.tensor([[2.0, 0.5]])))
    assert torch.equal(head(features), expected)
    assert torch.equal(head(features.flip(2)), expected)


def test_attention_begins_as_the_mean() -> None:
    """Untrained, every slice that carries something weighs the same."""
    head = PlanesHead([nn.Linear(2, 1)], pooling="attention")
    features = torch.tensor([[[[1.0, -5.0], [-3.0, -4.0], [0.0, 0.0]]]])
    with torch.no_grad():
        expected = head.fusion(head.planes[0](torch.tensor([[-1.0, -4.5]])))
    assert torch.allclose(head(features), expected)


def test_planes_are_fused_as_their_mean_at_first() -> None:
    """Each class gets the mean of what the planes say of it, until training weighs them."""
    head = PlanesHead([nn.Linear(4, 2) for _ in range(3)], pooling="attention")
    pooled = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    said = torch.stack([head.planes[i](pooled[:, i]) for i in range(3)])
    assert torch.allclose(head(pooled.unsqueeze(2)), said.mean(0), atol=1e-6)


def test_a_backbone_is_shared_by_planes_and_slices() -> None:
    """More planes cost a linear layer each, more slices nothing."""
    sizes = [
        sum(p.numel() for p in build_model("cnn-small", shape, seed=1).parameters())
        for shape in (Shape(2, 1, 32, 1, 4), Shape(2, 1, 32, 3, 4), Shape(2, 1, 32, 3, 40))
    ]
    assert sizes[1] - sizes[0] == 2 * (128 * 2 + 2) + 2 * (2 * 2)
    assert sizes[2] == sizes[1]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ["cnn-small", "elnet-like"])
def test_an_exam_does_not_depend_on_its_neighbours(name: str, pooling: Pooling) -> None:
    """In training too: else exams would mix in a batch."""
    built, exams = model(name, pooling).train(), volumes(3)
    exams[1, 0, 1:] = -1
    alone = torch.cat([built(exam[None]) for exam in exams])
    assert torch.allclose(built(exams), alone, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ["cnn-small", "elnet-like"])
def test_a_training_step_gives_the_same_bits_twice(name: str, pooling: Pooling) -> None:
    """Forward and backward of volumes, empty slices among them, are deterministic."""
    exams = volumes(2)
    exams[0, 1] = -1
    gradients = []
    for _ in range(2):
        built = model(name, pooling)
        built(exams).square().sum().backward()
        gradients.append([p.grad for p in built.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_frozen_features_of_a_volume_may_be_stored(frozen: Classifier) -> None:
    """Encoder then head is the model; empty slices are stored as zeros and stay empty."""
    exams = volumes(2)
    exams[0, 1, 2:] = -1
    encoder, head = frozen_encoder(frozen) or pytest.fail("no frozen encoder")
    features = encoder(exams)
    assert features.shape == (2, 3, 4, 1280) == (2, *feature_shape(frozen))
    assert not features.requires_grad
    assert not features[0, 1, 2:].any()
    assert features[0, 1, :2].any(dim=-1).all()
    assert features[1].any(dim=-1).all()
    assert torch.equal(head(features), frozen(exams))
    assert torch.isfinite(head(encoder(torch.zeros(1, 3, 4, 32, 32)))).all()


def test_frozen_features_never_depend_on_the_batch(frozen: Classifier) -> None:
    """Not in their last bits either, whatever the number of exams at once."""
    exams = volumes(3)
    encoder, _ = frozen_encoder(frozen) or pytest.fail("no frozen encoder")
    together = encoder(exams)
    assert torch.equal(together[1:2], encoder(exams[1:2]))
    assert torch.equal(together.flip(0), encoder(exams.flip(0)))


def test_a_head_on_frozen_features_begins_by_saying_nothing() -> None:
    """All logits are 0 before training, and yet every plane's classifier can learn."""
    built = build_model("frozen-efficientnet-lite0", SHAPE, seed=1)
    logits = built(volumes(1))
    assert not logits.any()
    (logits * torch.tensor([1.0, -1.0])).sum().backward()
    assert isinstance(built.head, PlanesHead)
    for plane in built.head.planes:
        assert plane.weight.grad.any()

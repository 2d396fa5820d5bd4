"""The models: what they take and give, what is trained of them, and what never moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from common.catalogue import CATALOGUE
from common.config import ModelConfig, Study, parse
from common.errors import BadInput
from common.models import (
    MODELS,
    Classifier,
    Shape,
    build_model,
    feature_shape,
    frozen_encoder,
    pack,
    study_model,
    trained_layout,
    trained_part,
)

FROZEN = "frozen-efficientnet-lite0"


@pytest.fixture(scope="module")
def frozen() -> Classifier:
    """The frozen model, whose encoder takes a moment to read."""
    return build_model(FROZEN, Shape(3, 1, 32), seed=1)


def images(count: int = 4, channels: int = 1, size: int = 32) -> torch.Tensor:
    """Images in [-1, 1]."""
    return (
        torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )


def test_every_model_is_in_the_catalogue() -> None:
    """What `fedward models` lists is what there is, and `fedward schema study` points there."""
    assert list(CATALOGUE) == list(MODELS)
    assert "`fedward models`" in str(ModelConfig.model_fields["name"].description)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "vit-base"])  # slow
@pytest.mark.parametrize(("classes", "size"), [(2, 32), (5, 64)])
def test_every_model_gives_one_logit_a_class(name: str, classes: int, size: int) -> None:
    """Images (B, 1, size, size) become finite logits (B, classes)."""
    model = build_model(name, Shape(classes, 1, size), seed=1)
    logits = model(images(3, size=size))
    assert logits.shape == (3, classes)
    assert torch.isfinite(logits).all()


def test_the_small_cnn_is_small_and_has_no_batch_statistics() -> None:
    """About 100 k parameters whatever the image's size, GroupNorm and no buffer at all."""
    model = build_model("cnn-small", Shape(2, 1, 32), seed=1)
    assert 80_000 < sum(p.numel() for p in model.parameters()) < 120_000
    assert pack(model).size == pack(build_model("cnn-small", Shape(2, 1, 224), seed=1)).size
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert sum(isinstance(m, nn.GroupNorm) for m in model.modules()) == 4
    assert list(model.buffers()) == []


def test_the_knee_network_is_small_whatever_the_planes() -> None:
    """About 0.2 M parameters, one trunk for all planes, and no batch statistics."""
    model = build_model("elnet-like", Shape(3, 1, 96, planes=3, slices=12), seed=1)
    one = build_model("elnet-like", Shape(3, 1, 96, planes=1, slices=12), seed=1)
    assert 180_000 < pack(model).size < 220_000
    assert 0 < pack(model).size - pack(one).size < 500
    assert list(model.buffers()) == []


def test_a_small_cnn_is_trained_whole() -> None:
    """Without a frozen encoder, the trained part is the model itself."""
    model = build_model("cnn-small", Shape(2, 1, 32), seed=1)
    assert frozen_encoder(model) is None
    assert trained_part(model) is model


def test_an_encoder_that_is_trained_is_not_frozen() -> None:
    """One parameter that takes a gradient, and all is trained."""
    encoder, head = nn.Linear(2, 2), nn.Linear(2, 2)
    model = Classifier(encoder, head, feature_shape=(2,))
    encoder.bias.requires_grad_(requires_grad=False)
    assert trained_part(model) is model
    encoder.weight.requires_grad_(requires_grad=False)
    assert trained_part(model) is head


def test_a_frozen_encoder_stays_in_eval(frozen: Classifier) -> None:
    """train() reaches the head alone, however it is called."""
    encoder = frozen_encoder(frozen)
    assert encoder is not None
    frozen.train()
    assert frozen.training
    for call in (frozen.train, encoder[0].train, frozen.eval):
        call()
        assert not any(module.training for module in encoder[0].modules())


def test_of_a_frozen_model_only_the_head_is_trained(frozen: Classifier) -> None:
    """The layout holds the head's weight and bias: nothing of the encoder can be sent."""
    layout = trained_layout(frozen)
    assert layout.names == ("head.bias", "head.weight")
    assert layout.shapes == ((3,), (3, 1280))
    encoder, head = frozen_encoder(frozen) or pytest.fail("no frozen encoder")
    assert trained_part(frozen) is head
    assert torch.equal(frozen(images()), head(encoder(images())))


def test_frozen_features_are_standardised_per_image(frozen: Classifier) -> None:
    """Each image's features have mean 0 and deviation 1, and differ between images."""
    encoder, _ = frozen_encoder(frozen) or pytest.fail("no frozen encoder")
    features = encoder(images())
    assert features.shape == (4, 1280) == (4, *feature_shape(frozen))
    assert not features.requires_grad
    assert torch.allclose(features.mean(dim=1), torch.zeros(4), atol=1e-5)
    assert torch.allclose(features.std(dim=1, correction=0), torch.ones(4), atol=1e-2)
    assert (features[0] - features[1]).abs().max() > 0.1
    assert torch.equal(encoder(images()), encoder(images().expand(-1, 3, -1, -1)))


def test_the_seed_gives_the_initial_weights() -> None:
    """The same seed gives the same bits, another seed others; torch's own state is untouched."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = pack(build_model("cnn-small", Shape(2, 1, 32), seed=2**63 - 1))
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(77)
    assert np.array_equal(first, pack(build_model("cnn-small", Shape(2, 1, 32), seed=2**63 - 1)))
    assert not np.array_equal(first, pack(build_model("cnn-small", Shape(2, 1, 32), seed=1)))


def test_a_study_says_all_that_a_model_needs() -> None:
    """Classes, image size, name and seed come from the study."""
    content = {
        "classes": ["a", "b", "c"],
        "data": {"kind": "manifest", "image_size_px": 16},
        "seed": 9,
    }
    expected = build_model("cnn-small", Shape(3, 1, 16), seed=9)
    assert np.array_equal(pack(study_model(parse(Study, content, where="x"))), pack(expected))


def test_a_study_says_the_size_of_patches() -> None:
    """`model.patch_px` reaches the transformer: 32 px in patches of 4 are 64 tokens and a class."""
    content = {
        "classes": ["a", "b"],
        "data": {"kind": "manifest", "image_size_px": 32},
        "model": {"name": "vit-tiny", "patch_px": 4},
    }
    layout = trained_layout(study_model(parse(Study, content, where="x")))
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    assert shapes["encoder.position.embedding"] == (65, 192)


def test_patches_are_refused_where_there_are_none() -> None:
    """A key that would change nothing is named, with what to do."""
    with pytest.raises(
        BadInput, match=r"model\.patch_px must be left out for model resnet18.*got 4"
    ):
        build_model("resnet18", Shape(2, 1, 32, patch_px=4), seed=1)


def test_a_study_of_volumes_says_planes_slices_and_pooling() -> None:
    """The model takes the data set's planes, and its features have the shape that is stored."""
    content = {
        "task": "multi-label",
        "classes": ["abnormal", "acl", "meniscus"],
        "data": {"kind": "mrnet", "image_size_px": 32, "slices": 5},
        "model": {"name": "cnn-small", "pooling": "attention"},
        "seed": 9,
    }
    model = study_model(parse(Study, content, where="x"))
    shape = Shape(3, 1, 32, planes=3, slices=5)
    expected = build_model("cnn-small", shape, seed=9, pooling="attention")
    assert np.array_equal(pack(model), pack(expected))
    assert feature_shape(model) == (3, 5, 128)
    assert model(torch.rand(2, 3, 5, 32, 32)).shape == (2, 3)
    assert "head.score.weight" in trained_layout(model).names


@pytest.mark.parametrize(
    ("name", "near"),
    [("cnn_small", "cnn-small"), ("efficientnet-lite0", FROZEN), ("CNN", ""), ("os.system", "")],
)
def test_an_unknown_model_is_refused_with_the_nearest(name: str, near: str) -> None:
    """The names that there are, the one that came, and the nearest if one is near."""
    with pytest.raises(BadInput) as caught:
        build_model(name, Shape(2, 1, 32), seed=1)
    said = str(caught.value)
    assert said.startswith(f"model.name must be one of {', '.join(MODELS)}; got {name}.")
    assert said.endswith(f"Did you mean {near}?" if near else f"got {name}.")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cnn-small", 7),
        ("elnet-like", 31),
        (FROZEN, 31),
        ("cnn-li2014", 7),
        ("resnet18", 7),
        ("vit-tiny", 15),
    ],
)
def test_images_too_small_for_a_model_are_refused(name: str, size: int) -> None:
    """The key, the least size and what came are named, before anything is built."""
    with pytest.raises(BadInput, match=rf"data.image_size_px must be at least {size + 1} .*{size}"):
        build_model(name, Shape(2, 1, size), seed=1)


@pytest.mark.parametrize("name", ["cnn-small", "cnn-li2014", "resnet18", "vit-tiny"])
def test_the_smallest_images_that_are_not_refused_work(name: str) -> None:
    """What the catalogue gives as the smallest image is enough."""
    size = CATALOGUE[name].smallest_image_px
    assert build_model(name, Shape(2, 1, size), seed=1)(images(2, size=size)).isfinite().all()

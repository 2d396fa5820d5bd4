"""The ResNets' own parts: torchvision's network without its operations in place, and the stem."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torchvision.models import resnet

from common.models.resnet import ResNet


def torchvision_twin(ours: ResNet, build: Any) -> Any:
    """torchvision's own network with our weights, giving features."""
    theirs = build(norm_layer=partial(nn.GroupNorm, 32))
    theirs.fc = nn.Identity()
    pairs = [(theirs.conv1, ours.stem[0]), (theirs.bn1, ours.stem[1])]
    blocks = itertools.chain(theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)
    for block, own in zip(blocks, ours.blocks, strict=True):
        layers = [block.conv1, block.bn1, block.conv2, block.bn2]
        if hasattr(block, "conv3"):
            layers += [block.conv3, block.bn3]
        path = [layer for layer in own.path if not isinstance(layer, nn.ReLU)]
        pairs += zip(layers, path, strict=True)
        if block.downsample is not None:
            pairs.append((block.downsample, own.shortcut))
    for layer, own in pairs:
        layer.load_state_dict(own.state_dict())
    return theirs


@pytest.mark.parametrize(("kind", "build"), [(18, resnet.resnet18), (50, resnet.resnet50)])
def test_it_is_torchvisions_network(kind: Literal[18, 50], build: Any) -> None:
    """With the same weights, features and the stem's gradient at 64 px are torchvision's own."""
    torch.manual_seed(0)
    ours = ResNet(kind, channels=3, image_size_px=64)
    theirs = torchvision_twin(ours, build)
    pictures = torch.randn(2, 3, 64, 64)
    features, expected = ours(pictures), theirs(pictures)
    assert torch.allclose(features, expected, atol=1e-5)
    weights = torch.randn(features.shape)
    (found,) = torch.autograd.grad((features * weights).sum(), ours.stem[0].weight)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), theirs.conv1.weight)
    assert torch.allclose(found, wanted, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("image_size_px", "first_stage_px"),
    [(8, 8), (31, 31), (32, 16), (63, 32), (64, 16), (127, 32), (224, 56)],
)
def test_the_first_stage_sees_what_its_cost_allows(image_size_px: int, first_stage_px: int) -> None:
    """16 px a side or more where there are so many, and never more than a 127 px image gives."""
    network = ResNet(18, channels=1, image_size_px=image_size_px)
    maps = network.stem(torch.zeros(1, 1, image_size_px, image_size_px))
    assert maps.shape == (1, 64, first_stage_px, first_stage_px)


@torch.no_grad()
def test_features_have_one_scale_whatever_the_images_size() -> None:
    """Each stem is initialised as the rest: one learning rate may serve all sizes."""
    torch.manual_seed(0)
    networks = [(px, ResNet(18, channels=1, image_size_px=px)) for px in (16, 32, 64)]
    sizes = [float(network(torch.randn(4, 1, px, px)).std()) for px, network in networks]
    assert max(sizes) < 2 * min(sizes)

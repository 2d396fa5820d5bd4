"""ResNets (He et al., CVPR 2016, arXiv:1512.03385) with GroupNorm (Wu & He, ECCV 2018, 1803.08494).

torchvision builds and initialises the layers. Only the wiring is ours: torchvision adds and
rectifies in place, which overwrites what per-image gradients need, and its stem is for 224 px.
GroupNorm instead of BatchNorm, since a batch statistic mixes patients and would leave the site.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import nn

_GROUPS = 32
_STEM = 64


class Residual(nn.Module):
    """A block of torchvision's, basic or bottleneck, without an operation in place.

    Args:
        block: its convolutions, norms and shortcut are taken over with their weights.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in (1, 2, 3):
            if hasattr(block, f"conv{number}"):
                layers += [getattr(block, f"conv{number}"), getattr(block, f"bn{number}")]
                layers.append(nn.ReLU())
        self.path = nn.Sequential(*layers[:-1])  # the last ReLU comes after the sum
        self.shortcut = block.downsample or nn.Identity()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        total: torch.Tensor = self.path(maps) + self.shortcut(maps)
        return total.relu()


class ResNet(nn.Module):
    """A ResNet whose first stage sees at least 16 px a side, where the image has them.

    The stem halves 64 px and more twice (7x7 convolution of stride 2, max pooling), as published;
    32 to 63 px once and less never (3x3 convolution, as He et al. do for 32 px). So details of
    small pictures survive, and no picture below 128 px costs more than one of 127 px does: the
    CIFAR stem, which never halves, would make a 64 px step ten times as slow.

    Args:
        kind: number of layers.
        channels: of the images.
        image_size_px: >= 8; decides the stem.
    """

    def __init__(self, kind: Literal[18, 50], *, channels: int, image_size_px: int) -> None:
        super().__init__()
        from torchvision.models import resnet  # its import takes two seconds

        build = {18: resnet.resnet18, 50: resnet.resnet50}[kind]
        network = build(num_classes=1, norm_layer=partial(nn.GroupNorm, _GROUPS))
        self.stem = _stem(channels, image_size_px)
        stages = (network.layer1, network.layer2, network.layer3, network.layer4)
        self.blocks = nn.Sequential(*(Residual(block) for stage in stages for block in stage))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, 512 or 2048) of images (B, channels, H, W)."""
        maps: torch.Tensor = self.blocks(self.stem(images))  # (B, F, h, w)
        return maps.mean(dim=(2, 3))


def _stem(channels: int, image_size_px: int) -> nn.Sequential:
    kernel = 7 if image_size_px >= 64 else 3
    stride = 2 if image_size_px >= 32 else 1
    convolution = nn.Conv2d(channels, _STEM, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    layers = [convolution, nn.GroupNorm(_GROUPS, _STEM), nn.ReLU()]
    if image_size_px >= 64:
        layers.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
    return nn.Sequential(*layers)

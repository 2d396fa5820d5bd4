"""A small CNN with GroupNorm and global average pooling (about 100 k parameters).

GroupNorm instead of BatchNorm, since a batch statistic mixes patients (no per-patient gradient)
and its running mean would leave the site. Global average pooling makes the number of parameters
independent of the image size, and every parameter costs noise.
"""

from __future__ import annotations

import torch
from torch import nn

_WIDTHS = (16, 32, 64, 128)
FEATURES = _WIDTHS[-1]


class CnnSmall(nn.Module):
    """Four 3x3 convolutions, halving the image after each of the first three."""

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for width in _WIDTHS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            layers += [
                nn.Conv2d(before, width, kernel_size=3, padding=1),
                nn.GroupNorm(8, width),
                nn.ReLU(),
            ]
            before = width
        self.layers = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, 128) of images (B, channels, H, W); H and W at least 8."""
        maps: torch.Tensor = self.layers(images)  # (B, 128, H/8, W/8)
        return maps.mean(dim=(2, 3))  # (B, 128)

"""The network of Li et al. for lung patches (ICARCV 2014, Singapore).

One convolution of 16 kernels 7x7, 2x2 max pooling, dense layers of 100, 50 and as many neurons as
classes (that one is the head), dropout. Its authors read 32x32 patches; the first dense layer
grows with the square of the image size: 0.3 M parameters at 32 px, 1.4 M at 64 px.
"""

from __future__ import annotations

import torch
from torch import nn

from common.models.dropout import StepDropout

_KERNELS, _KERNEL_PX, _NEURONS = 16, 7, 100
FEATURES = 50


class CnnLi2014(nn.Module):
    """One convolution and two dense layers.

    Args:
        channels: of the images.
        image_size_px: >= 8.
    """

    def __init__(self, *, channels: int, image_size_px: int) -> None:
        super().__init__()
        side = (image_size_px - _KERNEL_PX + 1) // 2  # 13 at 32 px
        self.layers = nn.Sequential(
            nn.Conv2d(channels, _KERNELS, _KERNEL_PX),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(_KERNELS * side**2, _NEURONS),
            nn.ReLU(),
            StepDropout(_NEURONS),
            nn.Linear(_NEURONS, FEATURES),
            nn.ReLU(),
            StepDropout(FEATURES),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, 50) of images (B, channels, image_size_px, image_size_px)."""
        features: torch.Tensor = self.layers(images)
        return features

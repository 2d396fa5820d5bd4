"""A network as two parts: an encoder that makes features, and a head that makes logits of them."""

from __future__ import annotations

import torch
from torch import nn


class Classifier(nn.Module):
    """Images -> features -> logits; under a frozen encoder only the head is trained.

    Args:
        encoder: images (B, ...) -> features (B, *feature_shape).
        head: features (B, *feature_shape) -> logits (B, classes).
        feature_shape: of one image's features.
    """

    def __init__(
        self, encoder: nn.Module, head: nn.Module, *, feature_shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.feature_shape = feature_shape

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of images (B, ...)."""
        logits: torch.Tensor = self.head(self.encoder(images))
        return logits

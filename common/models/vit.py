"""Vision transformers (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929), in DeiT's sizes.

DeiT: Touvron et al., ICML 2021, arXiv:2012.12877. All is Linear, LayerNorm or a layer of
`layers.py`, so every privacy engine knows it; no dropout and no stochastic depth.
"""

from __future__ import annotations

import torch
from torch import nn

from common.errors import BadInput
from common.models.layers import ClassToken, PositionEmbedding, SelfAttention

_DEPTH = 12
_EPS = 1e-6  # of LayerNorm, as published


class Block(nn.Module):
    """Attention, then two dense layers, each on normalised tokens and added to them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=_EPS)
        self.attention = SelfAttention(width, heads)
        self.dense_norm = nn.LayerNorm(width, eps=_EPS)
        self.dense = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, E) -> (B, T, E)."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        mixed: torch.Tensor = tokens + self.dense(self.dense_norm(tokens))
        return mixed


class Vit(nn.Module):
    """Twelve blocks on patches of the image; the class token at the end is the features.

    Args:
        channels: of the images.
        image_size_px: of a side.
        patch_px: side of a patch; None: 8 below 128 px, which leaves 16 tokens at 32 px, else 16.
        width: E, of a token; a multiple of `heads`.
        heads: of each attention.

    Raises:
        BadInput: the image isn't cut into whole patches, or into one only.
    """

    def __init__(
        self, *, channels: int, image_size_px: int, patch_px: int | None, width: int, heads: int
    ) -> None:
        super().__init__()
        self.patch_px = patch_px or (8 if image_size_px < 128 else 16)
        across, rest = divmod(image_size_px, self.patch_px)
        if rest or across < 2:
            raise BadInput(
                "data.image_size_px must be at least twice model.patch_px, and a multiple of it; "
                f"got images of {image_size_px} px and patches of {self.patch_px} px. Change one "
                "of them in the study."
            )
        # A Linear on cut-out patches is the published convolution, at half of its private cost.
        self.embed = nn.Linear(channels * self.patch_px**2, width)
        self.class_token = ClassToken(width)
        self.position = PositionEmbedding(1 + across**2, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(_DEPTH)))
        self.norm = nn.LayerNorm(width, eps=_EPS)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                std = layer.in_features**-0.5 if layer is self.embed else 0.02
                nn.init.trunc_normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, E) of images (B, channels, image_size_px, image_size_px)."""
        patches = nn.functional.unfold(images, self.patch_px, stride=self.patch_px)  # (B, C*p*p, T)
        tokens = self.class_token(self.embed(patches.transpose(1, 2)))  # (B, 1 + T, E)
        first: torch.Tensor = self.norm(self.blocks(self.position(tokens)))[:, 0]
        return first  # (B, E)

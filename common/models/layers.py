"""Layers with parameters of their own, written as layers so that every privacy engine knows them.

A raw `nn.Parameter` in a model is invisible to rules that work layer by layer: its per-patient
gradient would have to be guessed.
"""

from __future__ import annotations

import torch
from torch import nn


class ClassToken(nn.Module):
    """Puts one learned token before the others (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929).

    Args:
        width: E, of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, E) -> (B, 1 + T, E)."""
        first = self.token.expand(len(tokens), 1, -1)
        return torch.cat([first, tokens], dim=1)


class PositionEmbedding(nn.Module):
    """Adds one learned vector to each place.

    Args:
        tokens: T, places.
        width: E, of a token.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(tokens, width).normal_(std=0.02))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, E) -> (B, T, E)."""
        return tokens + self.embedding


class SelfAttention(nn.Module):
    """Multi-head self-attention made of two Linear layers, whose gradients every engine knows.

    `nn.MultiheadAttention` keeps the weights of its projections as raw parameters.

    Args:
        width: E, of a token; a multiple of `heads`.
        heads: number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, E) -> (B, T, E)."""
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, E / heads)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        attended: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        return attended

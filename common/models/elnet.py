"""A small network for knee MRI, after ELNet (Tsai et al., MIDL 2020, arXiv:2005.02706).

Its marks: a volume goes through 2D convolutions as a stack of slices, each normalised by itself;
halving is preceded by a blur (Zhang, ICML 2019, arXiv:1904.11486), so that a lesion doesn't vanish
between two samples; the maximum over the plane, and then over the slices, is what counts, since a
tear shows in few pixels of few slices. Nothing is normalised just before that maximum: it would be
measured against the few values around it, and the noise of a slice without a lesion would be
raised to the size of one. The slices are pooled by `planes.py`, as for every backbone. Unlike the
original, one trunk serves all planes and the first blocks have 3x3 kernels: fewer parameters, hence
less noise, and half the time.
"""

from __future__ import annotations

import torch
from torch import nn

_STEM = 8
_STAGES = ((16, 2), (32, 2), (64, 1), (64, 2))  # channels and 3x3 convolutions, at half the size
FEATURES = _STAGES[-1][0]


class Elnet(nn.Module):
    """About 0.2 M parameters; the image is halved five times."""

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, _STEM, kernel_size=7, stride=2, padding=3, bias=False)
        self.stem_norm = _norm(_STEM)
        self.widenings = nn.ModuleList()
        self.blocks = nn.ModuleList()
        before = _STEM
        for width, convolutions in _STAGES:
            self.widenings.append(_conv(before, width))
            self.blocks.append(_block(width, convolutions))
            before = width
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # not all are normalised: keep the signal's scale
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (B, 64) of images (B, channels, H, W); H and W at least 32."""
        maps = self.stem_norm(self.stem(images)).relu()  # (B, 8, H/2, W/2)
        for widening, block in zip(self.widenings, self.blocks, strict=True):
            maps = widening(_halved(maps)).relu()
            maps = maps + block(maps)
        features: torch.Tensor = maps.amax(dim=(2, 3))
        return features  # (B, 64, H/32, W/32) -> (B, 64)


def _block(width: int, convolutions: int) -> nn.Sequential:
    """Convolutions at one size, each normalised within its slice."""
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [_conv(width, width), _norm(width), nn.ReLU()]
    return nn.Sequential(*layers)


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(width // 8, width)


def _halved(maps: torch.Tensor) -> torch.Tensor:
    """Every second pixel (B, C, H, W) -> (B, C, H // 2, W // 2), after a [1 2 1] blur each way."""
    height, width = maps.shape[2:]
    # Two matrix products: a third of the time of pooling or of a convolution with fixed weights.
    return _halving(height, maps) @ (maps @ _halving(width, maps).T)


def _halving(size: int, like: torch.Tensor) -> torch.Tensor:
    """The matrix (size // 2, size) that blurs and takes every second value; edges repeat."""
    matrix = like.new_zeros(size // 2, size)
    rows = torch.arange(size // 2, device=like.device)
    for offset, weight in ((-1, 0.25), (0, 0.5), (1, 0.25)):
        matrix[rows, (2 * rows + offset).clamp(min=0)] += weight
    return matrix

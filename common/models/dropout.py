"""Dropout with one mask for all images of a step (Graham et al. 2015, arXiv:1502.02478).

A mask for each image, drawn while the images pass by, would depend on who else is in the batch and
on how the batch is cut to fit the memory. This one depends on the round's secret and the step
alone: removing a patient changes no other's network, every engine sees the same one, and all
processes draw the same bits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class StepDropout(nn.Module):
    """Sets features to 0 in training and scales the rest up; the mask stays until redrawn.

    At first nothing is set to 0. In eval mode nothing ever is.

    Args:
        width: F, number of features.
        share: of the features that are set to 0, on average; 0 <= share < 1.
    """

    scale: torch.Tensor  # (F,) 0 or 1 / (1 - share)

    def __init__(self, width: int, *, share: float = 0.5) -> None:
        super().__init__()
        self.share = share
        self.register_buffer("scale", torch.ones(width), persistent=False)

    def redraw(self, generator: np.random.Generator) -> None:
        """Draw another mask."""
        kept = generator.random(len(self.scale)) >= self.share
        self.scale = torch.from_numpy(kept / (1 - self.share)).to(self.scale)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, ..., F) -> (B, ..., F)."""
        return features * self.scale if self.training else features


def redraw_dropout(module: nn.Module, generator: np.random.Generator) -> None:
    """Give every dropout of `module` the mask of the next step; nothing where it has none.

    Args:
        generator: a stream of the round's secret for this step, from which nothing else is drawn.
    """
    for layer in module.modules():
        if isinstance(layer, StepDropout):
            layer.redraw(generator)

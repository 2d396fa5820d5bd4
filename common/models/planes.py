"""Volumes through any 2D backbone: features a slice, pooled a plane, planes fused late.

After MRNet (Bien et al., PLOS Medicine 2018): each slice goes through the backbone, a plane's
slices become one vector, each plane says something by itself, and a last layer weighs the planes.
Unlike there, one backbone serves all planes and slices: a third of the parameters, and under
privacy each parameter costs noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

Pooling = Literal["max", "attention"]


class SliceEncoder(nn.Module):
    """A 2D backbone on each slice; a slice whose pixels are all equal gets features of 0.

    That is how empty slices are known from here on: they fill up short volumes and carry nothing.

    Args:
        backbone: pictures (N, 1, H, W) -> features (N, F), each from its own picture alone.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.is_frozen = not any(parameter.requires_grad for parameter in backbone.parameters())

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """Features (B, planes, slices, F) of volumes (B, planes, slices, H, W)."""
        if self.is_frozen:
            # One after another: the memory of one, and not even last bits depend on neighbours.
            return torch.cat([self._features(volume[None]) for volume in volumes])
        return self._features(volumes)

    def _features(self, volumes: torch.Tensor) -> torch.Tensor:
        slices = volumes.flatten(0, 2)  # (N, H, W), a volume's slices consecutive
        lowest, highest = slices.flatten(1).aminmax(dim=1)  # (N,)
        features = self.backbone(slices.unsqueeze(1))  # (N, 1, H, W) -> (N, F)
        kept = torch.where((lowest < highest).unsqueeze(1), features, 0.0)
        return kept.view(*volumes.shape[:3], -1)  # (B, planes, slices, F)


class PlanesHead(nn.Module):
    """Pooling over slices, logits a plane, and a learned mean of the planes' logits.

    Args:
        classifiers: one for each plane, all of the same number of features F and of classes.
        pooling: max, by how much each feature's largest value is above its mean over the slices
            (of a single slice, its value): what stands out, without what all exams have in common,
            beside which a head learns little from few exams;
            attention, learned weights of the slices (Ilse et al., ICML 2018, arXiv:1802.04712, with
            a linear score), at first the mean.
    """

    def __init__(self, classifiers: Sequence[nn.Linear], *, pooling: Pooling) -> None:
        super().__init__()
        planes, classes = len(classifiers), classifiers[0].out_features
        self.planes = nn.ModuleList(classifiers)
        self.score: nn.Linear | None = None
        if pooling == "attention":
            self.score = nn.Linear(classifiers[0].in_features, 1, bias=False)
            nn.init.zeros_(self.score.weight)
        self.fusion = nn.Linear(planes * classes, classes)
        with torch.no_grad():
            self.fusion.weight.copy_(torch.eye(classes).repeat(1, planes) / planes)
            self.fusion.bias.zero_()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of features (B, planes, slices, F); slices of zeros are left out."""
        filled = features.ne(0).any(dim=3, keepdim=True)  # (B, planes, slices, 1)
        if self.score is None:
            least = torch.finfo(features.dtype).min
            largest = torch.where(filled, features, least).amax(dim=2)
            count = filled.sum(dim=2)  # (B, planes, 1)
            mean = features.sum(dim=2) / count.clamp(min=1)  # empty slices are 0
            above = largest - torch.where(count > 1, mean, 0.0)
            pooled = torch.where(count > 0, above, 0.0)  # (B, planes, F)
        else:
            scores = self.score(features).masked_fill(~filled, torch.finfo(features.dtype).min)
            pooled = (scores.softmax(dim=2) * features).sum(dim=2)  # (B, planes, F)
        logits = [plane(pooled[:, place]) for place, plane in enumerate(self.planes)]
        fused: torch.Tensor = self.fusion(torch.cat(logits, dim=1))  # (B, planes * classes)
        return fused

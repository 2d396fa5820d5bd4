"""The published lung network's own shape."""

from __future__ import annotations

import torch
from torch import nn

from common.models import Shape, build_model
from common.models.cnn_li2014 import CnnLi2014


def test_it_has_the_published_layers() -> None:
    """At 32 px: 16 kernels of 7x7, 169 values a map after pooling, then 100, 50 and 5 neurons."""
    model = build_model("cnn-li2014", Shape(5, 1, 32), seed=1)
    shapes = [
        tuple(layer.weight.shape)
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    assert shapes == [(16, 1, 7, 7), (100, 16 * 169), (50, 100), (5, 50)]


def test_odd_sizes_are_pooled_down() -> None:
    """Any size from 8 px on gives 50 features."""
    for size in (8, 9, 15, 32, 33):
        network = CnnLi2014(channels=1, image_size_px=size)
        assert network(torch.rand(2, 1, size, size)).shape == (2, 50)

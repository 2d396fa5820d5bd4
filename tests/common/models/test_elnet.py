"""The knee network's own parts: the blur before halving, and that it learns from few pixels."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from common.models import Shape, build_model
from common.models.elnet import Elnet, _halved


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (7, 5), (3, 2)])
def test_halving_is_a_blur_and_every_second_pixel(size: tuple[int, int]) -> None:
    """Equal to a convolution with [1 2 1] x [1 2 1] / 16 of stride 2, edges repeated."""
    maps = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    line = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = torch.outer(line, line).expand(3, 1, 3, 3)
    padded = functional.pad(maps, (1, 1, 1, 1), mode="replicate")
    blurred = functional.conv2d(padded, kernel, groups=3)[:, :, ::2, ::2]
    expected = blurred[:, :, : size[0] // 2, : size[1] // 2]
    assert torch.allclose(_halved(maps), expected, atol=1e-6)
    assert torch.allclose(_halved(torch.ones(1, 1, *size)), torch.ones(()))


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_features_have_a_scale_of_their_own(scale: float) -> None:
    """However bright pictures are, a head starts with features of 1 or so each."""
    torch.manual_seed(0)
    network = Elnet(channels=1)
    pictures = torch.randn(4, 1, 96, 96, generator=torch.Generator().manual_seed(0)) * scale
    sizes = network(pictures).square().mean(dim=1).sqrt()
    assert ((sizes > 0.3) & (sizes < 4)).all()


def test_a_finding_is_not_measured_against_its_slice() -> None:
    """What the last widening finds reaches the head at its own size: twice the find, twice that."""
    torch.manual_seed(0)
    network = Elnet(channels=1)
    for parameter in network.blocks[-1].parameters():
        parameter.data.zero_()  # only what goes past the last block
    pictures = torch.randn(4, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    once = network(pictures)
    network.widenings[-1].weight.data *= 2
    assert once.max() > 0
    assert torch.allclose(network(pictures), 2 * once)


def test_it_learns_a_spot_in_one_slice() -> None:
    """Some steps of SGD tell new volumes with a bright spot somewhere from those without."""
    generator = torch.Generator().manual_seed(0)
    exams = torch.rand(96, 1, 3, 32, 32, generator=generator) - 0.5
    labels = torch.arange(96) % 2
    for exam in range(1, 96, 2):
        row, column = torch.randint(0, 22, (2,), generator=generator).tolist()
        exams[exam, 0, exam % 3, row : row + 10, column : column + 10] += 1
    model = build_model("elnet-like", Shape(2, 1, 32, planes=1, slices=3), seed=1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for step in range(96):
        rows = torch.arange(8) + 8 * (step % 8)
        optimizer.zero_grad()
        functional.cross_entropy(model(exams[rows]), labels[rows]).backward()
        optimizer.step()
    right = (model(exams[64:]).argmax(1) == labels[64:]).float().mean()
    assert float(right) >= 0.9

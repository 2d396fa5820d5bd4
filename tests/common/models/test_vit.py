"""The transformer's own parts: patches, tokens, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.errors import BadInput
from common.models.vit import Vit


def vit(image_size_px: int, patch_px: int | None = None, channels: int = 1) -> Vit:
    """A narrow one, which is built at once."""
    torch.manual_seed(0)
    return Vit(channels=channels, image_size_px=image_size_px, patch_px=patch_px, width=12, heads=3)


def test_patches_are_embedded_as_by_a_convolution() -> None:
    """What the paper writes as a convolution whose stride is its kernel, for colour too."""
    network = vit(24, 8, channels=3)
    seen: list[torch.Tensor] = []
    network.class_token.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pictures = torch.randn(2, 3, 24, 24)
    network(pictures)
    kernel = network.embed.weight.view(12, 3, 8, 8)
    maps = nn.functional.conv2d(pictures, kernel, network.embed.bias, stride=8)  # (B, E, 3, 3)
    assert torch.allclose(seen[0], maps.flatten(2).transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize(
    ("image_size_px", "patch_px", "tokens"),
    [(16, None, 5), (32, None, 17), (120, None, 226), (128, None, 65), (32, 16, 5), (30, 5, 37)],
)
def test_there_is_a_token_a_patch_and_one_for_the_class(
    image_size_px: int, patch_px: int | None, tokens: int
) -> None:
    """Patches of 8 px below 128 px, of 16 px from there on, or as asked for."""
    network = vit(image_size_px, patch_px)
    assert network.position.embedding.shape == (tokens, 12)
    assert network(torch.zeros(1, 1, image_size_px, image_size_px)).shape == (1, 12)


@pytest.mark.parametrize(
    ("image_size_px", "patch_px", "used_px"), [(36, None, 8), (32, 32, 32), (32, 5, 5), (8, 8, 8)]
)
def test_patches_that_do_not_fit_are_refused(
    image_size_px: int, patch_px: int | None, used_px: int
) -> None:
    """Cut-off edges or a single token: both keys and both sizes are named."""
    with pytest.raises(BadInput) as caught:
        vit(image_size_px, patch_px)
    said = str(caught.value)
    assert "data.image_size_px must be at least twice model.patch_px, and a multiple of it" in said
    assert f"images of {image_size_px} px and patches of {used_px} px" in said


def test_a_place_matters() -> None:
    """The same patches in other places are another picture."""
    network = vit(16)
    picture = torch.randn(1, 1, 16, 16)
    assert not torch.allclose(network(picture), network(picture.roll(8, dims=2)), atol=1e-4)


def test_a_block_normalises_before_it_mixes() -> None:
    """Pre-norm: with attention and dense layers at 0, tokens pass as they are."""
    block = vit(16).blocks[0]
    for layer in (block.attention.out, block.dense[-1]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    tokens = torch.randn(2, 5, 12) * 100
    assert torch.equal(block(tokens), tokens)

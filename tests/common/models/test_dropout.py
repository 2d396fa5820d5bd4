"""Dropout whose mask is a step's: drawn from outside, the same for all, gone in evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from common.models import Shape, build_model, pack, redraw_dropout, trained_layout
from common.models.dropout import StepDropout


def test_nothing_is_dropped_until_a_mask_is_drawn_nor_in_evaluation() -> None:
    """Fresh, and in eval mode, features pass as they are."""
    layer, features = StepDropout(8), torch.randn(3, 8)
    assert torch.equal(layer.train()(features), features)
    redraw_dropout(layer, np.random.default_rng(0))
    assert not torch.equal(layer(features), features)
    assert torch.equal(layer.eval()(features), features)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_the_share_is_dropped_and_the_mean_stays(share: float) -> None:
    """Of many features this share becomes 0, and the others are scaled up for it."""
    layer = StepDropout(20_000, share=share).train()
    redraw_dropout(layer, np.random.default_rng(1))
    passed = layer(torch.ones(1, 20_000))
    assert float((passed == 0).float().mean()) == pytest.approx(share, abs=0.015)
    assert float(passed.mean()) == pytest.approx(1, abs=0.1)


def test_all_images_of_a_step_meet_the_same_mask() -> None:
    """Whoever else is in the batch, and however it is cut, an image's features are the same."""
    layer = StepDropout(50).train()
    redraw_dropout(layer, np.random.default_rng(2))
    features = torch.randn(6, 3, 50)
    together = layer(features)
    assert torch.equal(together[2:], torch.cat([layer(features[2:4]), layer(features[4:])]))


def test_a_stream_gives_the_masks_of_a_whole_model() -> None:
    """Equal streams give equal masks, every layer its own, and the next draw others."""
    model = nn.Sequential(StepDropout(40), nn.Sequential(StepDropout(40)))
    streams = [np.random.default_rng(3), np.random.default_rng(3)]
    drawn = []
    for stream in streams:
        redraw_dropout(model, stream)
        drawn.append([layer.scale for layer in model.modules() if isinstance(layer, StepDropout)])
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))
    assert not torch.equal(*drawn[0])
    redraw_dropout(model, streams[0])
    assert not torch.equal(model[0].scale, drawn[0][0])


def test_masks_are_no_part_of_what_is_sent_or_stored() -> None:
    """Neither weights nor state hold them, and torch's own randomness isn't touched."""
    model = build_model("cnn-li2014", Shape(2, 1, 32), seed=1)
    before, state = pack(model), torch.get_rng_state()
    redraw_dropout(model, np.random.default_rng(4))
    assert np.array_equal(pack(model), before)
    assert set(model.state_dict()) == set(trained_layout(model).names)
    assert torch.equal(torch.get_rng_state(), state)

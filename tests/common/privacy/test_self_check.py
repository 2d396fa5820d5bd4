"""The check before a study: passes where the engine is right, and notices where it isn't."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import RunFailed
from common.models import Shape, build_model
from common.privacy import bookkeeping
from common.privacy.patient_sgd import Engine
from common.privacy.self_check import check_engine


def one_label(outputs: Tensor, targets: Tensor) -> Tensor:
    """(B, K), (B,) -> (B,)."""
    return functional.cross_entropy(outputs, targets, reduction="none")


def several_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """(B, K), (B, K) -> (B,)."""
    wrong = functional.binary_cross_entropy_with_logits
    return wrong(outputs, targets.to(outputs), reduction="none").mean(1)


def checked(name: str = "cnn-small", *, engine: Engine = "fast", planes: int = 0) -> nn.Module:
    """Run the check on a fresh model; returns the model."""
    shape = Shape(3, 1, 32, planes, 2 if planes else 0)
    module = build_model(name, shape, seed=1).train()
    loss: Callable[[Tensor, Tensor], Tensor] = several_labels if planes else one_label
    check_engine(
        module,
        input_shape=(planes, 2, 32, 32) if planes else (1, 32, 32),
        classes=3,
        loss=loss,
        multi_label=bool(planes),
        engine=engine,
        max_images_at_once=100,
        device=torch.device("cpu"),
    )
    return module


@pytest.mark.parametrize("engine", ["fast", "opacus", "plain"])
@pytest.mark.parametrize("planes", [0, 3])
def test_a_right_engine_passes(engine: Engine, planes: int) -> None:
    """On pictures of one label and volumes of several."""
    checked(engine=engine, planes=planes)


@pytest.mark.parametrize("name", ["vit-tiny", "resnet18", "cnn-li2014", "elnet-like"])
def test_models_pass(name: str) -> None:
    """Those of the registry that are quick to check."""
    checked(name)


def test_weights_and_random_state_stay() -> None:
    """Training after the check is training without it."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fresh = build_model("cnn-small", Shape(3, 1, 32), seed=1).state_dict()
    state = checked().state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[key], fresh[key]) for key in fresh)


def no_clip(_squares: Tensor, _max_grad_norm: float) -> Tensor:
    """Nobody is clipped."""
    return torch.ones_like(_squares)


def half(squares: Tensor, max_grad_norm: float) -> Tensor:
    """Norms too large by a thousandth."""
    return (max_grad_norm / squares.sqrt() / 1.001).clamp(max=1)


@pytest.mark.parametrize("broken", [no_clip, half])
def test_wrong_clipping_is_refused(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the engine and the way out."""
    monkeypatch.setattr(bookkeeping, "clip_factors", broken)
    with pytest.raises(RunFailed, match=r"engine: fast gives wrong.*Set privacy\.engine to opacus"):
        checked()


def test_a_wrong_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a gradient."""
    rule = bookkeeping.RULES[nn.Linear]
    wrong = bookkeeping.Rule(rule.small, rule.inputs, lambda gradients: rule.outputs(gradients) / 2)
    monkeypatch.setitem(bookkeeping.RULES, nn.Linear, wrong)
    with pytest.raises(RunFailed, match="fast gives wrong"):
        checked()

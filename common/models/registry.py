"""The models that fedward trains: a new one is one file beside this and one line in `MODELS`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from common.config import CHANNELS, Study
from common.errors import BadInput
from common.models.cnn_small import CnnSmall
from common.models.frozen_efficientnet_lite0 import FrozenEfficientNetLite0


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model is built for: images (channels, image_size_px, image_size_px), some classes."""

    classes: int
    channels: int
    image_size_px: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the registry."""

    build: Callable[[Shape], nn.Module]
    smallest_image_px: int


MODELS: dict[str, Entry] = {
    "cnn-small": Entry(
        lambda shape: CnnSmall(classes=shape.classes, channels=shape.channels),
        smallest_image_px=8,
    ),
    "frozen-efficientnet-lite0": Entry(
        lambda shape: FrozenEfficientNetLite0(classes=shape.classes), smallest_image_px=32
    ),
}


def build_model(name: str, shape: Shape, *, seed: int) -> nn.Module:
    """A fresh model with its initial weights drawn from the study's public seed.

    Raises:
        BadInput: an unknown name or images too small for it.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.3)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise BadInput(f"model.name must be one of {', '.join(MODELS)}; got {name}.{meant}")
    entry = MODELS[name]
    if shape.image_size_px < entry.smallest_image_px:
        raise BadInput(
            f"data.image_size_px must be at least {entry.smallest_image_px} for model {name}; "
            f"got {shape.image_size_px}. Raise it in the study."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return entry.build(shape)


def study_model(study: Study) -> nn.Module:
    """The model that a study trains, with the initial weights of its seed."""
    shape = Shape(len(study.classes), CHANNELS, study.data.image_size_px)
    return build_model(study.model.name, shape, seed=study.seed)


def trained_part(model: nn.Module) -> nn.Module:
    """The part of a model that is trained: its head under a frozen encoder, or all of it."""
    frozen = frozen_encoder(model)
    return model if frozen is None else frozen[1]


def frozen_encoder(model: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """A model's frozen encoder and trained head, or None when the whole model is trained."""
    encoder, head = getattr(model, "encoder", None), getattr(model, "head", None)
    if not isinstance(encoder, nn.Module) or not isinstance(head, nn.Module):
        return None
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        return None
    return encoder, head

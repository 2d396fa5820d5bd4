"""The models that fedward trains: a new one is one file beside this and one line in `MODELS`.

What it is for and what it costs is one line more, in `common/catalogue.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from common.catalogue import CATALOGUE
from common.config import CHANNELS, Study
from common.errors import BadInput
from common.models import cnn_li2014, cnn_small, elnet, frozen_efficientnet_lite0, resnet, vit
from common.models.classifier import Classifier
from common.models.planes import PlanesHead, Pooling, SliceEncoder


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model is built for: pictures or volumes, and some classes.

    Pictures are (channels, image_size_px, image_size_px). With `planes` >= 1, images are volumes
    (planes, slices, image_size_px, image_size_px) of grey slices. `patch_px` is for transformers
    only; None: as `vit.py` says.
    """

    classes: int
    channels: int
    image_size_px: int
    planes: int = 0
    slices: int = 0
    patch_px: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the registry: a backbone of pictures, which volumes go through slice by slice."""

    build: Callable[[Shape], nn.Module]  # (B, channels, px, px) -> (B, features)
    features: int
    has_patches: bool = False


def _resnet(kind: Literal[18, 50], features: int) -> Entry:
    def build(shape: Shape) -> nn.Module:
        return resnet.ResNet(kind, channels=shape.channels, image_size_px=shape.image_size_px)

    return Entry(build, features)


def _vit(width: int, heads: int) -> Entry:
    def build(shape: Shape) -> nn.Module:
        return vit.Vit(
            channels=shape.channels,
            image_size_px=shape.image_size_px,
            patch_px=shape.patch_px,
            width=width,
            heads=heads,
        )

    return Entry(build, features=width, has_patches=True)


MODELS: dict[str, Entry] = {
    "cnn-small": Entry(lambda s: cnn_small.CnnSmall(channels=s.channels), cnn_small.FEATURES),
    "elnet-like": Entry(lambda s: elnet.Elnet(channels=s.channels), elnet.FEATURES),
    "frozen-efficientnet-lite0": Entry(
        lambda _: frozen_efficientnet_lite0.FrozenEfficientNetLite0(),
        frozen_efficientnet_lite0.FEATURES,
    ),
    "cnn-li2014": Entry(
        lambda s: cnn_li2014.CnnLi2014(channels=s.channels, image_size_px=s.image_size_px),
        cnn_li2014.FEATURES,
    ),
    "resnet18": _resnet(18, features=512),
    "resnet50": _resnet(50, features=2048),
    "vit-tiny": _vit(width=192, heads=3),
    "vit-small": _vit(width=384, heads=6),
    "vit-base": _vit(width=768, heads=12),
}


def build_model(name: str, shape: Shape, *, seed: int, pooling: Pooling = "max") -> Classifier:
    """A fresh model with its initial weights drawn from the study's public seed.

    Args:
        name: a key of `MODELS`.
        shape: what it takes and how many logits it gives.
        seed: >= 0.
        pooling: how a volume's slices become one; pictures have none.

    Raises:
        BadInput: an unknown name, images too small for it, or patches that don't fit.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.3)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise BadInput(f"model.name must be one of {', '.join(MODELS)}; got {name}.{meant}")
    entry, smallest = MODELS[name], CATALOGUE[name].smallest_image_px
    if shape.image_size_px < smallest:
        raise BadInput(
            f"data.image_size_px must be at least {smallest} for model {name}; "
            f"got {shape.image_size_px}. Raise it in the study."
        )
    if shape.patch_px is not None and not entry.has_patches:
        raise BadInput(
            f"model.patch_px must be left out for model {name}, which has no patches; "
            f"got {shape.patch_px}. Remove it from the study."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _assemble(entry, shape, pooling)


def _assemble(entry: Entry, shape: Shape, pooling: Pooling) -> Classifier:
    backbone = entry.build(shape)
    is_frozen = not any(parameter.requires_grad for parameter in backbone.parameters())

    def linear() -> nn.Linear:
        layer = nn.Linear(entry.features, shape.classes)
        if is_frozen:  # a convex problem: any start will do, and this one says nothing
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        return layer

    if shape.planes == 0:
        return Classifier(backbone, linear(), feature_shape=(entry.features,))
    head = PlanesHead([linear() for _ in range(shape.planes)], pooling=pooling)
    feature_shape = (shape.planes, shape.slices, entry.features)
    return Classifier(SliceEncoder(backbone), head, feature_shape=feature_shape)


def study_model(study: Study) -> Classifier:
    """The model that a study trains, with the initial weights of its seed."""
    data = study.data
    shape = Shape(
        len(study.classes),
        CHANNELS,
        data.image_size_px,
        planes=data.planes,
        slices=data.slices or 0,
        patch_px=study.model.patch_px,
    )
    return build_model(study.model.name, shape, seed=study.seed, pooling=study.model.pooling)


def trained_part(model: nn.Module) -> nn.Module:
    """The part of a model that is trained: its head under a frozen encoder, or all of it."""
    frozen = frozen_encoder(model)
    return model if frozen is None else frozen[1]


def frozen_encoder(model: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """A model's frozen encoder and trained head, or None when the whole model is trained.

    Encoder and head meet in features (B, *feature_shape(model)), which may be stored.
    """
    if not isinstance(model, Classifier):
        return None
    if any(parameter.requires_grad for parameter in model.encoder.parameters()):
        return None
    return model.encoder, model.head


def feature_shape(model: Classifier) -> tuple[int, ...]:
    """The shape of one image's features: (F,), or (planes, slices, F) of a volume."""
    return model.feature_shape

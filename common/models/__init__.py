"""Networks, their weights as one array, and their files: `from common.models import load`."""

from common.models.classifier import Classifier
from common.models.dropout import redraw_dropout
from common.models.files import ModelCard, load, read_card, save
from common.models.registry import (
    MODELS,
    Shape,
    build_model,
    feature_shape,
    frozen_encoder,
    study_model,
    trained_part,
)
from common.models.weights import Layout, pack, trained_layout, unpack, weights_sha256

__all__ = [
    "MODELS",
    "Classifier",
    "Layout",
    "ModelCard",
    "Shape",
    "build_model",
    "feature_shape",
    "frozen_encoder",
    "load",
    "pack",
    "read_card",
    "redraw_dropout",
    "save",
    "study_model",
    "trained_layout",
    "trained_part",
    "unpack",
    "weights_sha256",
]

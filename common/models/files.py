"""Model files: safetensors with a card that says what the model is and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors
from torch import nn

from common.config import CHANNELS, Study, parse_json
from common.errors import BadInput
from common.files import write_atomically
from common.models.registry import study_model
from common.models.weights import trained_layout, unpack, weights_sha256

FORMAT = "fedward-model-1"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Where a model comes from; the study says what it takes and gives."""

    study: Study
    fold: int  # 0: the study has one split
    weights_sha256: str
    privacy: Mapping[str, Any]  # `sentence` for people; without privacy nothing else


def save(
    path: Path,
    flat: NDArray[np.float32],
    *,
    study: Study,
    fold: int,
    privacy: Mapping[str, Any],
) -> ModelCard:
    """Write a model file atomically: either the whole new file is there or the old one.

    Args:
        flat: the trained weights (size,), in the order of the study's model.
        study: what the model was trained for.
        fold: 0 when the study has one split.
        privacy: what is promised to the patients it was trained on: `sentence`, and the epsilon
            with all that it depends on where there is one.
    """
    layout = trained_layout(study_model(study))
    digest = weights_sha256(flat, layout)
    intensity = study.data.intensity
    metadata = {
        "format": FORMAT,
        "study": study.canonical(),
        "study_sha256": study.sha256,
        "fold": str(fold),
        "weights_sha256": digest,
        "privacy": json.dumps(dict(privacy), sort_keys=True),
        # For readers that don't know fedward; all of it is in the study.
        "model": study.model.name,
        "classes": json.dumps(study.classes),
        "input": json.dumps(
            {
                "channels": CHANNELS,
                "size_px": study.data.image_size_px,
                "planes": study.data.planes,
                "slices": study.data.slices,
            }
        ),
        "intensity": json.dumps({"minus_one": intensity.low, "plus_one": intensity.high}),
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in layout.split(flat).items()}
    write_atomically(path, to_safetensors(arrays, metadata))
    return ModelCard(study, fold, digest, privacy)


def load(path: Path | str) -> nn.Module:
    """A model file as a plain `nn.Module` in eval mode; raises BadInput when it is none."""
    path = Path(path)
    card = read_card(path)
    model = study_model(card.study)
    layout = trained_layout(model)
    try:
        with safe_open(path, framework="np") as tensors:
            arrays = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 # no mapping
    except (OSError, SafetensorError, TypeError):  # TypeError: a dtype that numpy lacks
        raise BadInput(f"{path}: the weights can't be read; take an undamaged copy.") from None
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if shapes != dict(zip(layout.names, layout.shapes, strict=True)):
        raise BadInput(f"{path}: the weights are not those of the model that it names.")
    flat = np.concatenate([arrays[name].ravel() for name in layout.names])
    try:
        unpack(flat, model)
    except ValueError as error:
        raise BadInput(f"{path}: {error}; take an undamaged copy.") from None
    if weights_sha256(flat, layout) != card.weights_sha256:
        raise BadInput(f"{path}: the weights don't match their hash; take an undamaged copy.")
    return model.eval()


def read_card(path: Path | str) -> ModelCard:
    """The card of a model file; raises BadInput when the file is no fedward model."""
    path = Path(path)
    try:
        with safe_open(path, framework="np") as tensors:
            metadata = tensors.metadata() or {}
    except (OSError, SafetensorError):
        raise BadInput(
            f"{path}: expected a model file (.safetensors) that fedward wrote; it can't be read."
        ) from None
    if metadata.get("format") != FORMAT:
        raise BadInput(f"{path}: expected a model file of format {FORMAT}; name one from a run.")
    try:
        study = parse_json(Study, metadata["study"], where="study")
        if study.sha256 != metadata["study_sha256"]:
            raise ValueError
        return ModelCard(
            study=study,
            fold=int(metadata["fold"]),
            weights_sha256=metadata["weights_sha256"],
            privacy=dict(json.loads(metadata["privacy"])),
        )
    except (BadInput, KeyError, TypeError, ValueError):
        raise BadInput(f"{path}: its card is damaged; take an undamaged copy.") from None

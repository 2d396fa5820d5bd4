"""A model's class probabilities for images; the same function everywhere that a model is scored."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.cohort import Cohort, Stored
from common.config import Study
from common.metrics import Predictions, point_metrics

BATCH = 256  # images at once, of at most so many pixels together
BATCH_PIXELS = 2**22


@torch.no_grad()
def predict(
    module: nn.Module,
    inputs: Stored,
    rows: NDArray[np.int64],
    *,
    multi_label: bool,
    device: torch.device,
) -> NDArray[np.float64]:
    """Probabilities (len(rows), classes) of some of `inputs`.

    Args:
        module: gives logits (B, classes) for a batch of `inputs`; moved to `device`.
        inputs: images or frozen features.
        rows: which of them.
        multi_label: each class has a probability of its own; else they sum to 1.
    """
    module = module.to(device).eval()
    pieces = []
    size = max(1, min(BATCH, BATCH_PIXELS // math.prod(inputs.shape)))
    for start in range(0, len(rows), size):
        logits = module(inputs.rows(rows[start : start + size]).to(device)).double()
        probabilities = logits.sigmoid() if multi_label else logits.softmax(dim=1)
        pieces.append(probabilities.cpu().numpy())
    if not pieces:
        return np.zeros((0, 0))
    return np.concatenate(pieces)


def predict_cohort(
    module: nn.Module,
    cohort: Cohort,
    rows: NDArray[np.int64],
    *,
    study: Study,
    device: torch.device,
) -> Predictions:
    """What a model says about some images of a site, with whose they are."""
    data = cohort.dataset
    multi_label = study.task == "multi-label"
    probabilities = predict(module, cohort.inputs, rows, multi_label=multi_label, device=device)
    return Predictions(
        labels=data.labels[rows],
        probabilities=probabilities.reshape(len(rows), len(study.classes)),
        patients=data.patients[rows],
        sites=np.full(len(rows), cohort.site.name),
        classes=study.classes,
        groups={name: values[rows] for name, values in data.groups.items()},
        unit=study.unit,
    )


def score(predictions: Predictions, *, wanted: Collection[str]) -> dict[str, float]:
    """The `wanted` metrics; what can't be estimated is left out."""
    said, labels = predictions.probabilities, predictions.labels
    if labels.ndim == 1:
        chosen = said[np.arange(len(labels)), labels]
    else:
        chosen = np.where(labels == 1, said, 1 - said)
    loss = {"loss": -float(np.log(np.clip(chosen, 1e-12, 1)).mean())} if len(predictions) else {}
    values = point_metrics(predictions) | loss
    return {name: value for name in wanted if (value := values.get(name)) is not None}

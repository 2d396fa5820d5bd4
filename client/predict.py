"""A model's class probabilities for images; the same function everywhere that a model is scored."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.cohort import Cohort
from common.metrics import Predictions, point_metrics

BATCH = 256


@torch.no_grad()
def predict(
    module: nn.Module, inputs: NDArray[np.float32], rows: NDArray[np.int64], device: torch.device
) -> NDArray[np.float64]:
    """Probabilities (len(rows), classes) of `inputs[rows]`.

    Args:
        module: gives logits (B, classes) for a batch of `inputs`; moved to `device`.
        inputs: (N, ...) images or frozen features, possibly memory-mapped.
        rows: which of them.
    """
    module = module.to(device).eval()
    pieces = []
    for start in range(0, len(rows), BATCH):
        batch = torch.from_numpy(np.array(inputs[rows[start : start + BATCH]])).to(device)
        pieces.append(module(batch).double().softmax(dim=1).cpu().numpy())
    if not pieces:
        return np.zeros((0, 0))
    return np.concatenate(pieces)


def predict_cohort(
    module: nn.Module,
    cohort: Cohort,
    rows: NDArray[np.int64],
    *,
    classes: tuple[str, ...],
    device: torch.device,
) -> Predictions:
    """What a model says about some images of a site, with whose they are."""
    data = cohort.dataset
    probabilities = predict(module, cohort.inputs, rows, device)
    return Predictions(
        labels=data.labels[rows],
        probabilities=probabilities.reshape(len(rows), len(classes)),
        patients=data.patients[rows],
        sites=np.full(len(rows), cohort.site.name),
        classes=classes,
        groups={name: values[rows] for name, values in data.groups.items()},
    )


def score(predictions: Predictions, *, wanted: Collection[str]) -> dict[str, float]:
    """The `wanted` metrics; what can't be estimated is left out."""
    chosen = predictions.probabilities[np.arange(len(predictions)), predictions.labels]
    loss = {"loss": -float(np.log(np.clip(chosen, 1e-12, 1)).mean())} if len(predictions) else {}
    values = point_metrics(predictions) | loss
    return {name: value for name in wanted if (value := values.get(name)) is not None}

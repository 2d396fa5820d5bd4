"""Which model is right when: each architecture on the ILD phantom, without and with privacy.

110 phantom patients at 5 hospitals, three seeds (each draws other patients and other initial
weights), the same number of rounds for all. Learning rates were chosen on seed 0, among two to five
values for the small models and one or two for `resnet18` and `vit-tiny`. What is done stays in
`runs/benchmark-models`: a run that was stopped is gone on with, so delete the folder to measure
anew. One process a core.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import simulations
from common.config import Study, load_study
from common.models import study_model, trained_layout
from simulations.arms import FEDERATED

SEEDS = (3, 4, 5)  # 0, 1 and 2 served to choose the phantom's constants and the learning rates
EPSILONS = (None, 8, 3)  # per patient, over the whole study; None: without privacy
LEARNING_RATES: Mapping[str, tuple[float, float]] = {  # without and with privacy
    "cnn-small": (0.01, 0.1),
    "cnn-li2014": (0.02, 0.3),
    "resnet18": (0.005, 0.05),
    "vit-tiny": (0.005, 0.05),
    "frozen-efficientnet-lite0": (0.05, 1.0),
}
# Patches side by side instead of half over one another: a third of the images.
SHARED = ("data.stride_px=32", "training.rounds=15")
STUDY = Path(__file__).parents[1] / "studies" / "ild.yaml"
FOLDER = Path("runs") / "benchmark-models"


def measure() -> dict[str, object]:
    """A line for each model and privacy: macro AUROC with its t interval, seconds, bytes."""
    cases = [
        (model, epsilon, seed)
        for seed in SEEDS  # so that a run that is stopped has whole tables of fewer seeds
        for model in LEARNING_RATES
        for epsilon in EPSILONS
    ]
    context = multiprocessing.get_context("spawn")  # torch doesn't survive a fork
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        found = dict(zip(cases, pool.map(_run, *zip(*cases, strict=True)), strict=True))
    return {
        model: {
            "parameters": trained_layout(study_model(_study(model, None, SEEDS[0]))).size,
            **{
                _privacy(epsilon): _summary([found[model, epsilon, seed] for seed in SEEDS])
                for epsilon in EPSILONS
            },
        }
        for model in LEARNING_RATES
    }


def _run(model: str, epsilon: int | None, seed: int) -> dict[str, Any]:
    """One run's numbers; from its file where it was run before."""
    study = _study(model, epsilon, seed)
    out = FOLDER / f"{model}-{_privacy(epsilon)}-{seed}".replace(" ", "-")
    path = out / "result.json"
    if not path.is_file():
        simulations.run(study, out=out, baselines=False, resume=(out / "study.yaml").is_file())
    result = json.loads(path.read_text())
    if result["study_sha256"] != study.sha256:
        raise ValueError(f"{out} holds another study's run; delete {FOLDER}.")
    return dict(result)


def _study(model: str, epsilon: int | None, seed: int) -> Study:
    plain, private = LEARNING_RATES[model]
    changes = [
        *SHARED,
        f"model.name={model}",
        f"seed={seed}",
        f"simulation.phantom.seed={seed}",
        f"training.learning_rate={plain}",
        f"privacy.learning_rate={private}",
    ]
    if epsilon is not None:
        changes += ["privacy.enabled=true", f"privacy.target_epsilon={epsilon}"]
    return load_study(STUDY, changes)


def _privacy(epsilon: int | None) -> str:
    return "no privacy" if epsilon is None else f"epsilon {epsilon}"


def _summary(results: list[dict[str, Any]]) -> dict[str, object]:
    aurocs = [r["evaluation"][FEDERATED]["all"]["macro_auroc"]["value"] for r in results]
    low, high = stats.t.interval(
        0.95, len(aurocs) - 1, loc=np.mean(aurocs), scale=stats.sem(aurocs)
    )
    return {
        "macro_auroc": round(float(np.mean(aurocs)), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "seconds": round(float(np.mean([r["seconds"] for r in results])), 1),
        "bytes_up": round(np.mean([r["bytes_up"] for r in results])),
    }

"""How hard the ILD phantom is: what a federation can gain on it, and what must come out as nothing.

Without privacy, over seeds that draw other patients and other initial weights:
- all hospitals' data in one place against the best single hospital, on all test patients;
- exchangeable hospitals of equal size: the federated model against the central one;
- labels permuted among a hospital's images: every model must guess.
Beside it the same study with privacy, as it comes out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats

import simulations
from client.cohort import Cohort
from client.predict import predict_cohort
from common.compute import settle
from common.config import Study, load_study
from common.metrics import Predictions, concatenate, evaluate
from common.models import study_model, trained_part, unpack
from simulations.arms import CENTRAL, CENTRAL_PRIVATE, FEDERATED, Arm, train_arm
from simulations.runner import open_cohorts
from simulations.sites import simulated_sites

SEEDS = (3, 4, 5, 6, 7)  # 0, 1 and 2 served to choose the phantom's constants
STUDY = Path(__file__).parents[1] / "studies" / "ild.yaml"


def measure() -> dict[str, object]:
    """Macro AUROC: means over the seeds with 95 % t intervals, by patients for the permutation."""
    settle()
    shifted = [_aurocs(seed) for seed in SEEDS]
    equal = [_aurocs(seed, "simulation.phantom.shift=0", _EQUAL) for seed in SEEDS]
    best_local = [max(v for name, v in found.items() if "local" in name) for found in shifted]
    private = [_aurocs(seed, "privacy.enabled=true") for seed in SEEDS]
    permuted = evaluate(_permuted(_study(SEEDS[0])), seed=SEEDS[0])["macro_auroc"]
    return {
        "seeds": len(SEEDS),
        "central": _interval([found[CENTRAL] for found in shifted]),
        "federated": _interval([found[FEDERATED] for found in shifted]),
        "best local": _interval(best_local),
        "central - best local": _interval(
            [found[CENTRAL] - best for found, best in zip(shifted, best_local, strict=True)]
        ),
        "equal hospitals: federated - central": _interval(
            [found[FEDERATED] - found[CENTRAL] for found in equal]
        ),
        "permuted labels: central": permuted.as_json(),
        "epsilon 8 per patient: federated": _interval([found[FEDERATED] for found in private]),
        "epsilon 8 per patient: central-private": _interval(
            [found[CENTRAL_PRIVATE] for found in private]
        ),
    }


_EQUAL = "simulation.phantom.equal_sizes=true"


def _study(seed: int, *changes: str) -> Study:
    return load_study(STUDY, [f"seed={seed}", f"simulation.phantom.seed={seed}", *changes])


def _aurocs(seed: int, *changes: str) -> dict[str, float]:
    """Each model's macro AUROC on all hospitals' test patients, from a whole simulated run."""
    with tempfile.TemporaryDirectory() as folder:
        result = simulations.run(_study(seed, *changes), out=Path(folder) / "run")
    found = {name: by_data["all"]["macro_auroc"] for name, by_data in result.evaluation.items()}
    return {name: auroc.value for name, auroc in found.items() if auroc.value is not None}


def _permuted(study: Study) -> Predictions:
    """What the central model says when the labels of each hospital's images are shuffled."""
    generator = np.random.default_rng(study.seed)
    cohorts = {
        name: _shuffled(cohort, generator)
        for name, cohort in open_cohorts(study, simulated_sites(study)).items()
    }
    arm = Arm(CENTRAL, tuple(cohorts), private=False)
    device = torch.device("cpu")
    model = study_model(study)
    unpack(train_arm(study, 0, arm, cohorts, device), model)
    return concatenate(_tested(trained_part(model), cohorts, study, device))


def _tested(
    module: torch.nn.Module, cohorts: Mapping[str, Cohort], study: Study, device: torch.device
) -> list[Predictions]:
    return [
        predict_cohort(module, cohort, cohort.test_rows(0), classes=study.classes, device=device)
        for cohort in cohorts.values()
    ]


def _shuffled(cohort: Cohort, generator: np.random.Generator) -> Cohort:
    labels = generator.permutation(cohort.dataset.labels)
    return replace(cohort, dataset=replace(cohort.dataset, labels=labels))


def _interval(values: list[float]) -> dict[str, float]:
    """Mean over seeds with its 95 % t interval."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return {"value": round(mean, 4), "low": round(float(low), 4), "high": round(float(high), 4)}

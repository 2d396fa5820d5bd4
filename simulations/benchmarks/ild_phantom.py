"""How hard the ILD phantom is: what a federation can gain on it, and what must come out as nothing.

Without privacy, over seeds that draw other patients and other initial weights:
- all hospitals' data in one place against the best single hospital, on all test patients;
- exchangeable hospitals of equal size: the federated model against the central one;
- labels permuted over all images: every model must guess.
Beside it the same study with privacy, as it comes out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats

import simulations
from client.cohort import Cohort
from common.compute import settle
from common.config import Study, load_study
from common.metrics import evaluate, point_metrics
from simulations.arms import CENTRAL, CENTRAL_PRIVATE, FEDERATED
from simulations.benchmarks.central import central_predictions
from simulations.runner import open_cohorts
from simulations.sites import simulated_sites

SEEDS = (3, 4, 5, 6, 7)  # 0, 1 and 2 served to choose the phantom's constants
STUDY = Path(__file__).parents[1] / "studies" / "ild.yaml"
EXCHANGEABLE = ("simulation.phantom.shift=0", "simulation.phantom.equal_sizes=true")


def measure() -> dict[str, object]:
    """Macro AUROC: means over the seeds with 95 % t intervals, by patients where it is one run."""
    settle()
    return {"seeds": len(SEEDS)} | shifted() | exchangeable() | permuted() | private()


def shifted() -> dict[str, object]:
    """The study as it is: what a hospital alone lacks."""
    found = [_run(_study(seed)) for seed in SEEDS]
    central, federated = ([aurocs[name] for aurocs in found] for name in (CENTRAL, FEDERATED))
    local = [max(v for name, v in aurocs.items() if name.startswith("local:")) for aurocs in found]
    return {
        "central": _interval(central),
        "federated": _interval(federated),
        "best local": _interval(local),
        "central - best local": _interval(_minus(central, local)),
    }


def exchangeable() -> dict[str, object]:
    """Hospitals without shift and of equal size."""
    federated, central = [], []
    for seed in SEEDS:
        study = _study(seed, *EXCHANGEABLE)
        federated.append(_run(study, baselines=False)[FEDERATED])
        central.append(_central(study, _cohorts(study)))
    return {
        "equal hospitals: central": _interval(central),
        "equal hospitals: federated - central": _interval(_minus(federated, central)),
    }


def permuted() -> dict[str, object]:
    """Labels shuffled over all hospitals (within one, its class mix would still be learnt)."""
    study = _study(SEEDS[0])
    cohorts = _cohorts(study)
    labels = np.concatenate([cohort.dataset.labels for cohort in cohorts.values()])
    shuffled = iter(np.random.default_rng(study.seed).permutation(labels))
    for name, cohort in cohorts.items():
        drawn = np.fromiter(shuffled, dtype=np.int64, count=len(cohort.dataset.labels))
        cohorts[name] = replace(cohort, dataset=replace(cohort.dataset, labels=drawn))
    found = evaluate(central_predictions(study, cohorts), seed=study.seed)["macro_auroc"]
    return {"permuted labels: central": found.as_json()}


def private() -> dict[str, object]:
    """One run at epsilon 8 per patient, as it comes out, with intervals by patients."""
    study = _study(SEEDS[0], "privacy.enabled=true")
    with tempfile.TemporaryDirectory() as folder:
        result = simulations.run(study, out=Path(folder) / "run")
    return {
        f"epsilon 8 per patient: {name}": by_data["all"]["macro_auroc"].as_json()
        for name, by_data in result.evaluation.items()
        if name in (FEDERATED, CENTRAL_PRIVATE, CENTRAL)
    }


def _study(seed: int, *changes: str) -> Study:
    return load_study(STUDY, [f"seed={seed}", f"simulation.phantom.seed={seed}", *changes])


def _run(study: Study, *, baselines: bool = True) -> dict[str, float]:
    """Each model's macro AUROC on all hospitals' test patients, from a whole simulated run."""
    with tempfile.TemporaryDirectory() as folder:
        result = simulations.run(study, out=Path(folder) / "run", baselines=baselines)
    found = {name: by_data["all"]["macro_auroc"] for name, by_data in result.evaluation.items()}
    return {name: auroc.value for name, auroc in found.items() if auroc.value is not None}


def _cohorts(study: Study) -> dict[str, Cohort]:
    return open_cohorts(study, simulated_sites(study))


def _central(study: Study, cohorts: Mapping[str, Cohort]) -> float:
    value = point_metrics(central_predictions(study, cohorts))["macro_auroc"]
    assert value is not None  # every class has test patients
    return value


def _minus(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _interval(values: list[float]) -> dict[str, float]:
    """Mean over seeds with its 95 % t interval."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return {"value": round(mean, 4), "low": round(float(low), 4), "high": round(float(high), 4)}

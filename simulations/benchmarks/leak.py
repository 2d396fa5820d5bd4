"""What folds that split patients would pretend: patch-random against patient-disjoint folds.

Half-overlapping patches of one region share pixels, and patches of one patient share a scanner, a
lung and a disease. Folds drawn over patches test on what was trained on; folds over patients don't.
The same patches, network and steps, trained centrally on the ILD phantom.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from common.compute import settle
from common.config import load_study
from common.metrics import evaluate
from simulations.benchmarks.central import central_predictions
from simulations.runner import open_cohorts
from simulations.sites import simulated_sites

FOLDS = 5
STUDY = Path(__file__).parents[1] / "studies" / "ild.yaml"


def measure() -> dict[str, object]:
    """Macro AUROC of both kinds of folds with intervals by patients, and their difference."""
    settle()
    study = load_study(STUDY, [f"data.folds={FOLDS}", "training.rounds=15"])
    cohorts = open_cohorts(study, simulated_sites(study))
    generator = np.random.default_rng(study.seed)
    leaking = {
        name: replace(cohort, tested_in=generator.permutation(len(cohort.tested_in)) % FOLDS)
        for name, cohort in cohorts.items()
    }
    honest = central_predictions(study, cohorts)
    leaky = central_predictions(study, leaking)
    return {
        "folds": FOLDS,
        "patient-disjoint folds": evaluate(honest, seed=study.seed)["macro_auroc"].as_json(),
        "patch-random folds": evaluate(leaky, seed=study.seed)["macro_auroc"].as_json(),
    }

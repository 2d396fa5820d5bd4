"""How hard the MRNet phantom is: AUROC per label of a central model, and of what must not suffice.

Without privacy, patient-disjoint folds, all hospitals' exams in one place:
- `elnet-like` on three planes;
- one number for each plane (mean, standard deviation, number of slices) and a logistic regression;
- the same network on permuted labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from client.cohort import Cohort
from common.compute import settle
from common.config import Study, load_study
from common.data.readers import build_reader
from common.data.source import Image
from common.metrics import Predictions, evaluate
from simulations.benchmarks.central import central_predictions
from simulations.runner import open_cohorts
from simulations.sites import simulated_sites

SEED = 3  # 0, 1 and 2 served to choose the phantom's constants
FOLDS = 3
# A central step takes an exam of each hospital; larger steps than the study's go with it.
TRAINING = ("training.rounds=30", "training.learning_rate=0.05")
STUDY = Path(__file__).parents[1] / "studies" / "mrnet.yaml"
FEATURES = {
    "mean": lambda plane: plane.mean(),
    "standard deviation": lambda plane: plane.std(),
    "number of slices": len,
}


def measure() -> dict[str, object]:
    """AUROC per label, with 95 % intervals by exams."""
    settle()
    changes = [f"seed={SEED}", f"simulation.phantom.seed={SEED}", f"data.folds={FOLDS}", *TRAINING]
    study = load_study(STUDY, changes)
    cohorts = open_cohorts(study, simulated_sites(study))
    exams = [(image.planes, image.label) for image in _images(study)]
    labels = np.array([label for _, label in exams])  # (N, K)
    by_feature = {
        name: np.array([[of(plane) for plane in planes] for planes, _ in exams])  # (N, planes)
        for name, of in FEATURES.items()
    }
    return {
        "exams": len(exams),
        "folds": FOLDS,
        study.model.name: _aurocs(study, central_predictions(study, cohorts)),
        "permuted labels": _aurocs(study, central_predictions(study, _permuted(study, cohorts))),
        **{name: _one_number(study, x, labels) for name, x in by_feature.items()},
    }


def _permuted(study: Study, cohorts: Mapping[str, Cohort]) -> dict[str, Cohort]:
    """Labels shuffled over all hospitals' exams."""
    labels = np.concatenate([cohort.dataset.labels for cohort in cohorts.values()])
    shuffled = np.random.default_rng(study.seed).permutation(labels)
    parts = np.split(shuffled, np.cumsum([len(c.dataset.labels) for c in cohorts.values()])[:-1])
    return {
        name: replace(cohort, dataset=replace(cohort.dataset, labels=part))
        for (name, cohort), part in zip(cohorts.items(), parts, strict=True)
    }


def _images(study: Study) -> Iterator[Image]:
    """Every hospital's exams as the reader gives them, before any preprocessing."""
    for site in simulated_sites(study).values():
        assert site.data is not None  # a simulated site has data
        reader = build_reader(study, site)
        for source in reader.find(site.data, study.classes):
            yield from reader.decode(source)


def _one_number(
    study: Study, numbers: NDArray[np.float64], labels: NDArray[np.int64]
) -> dict[str, float]:
    """AUROC per label of a logistic regression on one number for each plane, over folds."""
    model = make_pipeline(StandardScaler(), LogisticRegression())
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=study.seed)
    found = {}
    for column, name in enumerate(study.classes):
        label = labels[:, column]
        said = cross_val_predict(model, numbers, label, cv=folds, method="predict_proba")[:, 1]
        found[name] = round(float(roc_auc_score(label, said)), 4)
    return found


def _aurocs(study: Study, predictions: Predictions) -> dict[str, object]:
    found = evaluate(predictions, seed=study.seed)
    return {name: found[f"auroc:{name}"].as_json() for name in study.classes}

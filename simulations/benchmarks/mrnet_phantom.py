"""How hard the MRNet phantom is: AUROC per label of a central model, and of what must not suffice.

Without privacy, patient-disjoint folds, all hospitals' exams in one place:
- `elnet-like` on three planes;
- one number for each plane (mean, standard deviation, number of slices) and a logistic regression;
- the same network on permuted labels, of the first seed.
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

SEEDS = (6,)  # 0 to 5 served to choose the constants of phantom, network and training
FOLDS = 3
# More exams and rounds than the study's, until the lesions show: of 200 exams only some 40 have a
# torn ligament. A central step takes an exam of each hospital.
CHANGES = (
    "simulation.phantom.exams=300",
    "training.rounds=30",
    "training.learning_rate=0.02",
    f"data.folds={FOLDS}",
)
STUDY = Path(__file__).parents[1] / "studies" / "mrnet.yaml"
FEATURES = {
    "mean": lambda plane: plane.mean(),
    "standard deviation": lambda plane: plane.std(),
    "number of slices": len,
}


def measure() -> dict[str, object]:
    """AUROC per label, with 95 % intervals by exams."""
    settle()
    found: dict[str, object] = {f"seed {seed}": one_seed(seed) for seed in SEEDS}
    return found | {f"seed {SEEDS[0]}, permuted labels": permuted(SEEDS[0])}


def one_seed(seed: int) -> dict[str, object]:
    """The network and every single number, on the exams that this seed draws."""
    study = _study(seed)
    said = [
        (image.label, [[of(plane) for plane in image.planes] for of in FEATURES.values()])
        for image in _images(study)
    ]
    labels = np.array([label for label, _ in said])  # (N, K)
    numbers = np.array([own for _, own in said], dtype=float)  # (N, features, planes)
    return {
        "exams": len(labels),
        "folds": FOLDS,
        study.model.name: _aurocs(study, central_predictions(study, _cohorts(study))),
        **{
            name: _one_number(study, numbers[:, place], labels)
            for place, name in enumerate(FEATURES)
        },
    }


def permuted(seed: int) -> dict[str, object]:
    """The network where labels say nothing of the exams."""
    study = _study(seed)
    return _aurocs(study, central_predictions(study, _permuted(study, _cohorts(study))))


def _study(seed: int) -> Study:
    return load_study(STUDY, (f"seed={seed}", f"simulation.phantom.seed={seed}", *CHANGES))


def _cohorts(study: Study) -> dict[str, Cohort]:
    return open_cohorts(study, simulated_sites(study))


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

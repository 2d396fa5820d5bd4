"""One model on all hospitals' training patients, and what it says of all their test patients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from client.cohort import Cohort
from client.predict import predict_cohort
from common.config import Study
from common.metrics import Predictions, concatenate
from common.models import study_model, trained_part, unpack
from simulations.arms import CENTRAL, Arm, train_arm
from simulations.folder import legs


def central_predictions(study: Study, cohorts: Mapping[str, Cohort]) -> Predictions:
    """Train centrally, once for each fold, and predict every test image once."""
    device = torch.device("cpu")
    arm = Arm(CENTRAL, tuple(cohorts), private=False)
    parts = []
    for fold in (leg.fold for leg in legs(study, Path())):
        model = study_model(study)
        unpack(train_arm(study, fold, arm, cohorts, device), model)
        module = trained_part(model)
        parts += [
            predict_cohort(module, cohort, cohort.test_rows(fold), study=study, device=device)
            for cohort in cohorts.values()
        ]
    return concatenate(parts)

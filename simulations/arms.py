"""What the federated model is compared with: one model on all data, one model a hospital.

Fairly: the same network and initial weights, the same local training, the same number of passes
over the training patients. A central step takes as many images as the sites' steps together, so
that all arms make the same number of optimizer steps (on average, where sites differ in size);
under privacy every arm takes the study's public number of noised steps. Learning rates are the
study's: one without privacy, one with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from client.cohort import Cohort, Examples, Stored
from client.training import privacy_plan, train_plain, train_private
from common.config import Study
from common.errors import RunFailed
from common.models import pack, study_model, trained_layout, trained_part, weights_sha256
from common.privacy.randomness import RoundSecret

FEDERATED, CENTRAL, CENTRAL_PRIVATE = "federated", "central", "central-private"


@dataclass(frozen=True, slots=True)
class Arm:
    """One model to train besides the federated one."""

    name: str  # as the results name it
    sites: tuple[str, ...]  # whose training patients it sees
    private: bool

    @property
    def file_name(self) -> str:
        """Where its model is kept, below a leg's `baselines/`."""
        return f"{self.name.replace(':', '-')}.safetensors"


def arms(study: Study, sites: tuple[str, ...]) -> tuple[Arm, ...]:
    """The arms of a study; `local` never leaves a hospital and so needs no noise."""
    central = [Arm(CENTRAL, sites, private=False)]
    if study.privacy.enabled:
        central.append(Arm(CENTRAL_PRIVATE, sites, private=True))
    return (*central, *(Arm(f"local:{site}", (site,), private=False) for site in sites))


def train_arm(
    study: Study, fold: int, arm: Arm, cohorts: Mapping[str, Cohort], device: torch.device
) -> NDArray[np.float32]:
    """The weights (size,) of an arm after all rounds: a federation with one site."""
    chosen = [cohorts[site] for site in arm.sites]
    examples = _pooled([cohort.examples(fold) for cohort in chosen])
    fingerprint = hashlib.sha256(" ".join(c.dataset.fingerprint for c in chosen).encode())
    model = study_model(study)
    module, layout = trained_part(model), trained_layout(model)
    for round_number in range(1, study.training.rounds + 1):
        secret = RoundSecret.seeded(
            study.seed,
            study_hash=study.sha256,
            fold=fold,
            round_number=round_number,
            weights_sha256=weights_sha256(pack(model), layout),
            data_fingerprint=fingerprint.hexdigest(),
        )
        if arm.private:
            declared = sum(cohort.site.declared(study.privacy.unit) or 0 for cohort in chosen)
            plan = privacy_plan(study, declared=declared)
            train_private(module, examples, study, plan=plan, secret=secret, device=device)
        else:
            size = study.training.batch_size * len(chosen)
            train_plain(module, examples, study, batch_size=size, secret=secret, device=device)
    weights = pack(model)
    if not np.isfinite(weights).all():
        key = "privacy.learning_rate" if arm.private else "training.learning_rate"
        raise RunFailed(
            f"{arm.name} diverged: its weights are not finite. Lower {key} and start a new run."
        )
    return weights


def _pooled(parts: list[Examples]) -> Examples:
    """The training sides of several sites as one; no image is copied."""
    starts = np.cumsum([0, *(len(part.inputs) for part in parts)])
    return Examples(
        inputs=Stored(tuple(array for part in parts for array in part.inputs.parts)),
        labels=np.concatenate([part.labels for part in parts]),
        patients=np.concatenate([part.patients for part in parts]),
        rows=np.concatenate([part.rows + at for part, at in zip(parts, starts, strict=False)]),
    )

"""What a run found, as result.json, report.html and the table on the terminal."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from client.cohort import Cohort
from common.config import Study
from common.errors import RefusalCode
from common.metrics import POOLED, Evaluation, Predictions, compare, evaluate_by_site
from common.models import ModelCard
from common.privacy.epsilon import Unit
from common.privacy.not_covered import not_covered
from common.report.content import HEADLINE, Comparison, DataLabel
from simulations.arms import FEDERATED
from simulations.partition import Partition
from simulations.statements import (
    GUARANTEE,
    all_folds_epsilon,
    epsilon_of,
)

RESAMPLES = 1000
# Refusals after which a round may have been paid for; all others come before.
_PAID = {
    RefusalCode.DIVERGED,
    RefusalCode.INTERNAL,
    RefusalCode.RECORDS_DAMAGED,
    RefusalCode.ROUND_ASKED_AGAIN,
}
_FREE = {code.value for code in RefusalCode} - {code.value for code in _PAID}
_PACKAGES = ("fedward", "flwr", "torch", "torchvision", "opacus", "numpy", "pydicom", "grpcio")


@dataclass(frozen=True, slots=True)
class RunResult:
    """All that a run found; `as_json` is what `result.json` holds."""

    study: Study
    engine: str
    data_label: DataLabel
    device: str
    seconds: float
    weights_sha256: str
    bytes_up: int
    bytes_down: int
    versions: Mapping[str, str]
    sites: Mapping[str, Mapping[str, Any]]
    predictions: Mapping[str, Predictions]  # by model
    evaluation: Mapping[str, Mapping[str, Evaluation]]  # model, data
    comparisons: tuple[Comparison, ...]
    histories: tuple[Sequence[Mapping[str, Any]], ...]  # one a fold
    partition: Partition | None  # None: the sites are the data's own

    def as_json(self) -> dict[str, Any]:
        """The content of `result.json`."""
        study = self.study
        return {
            "format": 1,
            "study": study.name,
            "study_sha256": study.sha256,
            "data": self.data_label,
            "task": study.task,
            "unit": study.unit,
            "model": study.model.name,
            "engine": self.engine,
            "rounds": study.training.rounds,
            "folds": study.data.folds,
            "seed": study.seed,
            "weights_sha256": self.weights_sha256,
            "seconds": round(self.seconds, 1),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "versions": dict(self.versions),
            "device": self.device,
            "privacy": self.privacy(),
            "partition": self.partition.as_json() if self.partition else None,
            "sites": {name: dict(site) for name, site in self.sites.items()},
            "evaluation": {
                model: {
                    data: {metric: estimate.as_json() for metric, estimate in metrics.items()}
                    for data, metrics in by_data.items()
                }
                for model, by_data in self.evaluation.items()
            },
            "comparisons": [
                {
                    "model": comparison.first,
                    "minus": comparison.second,
                    "data": comparison.data,
                    "metric": comparison.metric,
                    **comparison.difference.as_json(),
                }
                for comparison in self.comparisons
            ],
        }

    def privacy(self) -> dict[str, Any]:
        """What is promised to whom, with everything that it depends on."""
        settings = self.study.privacy
        if not settings.enabled:
            return {
                "enabled": False,
                "unit": None,
                "adjacency": None,
                "trust_model": None,
                "guarantee": "none (trained without differential privacy)",
                "not_covered": ["everything: the weights may hold what they were trained on"],
            }
        first = next(iter(self.sites.values()))["statement"]
        return {
            "enabled": True,
            "unit": settings.unit,
            "adjacency": first["adjacency"],
            "trust_model": first["trust_model"],
            "guarantee": GUARANTEE,
            "target_epsilon": settings.target_epsilon,
            "target_delta": settings.target_delta,
            "not_covered": list(not_covered(Unit(settings.unit))),
        }


def versions() -> dict[str, str]:
    """Of Python and of the packages that the numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def summarise(
    study: Study,
    *,
    predictions: Mapping[str, Predictions],
    histories: Sequence[Sequence[Mapping[str, Any]]],
    cards: Sequence[ModelCard],
    cohorts: Mapping[str, Cohort],
    data_label: DataLabel,
    engine: str,
    device: torch.device,
    seconds: float,
    partition: Partition | None = None,
) -> RunResult:
    """Evaluate all models on every site's test patients and gather what the run was.

    Args:
        predictions: what each model says of the test images, in the same order for all.
        histories: the rounds of each fold.
        cards: the federated model's card of each fold.
        cohorts: the sites' data.
        seconds: how long the run took.
        partition: how the data were divided among the sites; None: they are the data's own.
    """
    federated = predictions[FEDERATED]
    return RunResult(
        study=study,
        engine=engine,
        data_label=data_label,
        device=str(device),
        seconds=seconds,
        weights_sha256=_joint_hash([card.weights_sha256 for card in cards]),
        bytes_up=sum(line["bytes_up"] for lines in histories for line in lines),
        bytes_down=sum(line["bytes_down"] for lines in histories for line in lines),
        versions=versions(),
        sites={name: _site(study, cohort, histories) for name, cohort in cohorts.items()},
        predictions=predictions,
        evaluation={
            name: evaluate_by_site(found, seed=study.seed, resamples=RESAMPLES)
            for name, found in predictions.items()
        },
        comparisons=tuple(
            Comparison(
                FEDERATED,
                name,
                POOLED,
                HEADLINE,
                compare(federated, other, metric=HEADLINE, seed=study.seed),
            )
            for name, other in predictions.items()
            if name != FEDERATED
        ),
        histories=tuple(histories),
        partition=partition,
    )


def _site(
    study: Study, cohort: Cohort, histories: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    joined = [
        sum(cohort.site.name in line.get("joined", ()) for line in lines) for lines in histories
    ]
    # Of the fold with the most rounds: the folds are models of their own. Every round in which the
    # site was asked counts, since the server may have seen a reply that it then left out; but not
    # where it refused before it drew any noise.
    asked = max(
        sum(_may_have_cost(line, cohort.site.name) for line in lines) for lines in histories
    )
    epsilon = epsilon_of(study, cohort.site, rounds=asked)
    together = all_folds_epsilon(study, cohort.site)
    return {
        "epsilon": epsilon.value if epsilon else None,
        "delta": epsilon.delta if epsilon else None,
        "statement": epsilon.as_json() if epsilon else None,
        "all_folds_statement": together.as_json() if together else None,
        "rounds_joined": joined[0] if len(joined) == 1 else joined,
        "declared_patients": cohort.site.declared_patients,
        "patients": len(set(cohort.dataset.patients.tolist())),
        "images": len(cohort.dataset.labels),
    }


def _may_have_cost(line: Mapping[str, Any], site: str) -> bool:
    """Whether a site may have answered, or paid for, a round of the history."""
    refused = str(line["left_out"].get(site, "")).partition(":")[0]
    return not line.get("closing") and refused not in _FREE


def _joint_hash(hashes: Sequence[str]) -> str:
    """The one model's hash, or a hash over the folds' in order."""
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()

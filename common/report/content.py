"""What a report says, as plain typed values: nothing is shown that was not put in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.metrics import Estimate, Evaluation, Unit

DataLabel = Literal["phantom", "scaled phantom", "real"]
Task = Literal["multi-class", "multi-label"]
EvaluationByModel = Mapping[str, Mapping[str, Evaluation]]  # model -> data -> metric -> estimate

HEADLINE = "macro_auroc"

# What a resample keeps at each site.
STRATUM: dict[Task, str] = {"multi-class": "class", "multi-label": "combination of labels"}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What was run, with what, and how to check it."""

    study: str
    engine: str
    seed: int
    rounds: int
    device: str
    seconds: float
    versions: Mapping[str, str]  # package -> version
    hashes: Mapping[str, str]  # study, data, weights_sha256, ... -> hex digest


@dataclass(frozen=True, slots=True)
class PrivacyStatement:
    """All that must stand beside an epsilon; without privacy `guarantee` says so."""

    enabled: bool
    guarantee: str
    unit: str
    delta: str
    adjacency: str
    trust_model: str
    randomness: str  # where sampling and noise came from
    together: str  # what the models of all folds cost together, in a sentence; "" without folds
    not_covered: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SiteRow:
    """One site; None where its policy does not release the number."""

    name: str
    patients: int | None  # or exams: the report's unit
    images: int | None
    rounds_joined: int | None
    epsilon: str  # such as "7.98", "none" or "infinite"; never without the privacy statement


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much higher `metric` is for `first` than for `second` on the same images."""

    first: str
    second: str
    data: str
    metric: str
    difference: Estimate


@dataclass(frozen=True, slots=True)
class ReportInput:
    """One report; the first model of `evaluation` is the one that the summary speaks of."""

    title: str
    run: RunFacts
    data_label: DataLabel
    data_description: str
    privacy: PrivacyStatement
    partition: str  # the table of how the data were divided among sites; empty: as they came
    sites: tuple[SiteRow, ...]
    task: Task
    unit: Unit  # what is drawn and counted; exams where the data don't say whose they are
    classes: tuple[str, ...]
    evaluation: EvaluationByModel
    resamples: int  # of units, behind each interval
    comparisons: tuple[Comparison, ...]
    confusion: Mapping[str, NDArray[np.integer[Any]]]  # model -> `confusion_matrix`, all sites
    history: Mapping[int, Mapping[str, float]]  # round -> site -> value
    history_caption: str  # which metric, which model, on whose patients
    not_run: tuple[str, ...]
    limitations: tuple[str, ...]

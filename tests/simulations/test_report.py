"""What a run over exams says, on the terminal, in result.json and on its page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.config import MrnetData, PartitionConfig, Study
from common.errors import BadInput
from common.metrics import Predictions
from common.models import pack, save, study_model
from common.privacy.epsilon import Unit
from common.privacy.not_covered import not_covered
from common.report import render_report
from simulations.evaluate import evaluate_models
from simulations.partition import Patient, partition
from simulations.report import intervals, limitations, report_input, text
from simulations.result import RunResult, summarise

LABELS = ("abnormal", "acl", "meniscus")


@pytest.fixture
def result() -> RunResult:
    """A run over 80 exams of two hospitals, summarised from what its model says of them."""
    random = np.random.default_rng(0)
    labels = random.integers(2, size=(80, 3))
    said = Predictions(
        labels=labels,
        probabilities=random.random((80, 3)) * 0.7 + labels * 0.3,
        patients=np.arange(80),
        sites=np.repeat(["north", "south"], 40),
        classes=LABELS,
        unit="exam",
    )
    study = Study(task="multi-label", classes=LABELS, data=MrnetData())
    patients = [
        Patient(str(n), images=1, positives=dict(zip(LABELS, row, strict=True)))
        for n, row in enumerate(labels.tolist())
    ]
    return summarise(
        study,
        predictions={"federated": said, "central": said},
        histories=[[{"round": 1, "metrics": {}, "bytes_up": 1, "bytes_down": 1}]],
        cards=(),
        cohorts={},
        data_label="phantom",
        engine="inline",
        device=torch.device("cpu"),
        seconds=1.0,
        partition=partition(patients, PartitionConfig(by="labels", sites=2)),
    )


def test_the_terminal_speaks_of_exams_and_of_each_label(result: RunResult) -> None:
    """Beside the mean each label has its AUROC, and what was resampled is called by its name."""
    printed = text(result)
    assert "Macro AUROC on the test exams of each site" in printed
    assert "by resampling exams within site and combination of labels" in printed
    header = printed[printed.index("AUROC of each label") :].splitlines()[2].split()
    assert header == list(LABELS)
    assert "patient" not in printed
    assert {said.unit for said in result.predictions.values()} == {"exam"}


def test_the_json_says_task_unit_and_division(result: RunResult) -> None:
    """A program learns what was counted, and how the data were divided among the sites."""
    found = result.as_json()
    assert (found["task"], found["unit"]) == ("multi-label", "exam")
    assert set(found["partition"]) == {"rule", "sites", "skew"}
    assert found["evaluation"]["federated"]["all"]["specificity:acl"]["low"] is not None


def test_the_learning_curve_ends_with_the_last_round(result: RunResult) -> None:
    """A round's sites score the weights they are sent, those of the round before."""
    losses = [1.5, 1.0, 0.5]
    lines: list[dict[str, Any]] = [
        {"round": number, "metrics": {"north": {"loss": loss}}}
        for number, loss in zip((1, 2, 2), losses, strict=True)
    ]
    lines[-1]["closing"] = True
    told = report_input(replace(result, histories=[lines]))
    assert told.history == {0: {"north": 1.5}, 1: {"north": 1.0}, 2: {"north": 0.5}}
    assert "after each round (0: untrained)" in told.history_caption


def test_the_page_says_whose_exams_are_unknown(result: RunResult) -> None:
    """The page counts exams, shows the division, and says that a patient may have several."""
    given = report_input(result)
    assert (given.task, given.unit) == ("multi-label", "exam")
    assert given.confusion["federated"].shape == (3, 2, 2)
    assert given.data_description.startswith("mrnet data, 0 exams at 0 sites, one split by exam")
    page = render_report(given)
    assert "which exams are of one patient" in page
    assert "Class mix:" in page
    assert "all exams come from the sites that trained" in page


def test_exams_are_the_unit_only_where_patients_are_unknown() -> None:
    """An MRNet study counts exams, with or without privacy; every other one patients."""
    exams = Study(task="multi-label", classes=LABELS, data=MrnetData())
    assert exams.privacy.unit == "patient"  # not asked for: there is no privacy
    assert exams.unit == "exam"
    patients: dict[str, Any] = {"classes": ["a", "b"], "data": {"kind": "manifest"}}
    assert Study.model_validate(patients | {"task": "multi-label"}).unit == "patient"


def test_words_of_a_multi_class_run_of_patients() -> None:
    """Patients of a class are drawn together; their promises say nothing of exams."""
    assert intervals("patient", "multi-class").endswith("patients within site and class.")
    assert "below 10 patients of a class none is given" in limitations("patient", "multi-class")[0]
    assert "Several images of a patient" in limitations("patient", "multi-class")[1]
    assert not [line for line in not_covered(Unit.PATIENT) if "exam" in line]
    assert not_covered(Unit.EXAM)[:-1] == not_covered(Unit.PATIENT)
    assert "several exams" in not_covered(Unit.EXAM)[-1]


def test_a_model_of_three_planes_needs_their_trees(tmp_path: Path) -> None:
    """A manifest names one volume an image, so it can't feed a model of three."""
    study = Study.model_validate(
        {
            "task": "multi-label",
            "classes": LABELS,
            "data": {"kind": "mrnet", "image_size_px": 32, "slices": 4},
            "model": {"name": "elnet-like"},
        }
    )
    path = tmp_path / "model.safetensors"
    save(path, pack(study_model(study)), study=study, fold=0, privacy={"sentence": "none"})
    (tmp_path / "manifest.csv").write_text("path,patient\n")
    with pytest.raises(BadInput, match=r"folder of mrnet trees was expected.*several volumes"):
        evaluate_models([path], data=tmp_path / "manifest.csv")

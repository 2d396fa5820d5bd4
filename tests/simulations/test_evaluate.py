"""Scoring what came out: the run's own numbers again, other data, and what may not be mixed."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import simulations
from client.cohort import Cohort, open_cohort
from common.compute import find_device
from common.config import (
    IldData,
    ManifestData,
    MrnetData,
    Privacy,
    Simulation,
    Study,
    load_site,
    load_study,
)
from common.errors import BadData, BadInput
from common.models import pack, save, study_model
from simulations.evaluate import (
    ALL_PATIENTS,
    OTHER_SITES,
    OWN_TEST,
    TEST_PATIENTS,
    TEST_SIDE,
    TODAYS_SPLIT,
    UNKNOWN_SPLIT,
    _rows,
    _with_data,
    evaluate_models,
    text,
    write,
)
from simulations.sites import simulated_sites


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[..., Path]) -> Path:
    """A folder with a finished run over folds, in `run`; wrong labels forbid a perfect score."""
    clear = write_tiny(tmp_path_factory.mktemp("folds") / "clear")
    folder = clear.with_name("tiny")
    with_column(clear, folder, "batch", lambda line: str(line % 16 // 2))
    table = (folder / "manifest.csv").read_text().replace(",bright,M,3", ",dark,M,3")
    (folder / "manifest.csv").write_text(table.replace(",dark,F,0", ",bright,F,0"))
    shutil.copy(clear / "study.yaml", folder)
    study = load_study(folder / "study.yaml", ["data.folds=2", "training.rounds=1", "seed=5"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulations.runner.write_report", lambda path, _content: path.touch())
        simulations.run(study, out=folder / "run", baselines=False)
    return folder


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[..., Path]) -> Path:
    """A folder with a finished multi-label run, in `run`: an image is bright, marked or both."""
    folder = write_tiny(tmp_path_factory.mktemp("labels") / "tiny", {"north": 40, "south": 40})
    with (folder / "manifest.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = [
            [
                line["path"],
                line["patient"],
                line["site"],
                int(line["label"] == "bright"),
                number % 6 // 3,
            ]
            for number, line in enumerate(lines)
        ]
        csv.writer(file).writerows([["path", "patient", "site", "bright", "marked"], *rows])
    # `marked` follows nothing, so whether the model ever sees it is chance: with this seed it does.
    changes = ["task=multi-label", "classes=[bright, marked]", "data.folds=2", "training.rounds=1"]
    changes.append("seed=2")
    study = load_study(folder / "study.yaml", changes)
    simulations.run(study, out=folder / "run", baselines=False)
    return folder


@pytest.fixture(params=["finished", "folds", "labels"])
def done(request: pytest.FixtureRequest) -> Path:
    """A finished run, with and without folds."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def own_numbers(folder: Path) -> dict[str, object]:
    """The federated evaluation that the run itself wrote."""
    numbers: dict[str, object] = json.loads((folder / "run" / "result.json").read_text())
    return numbers["evaluation"]["federated"]  # type: ignore[index,no-any-return]


def with_column(folder: Path, target: Path, name: str, values: Callable[[int], str]) -> Path:
    """A copy of the data whose manifest has one more column, by the line's number."""
    shutil.copytree(folder / "images", target / "images")
    with (folder / "manifest.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    with (target / "manifest.csv").open("w", newline="") as file:
        lines = [[*line, values(number)] for number, line in enumerate(lines)]
        csv.writer(file).writerows([[*header, name], *lines])
    return target / "manifest.csv"


@pytest.mark.parametrize("data", ["manifest.csv", "study.yaml", "run/study.yaml"])
def test_a_runs_own_numbers_come_out_again(done: Path, data: str) -> None:
    """Evaluating a run directory on its data gives its federated numbers, intervals included."""
    (scored,) = evaluate_models([done / "run"], data=done / data)
    assert scored.as_json()["evaluation"] == own_numbers(done)
    assert scored.who == TEST_PATIENTS.format(unit="patient")


def test_labels_are_scored_one_by_one(labels: Path, tmp_path: Path) -> None:
    """Of a multi-label run, numbers, terminal and page speak of each label against its absence."""
    (scored,) = evaluate_models([labels / "run"], data=labels / "manifest.csv")
    found = scored.as_json()
    assert (found["task"], found["unit"], found["patients"]) == ("multi-label", "patient", 80)
    assert np.sum(found["confusion_matrix"], axis=(1, 2)).tolist() == [160, 160]
    assert np.shape(found["confusion_matrix"]) == (2, 2, 2)
    assert found["evaluation"]["all"]["specificity:marked"]["low"] is not None
    printed = text([scored])
    assert "true positives" in printed
    assert "by resampling patients within site and combination of labels" in printed
    write(tmp_path, [scored])
    for page in (tmp_path / "report.html", labels / "run" / "report.html"):
        html = page.read_text()
        assert "AUROC of each label" in html
        assert "10 patients with and as many without each label" in html
    result = json.loads((labels / "run" / "result.json").read_text())
    assert (result["task"], result["unit"], result["partition"]) == ("multi-label", "patient", None)


def test_labels_and_classes_are_not_mixed(labels: Path, tmp_path: Path) -> None:
    """One table can't hold models whose classes have the same names but exclude each other."""
    study = load_study(labels / "run" / "study.yaml", ["task=multi-class"])
    path = tmp_path / "classes.safetensors"
    save(path, pack(study_model(study)), study=study, fold=0, privacy={"sentence": "none"})
    data = with_column(  # labelled for both tasks
        labels, tmp_path, "label", lambda line: "bright" if line % 2 else "marked"
    )
    with pytest.raises(BadInput, match=r"models of one task.*multi-label.*multi-class"):
        evaluate_models([labels / "run", path], data=data)


def test_intervals_are_among_those_numbers(folds: Path) -> None:
    """The run over folds has enough patients for intervals: they were compared, too."""
    assert own_numbers(folds)["all"]["macro_auroc"]["low"] is not None  # type: ignore[index]


def test_a_single_model_scores_everybody_and_says_so(finished: Path) -> None:
    """A model file can't tell whom it was trained on: all are scored, and the report says it."""
    (scored,) = evaluate_models(
        [finished / "run" / "model.safetensors"], data=finished / "manifest.csv"
    )
    assert (scored.patients, len(scored.predictions)) == (24, 48)
    assert scored.who == ALL_PATIENTS.format(unit="patient")
    assert scored.data_label == "real"


def test_figures_of_other_patients_are_not_to_be_compared(finished: Path) -> None:
    """A run's figures are of its test patients, a model file's of everybody: that is said."""
    data, run_dir = finished / "manifest.csv", finished / "run"
    run, file = evaluate_models([run_dir, run_dir / "model.safetensors"], data=data)
    assert run.tested < file.tested
    said = text([run, file]).splitlines()[-1]
    assert said.startswith("Not the same patients were scored for each of these models")
    assert f"({run.patients} patients for all of them)" in said
    assert "Not the same" not in text([run, run])


def test_a_site_file_scores_that_site(finished: Path, tmp_path: Path) -> None:
    """With a site.yaml only that hospital's patients are scored, without those who object."""
    (tmp_path / "site.yaml").write_text(
        f"name: north\ndata: {finished / 'manifest.csv'}\nexclude: [north-0]\n"
    )
    (scored,) = evaluate_models(
        [finished / "run" / "model.safetensors"], data=tmp_path / "site.yaml"
    )
    assert scored.patients == 7
    assert set(scored.predictions.sites) == {"north"}


def test_only_its_sites_know_whom_a_federation_tested(finished: Path, tmp_path: Path) -> None:
    """Where no split is kept, all are scored, and it says so; a site's keys tell its test side."""
    split = json.loads((finished / "run" / "sites" / "north" / "split.json").read_text())
    shutil.copytree(finished / "run", tmp_path / "run", ignore=shutil.ignore_patterns("sites"))
    (scored,) = evaluate_models([tmp_path / "run"], data=finished / "manifest.csv")
    assert (scored.patients, scored.who) == (24, UNKNOWN_SPLIT.format(unit="patient"))
    (tmp_path / "site.yaml").write_text(
        f"name: north\ndata: {finished / 'manifest.csv'}\nstate: state\n"
        "randomness: seeded-for-testing\n"  # whose patients' keys are those of a simulation
    )
    (scored,) = evaluate_models([tmp_path / "run"], data=tmp_path / "site.yaml")
    assert scored.who == TODAYS_SPLIT.format(unit="patient")
    assert set(scored.predictions.patients) == {key for key, part in split.items() if part == 0}


def federations(
    folder: Path, tmp_path: Path, changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path, dict[str, int]]:
    """A run whose split only its sites know, site.yaml of one, and what the split was there."""
    shutil.copytree(folder, tmp_path / "tiny", ignore=shutil.ignore_patterns("run"))
    monkeypatch.setattr("simulations.runner.write_report", lambda path, _content: path.touch())
    study = load_study(tmp_path / "tiny" / "study.yaml", ["training.rounds=1", *changes])
    run = tmp_path / "run"
    simulations.run(study, out=run, baselines=False)
    split: dict[str, int] = json.loads((run / "sites" / "north" / "split.json").read_text())
    shutil.rmtree(run / "sites")
    site = tmp_path / "site.yaml"
    site.write_text("name: north\ndata: tiny/manifest.csv\nstate: state\n")
    with site.open("a") as file:
        file.write("randomness: seeded-for-testing\n")
    return run, site, split


PRIVATE = ["privacy.enabled=true", "simulation.site_defaults.declared_patients=10"]


def test_under_privacy_a_site_keeps_its_test_side(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A patient who has left the data since moves nobody to the other side."""
    changes = ["data.test_share=0.5", *PRIVATE]
    run, site, split = federations(finished, tmp_path, changes, monkeypatch)
    tested = {key for key, part in split.items() if part == 0}
    assert len(tested) > 1
    site.write_text(f"{site.read_text()}exclude: [north-0]\n")
    (scored,) = evaluate_models([run], data=site)
    assert scored.who == OWN_TEST.format(unit="patient")
    assert set(scored.predictions.patients) == tested & still_there(run, site)


def still_there(run: Path, site: Path) -> set[str]:
    """The keys of the patients whom a site has today."""
    study = load_study(run / "study.yaml")
    cohort = open_cohort(load_site(site), study, find_device("cpu"))
    return set(cohort.names)


def test_a_federations_folds_are_its_sites_own(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of a site's patients is scored once, by the model that was not trained on them."""
    run, site, split = federations(finished, tmp_path, ["data.folds=2", *PRIVATE], monkeypatch)
    asked: dict[int, set[str]] = {}

    def rows(path: Path, fold: int, cohort: Cohort, *, own_keys: bool) -> NDArray[np.int64]:
        found = _rows(path, fold, cohort, own_keys=own_keys)
        asked[fold] = set(cohort.dataset.patients[found].tolist())
        return found

    monkeypatch.setattr("simulations.evaluate._rows", rows)
    (scored,) = evaluate_models([run], data=site)
    assert scored.who == OWN_TEST.format(unit="patient")
    for fold in (1, 2):
        assert asked[fold] == {key for key, part in split.items() if part == fold - 1}


def test_subgroups_are_scored_apart(finished: Path) -> None:
    """--by adds a row for each value of the column, which together are everybody."""
    (scored,) = evaluate_models([finished / "run"], data=finished / "manifest.csv", by=["sex"])
    assert {"sex:F", "sex:M"} <= set(scored.evaluation)
    with pytest.raises(BadInput, match="known: sex"):
        evaluate_models([finished / "run"], data=finished / "manifest.csv", by=["age"])


def test_a_split_column_says_who_is_scored(finished: Path, tmp_path: Path) -> None:
    """Of data with a `split` column a single model scores the test side only."""
    data = with_column(
        finished, tmp_path, "split", lambda line: "train" if line % 8 < 6 else "test"
    )
    (scored,) = evaluate_models([finished / "run" / "model.safetensors"], data=data)
    assert scored.patients == 6
    assert scored.who == TEST_SIDE.format(unit="patient")


def test_new_patients_are_scored_by_a_run_of_one_split(
    finished: Path, tmp_path: Path, write_tiny: Callable[..., Path]
) -> None:
    """Patients who weren't part of the run are nobody's training patients."""
    more = write_tiny(tmp_path / "more", {"north": 10, "south": 3})
    (scored,) = evaluate_models([finished / "run"], data=more / "manifest.csv")
    split = json.loads((finished / "run" / "sites" / "north" / "split.json").read_text())
    assert scored.patients == sum(part == 0 for part in split.values()) + 2 + 3
    said = (TEST_PATIENTS + OTHER_SITES).format(unit="patient", sites="south")
    assert scored.who == said


def test_a_divided_run_is_scored_on_its_test_patients(
    tmp_path: Path, write_tiny: Callable[..., Path]
) -> None:
    """The run's own division is made again: nobody whom its model saw passes for a stranger."""
    folder = write_tiny(tmp_path / "tiny")
    divided = ["simulation.partition.by=column", "simulation.partition.column=sex"]
    study = load_study(folder / "study.yaml", [*divided, "training.rounds=1"])
    run = simulations.run(study, out=folder / "run", baselines=False)
    (scored,) = evaluate_models([folder / "run"], data=folder / "manifest.csv")
    assert scored.predictions.site_names == ("F", "M")
    assert len(scored.predictions) == len(run.predictions["federated"]) < 48
    assert scored.who == TEST_PATIENTS.format(unit="patient")


def test_new_patients_belong_to_no_fold(
    folds: Path, tmp_path: Path, write_tiny: Callable[..., Path]
) -> None:
    """Of several fold models none is theirs; the sentence says how to score them."""
    more = write_tiny(tmp_path / "more", {"north": 10})
    with pytest.raises(BadInput, match=r"2 patients of site north.*name one model file"):
        evaluate_models([folds / "run"], data=more / "manifest.csv")
    (scored,) = evaluate_models(
        [folds / "run" / "folds" / "1" / "model.safetensors"], data=more / "manifest.csv"
    )
    assert scored.patients == 10


def test_a_model_of_other_classes_can_not_score_these_labels(
    finished: Path, tmp_path: Path
) -> None:
    """The labels of the data must be the model's classes."""
    study = load_study(finished / "study.yaml", ["classes=[cat, dog]"])
    path = tmp_path / "pets.safetensors"
    save(path, pack(study_model(study)), study=study, fold=0, privacy={"sentence": "none"})
    with pytest.raises(BadData, match="none of the study's classes"):
        evaluate_models([path], data=finished / "manifest.csv")


def test_models_with_classes_in_another_order_are_not_mixed(finished: Path, tmp_path: Path) -> None:
    """One table can't hold models whose outputs mean different things."""
    study = load_study(finished / "study.yaml", ["classes=[bright, dark]"])
    path = tmp_path / "swapped.safetensors"
    save(path, pack(study_model(study)), study=study, fold=0, privacy={"sentence": "none"})
    with pytest.raises(BadInput, match="same classes"):
        evaluate_models([finished / "run", path], data=finished / "manifest.csv")


def test_models_of_one_name_are_told_apart(finished: Path, folds: Path, tmp_path: Path) -> None:
    """Two model.safetensors are named as they were given, and both are in the report."""
    paths = [finished / "run" / "model.safetensors", folds / "run/folds/1/model.safetensors"]
    scored = evaluate_models(paths, data=finished / "manifest.csv")
    assert [one.name for one in scored] == [str(path) for path in paths]
    write(tmp_path / "out", scored)
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(one.card.weights_sha256 in page for one in scored)
    numbers = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert len(numbers["models"]) == 2


def test_a_page_of_several_models_gives_each_its_own_promise(
    finished: Path, tmp_path: Path
) -> None:
    """A model without privacy does not pass for one with the first model's."""
    study = load_study(finished / "study.yaml")
    private = tmp_path / "private.safetensors"
    promise = {"sentence": "epsilon 3 per patient", "epsilon": 3.0, "delta": 1e-5}
    save(private, pack(study_model(study)), study=study, fold=0, privacy=promise)
    scored = evaluate_models(
        [private, finished / "run" / "model.safetensors"], data=finished / "manifest.csv"
    )
    write(tmp_path / "out", scored)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "epsilon 3 per patient" in page
    assert "trained without differential privacy" in page


def test_what_is_no_model_is_refused(finished: Path, tmp_path: Path) -> None:
    """A missing path, a picture, and a run that isn't finished."""
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    for path, expected in {
        tmp_path / "nothing": "run directory or a model file",
        finished / "images" / "east-0-0.png": "expected a model file",
        tmp_path / "run": "--resume first",
    }.items():
        with pytest.raises(BadInput, match=expected):
            evaluate_models([path], data=finished / "manifest.csv")


def test_images_of_another_kind_are_prepared_as_the_models_own(tmp_path: Path) -> None:
    """A manifest's images get the steps of the model's study; a folder holds its kind of trees."""
    own = IldData(image_size_px=48, preprocessing=("clahe",), folds=3)
    study = Study(classes=("a", "b"), data=own, privacy=Privacy(enabled=True))
    found = _with_data(study, tmp_path / "manifest.csv", Simulation())
    assert found.data == ManifestData(
        image_size_px=48, intensity=own.intensity, preprocessing=("clahe",)
    )
    assert Study.model_validate_json(found.model_dump_json()) == found  # a study that is valid
    trees = _with_data(study, tmp_path, Simulation())
    assert trees.data == own.model_copy(update={"folds": None})


def test_knees_are_scored_on_their_own_kind_of_tree(tmp_path: Path) -> None:
    """A manifest says nothing of the crop that an MRNet model was trained with."""
    knees = MrnetData(read_planes=("axial",), slices=5)
    study = Study(task="multi-label", classes=("acl",), data=knees)
    with pytest.raises(BadInput, match="a folder of mrnet trees was expected"):
        _with_data(study, tmp_path / "manifest.csv", Simulation())
    trees = _with_data(study, tmp_path, Simulation())
    assert trees.data == knees


def test_data_of_another_kind_are_refused(finished: Path, tmp_path: Path) -> None:
    """A study.yaml that names CT trees can't feed a model of manifests."""
    (tmp_path / "study.yaml").write_text("classes: [a, b]\ndata: {kind: ild}\n")
    with pytest.raises(BadInput, match=r"data\.kind must be manifest"):
        evaluate_models([finished / "run"], data=tmp_path / "study.yaml")


def test_scores_are_the_models_own(finished: Path) -> None:
    """The probabilities are the softmax of the loaded module on the site's images."""
    from common.models import load

    path = finished / "run" / "model.safetensors"
    (scored,) = evaluate_models([path], data=finished / "manifest.csv")
    study = load_study(finished / "study.yaml", ["seed=3"])
    module = load(path)
    import torch

    rows = []
    for site in simulated_sites(study).values():
        images = open_cohort(site, study, find_device("cpu")).dataset.images
        with torch.no_grad():
            rows.append(module(torch.from_numpy(np.array(images))).softmax(dim=1).numpy())
    np.testing.assert_allclose(scored.predictions.probabilities, np.concatenate(rows), atol=1e-6)

"""Score model files or whole runs on data: per site, pooled and by subgroup, with intervals.

The model's own study says how an image becomes its input; the data only say where images are.
Of a run, each patient (or exam) is scored by a model that was not trained on it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.cohort import Cohort, open_cohort
from client.predict import predict_cohort
from common.compute import find_device, settle
from common.config import (
    Federation,
    IldData,
    ManifestData,
    MrnetData,
    Simulation,
    SiteSettings,
    Study,
    is_study,
    load_site,
    load_study,
)
from common.errors import BadInput
from common.metrics import (
    Evaluation,
    Predictions,
    concatenate,
    confusion_matrix,
    evaluate_by_group,
    evaluate_by_site,
)
from common.models import ModelCard, load, read_card, trained_part
from common.privacy.epsilon import Unit as PrivacyUnit
from common.privacy.not_covered import not_covered
from common.report import (
    DataLabel,
    PrivacyStatement,
    ReportInput,
    RunFacts,
    format_table,
    label_counts,
    metrics_table,
    print_table,
    write_report,
)
from simulations.folder import legs, read_split, write_json
from simulations.report import intervals, limitations
from simulations.result import RESAMPLES, versions
from simulations.sites import data_label, simulated_sites

ALL_PATIENTS = (
    "every {unit} in the data is scored; a model file can't tell whether it was trained on some "
    "of them (evaluate the run's folder to have only its test {unit}s scored)"
)
UNKNOWN_SPLIT = (
    "every {unit} in the data is scored, also those that the model was trained on: only the sites "
    "of this federation know which these are (a site has its test {unit}s alone scored by --data "
    "with its site.yaml)"
)
OWN_TEST = "only the {unit}s that the site itself keeps for testing are scored"
TODAYS_SPLIT = (
    "only the {unit}s on the site's test side of today are scored; without privacy that side is "
    "drawn among all {unit}s who are there, so if the data have changed since the training, the "
    "model was trained on some of them"
)
TEST_SIDE = "only the {unit}s that the data keep for testing are scored"
NOT_RUN = ("training: the models are scored as they are",)
TEST_PATIENTS = "each {unit} is scored by a model that was not trained on that {unit}"
OTHER_SITES = (
    " (all {unit}s of {sites}: no site of that name trained; make sure it had no other name)"
)


@dataclass(frozen=True, slots=True)
class Scored:
    """One model on one data set."""

    name: str
    card: ModelCard
    predictions: Predictions
    evaluation: Mapping[str, Evaluation]  # all, mean-of-sites, site:NAME, COLUMN:VALUE
    who: str  # which patients were scored
    data_label: DataLabel
    device: str
    seconds: float

    @property
    def tested(self) -> frozenset[tuple[str, str]]:
        """Who was scored: site and patient."""
        return frozenset(zip(self.predictions.sites, self.predictions.patients, strict=True))

    @property
    def patients(self) -> int:
        """How many patients were scored."""
        return len(self.tested)

    def as_json(self) -> dict[str, Any]:
        """One entry of `fedward evaluate --json`."""
        return {
            "model": self.name,
            "weights_sha256": self.card.weights_sha256,
            "study": self.card.study.name,
            "study_sha256": self.card.study.sha256,
            "task": self.card.study.task,
            "unit": self.predictions.unit,
            "privacy": dict(self.card.privacy),
            "scored": self.who,
            "images": len(self.predictions),
            "patients": self.patients,
            "classes": list(self.predictions.classes),
            "confusion_matrix": confusion_matrix(self.predictions).tolist(),
            "evaluation": {
                data: {metric: estimate.as_json() for metric, estimate in metrics.items()}
                for data, metrics in self.evaluation.items()
            },
        }


def evaluate_models(
    paths: Sequence[Path], *, data: Path, by: Sequence[str] = ()
) -> tuple[Scored, ...]:
    """Score each model or run of `paths` on `data`.

    Args:
        paths: model files and run directories.
        data: a manifest.csv, a site.yaml, or a study.yaml whose `simulation` names the data.
        by: subgroup columns of the data.

    Raises:
        BadInput: with what is wrong and what to do.
    """
    settle()
    scored = tuple(_score(path, data, by) for path in paths)
    if len({(one.predictions.classes, one.card.study.task) for one in scored}) > 1:
        kinds = [f"{one.name}: {one.card.study.task}, {one.predictions.classes}" for one in scored]
        raise BadInput(
            "models of one task and the same classes, in the same order, can be evaluated "
            f"together; got {'; '.join(kinds)}. Evaluate them one by one."
        )
    return scored


def _score(path: Path, data: Path, by: Sequence[str]) -> Scored:
    started = time.monotonic()
    models = _models(path)
    card = read_card(models[0][1])
    study = _with_data(card.study, data, _simulation(path))
    sites = _sites(study, data)
    own_keys = all(site.state is not None for site in sites.values())
    if own_keys and path.is_dir() and _is_federations(path):
        # These keys gave the split in training, so they give it again, over as many parts.
        folds = card.study.data.folds
        study = study.model_copy(update={"data": study.data.model_copy(update={"folds": folds})})
    cohorts = {name: open_cohort(s, study, find_device(s.device)) for name, s in sites.items()}
    who = _who(path, cohorts, study, own_keys=own_keys)
    parts = []
    for fold, file in models:
        module = trained_part(load(file))
        for cohort in cohorts.values():
            rows = _rows(path, fold, cohort, own_keys=own_keys)
            device = find_device(cohort.site.device)
            parts.append(predict_cohort(module, cohort, rows, study=study, device=device))
    predictions = concatenate(parts)
    if not len(predictions):
        raise BadInput(f"{data}: expected at least one {study.unit} to score; got none.")
    seed = study.seed  # as the run itself does, so that its own numbers come out again
    evaluation = evaluate_by_site(predictions, seed=seed, resamples=RESAMPLES)
    for column in by:
        evaluation |= evaluate_by_group(predictions, column, seed=seed, resamples=RESAMPLES)
    return Scored(
        name=str(path),
        card=card,
        predictions=predictions,
        evaluation=evaluation,
        who=who,
        data_label=data_label(sites),
        device=", ".join(sorted({str(find_device(site.device)) for site in sites.values()})),
        seconds=time.monotonic() - started,
    )


def _models(path: Path) -> tuple[tuple[int, Path], ...]:
    """A run's models by their fold, or a single model file as the only one (fold 0)."""
    if path.is_file():
        return ((0, path),)
    if not (path / "study.yaml").is_file():
        raise BadInput(f"{path}: expected a run directory or a model file; got neither.")
    found = tuple((leg.fold, leg.model) for leg in legs(load_study(path / "study.yaml"), path))
    if not all(model.is_file() for _, model in found):
        raise BadInput(f"{path}: the run is not finished; finish it with --resume first.")
    return found


def _with_data(study: Study, data: Path, run: Simulation) -> Study:
    """The model's study, told where the data are; which patients to score is decided later.

    `run` is how the run divided its data among sites and what these call things: the same data
    must come out at the same sites, or patients would pass for new ones.
    """
    own = study.data.model_copy(update={"folds": None})
    if data.suffix not in (".yaml", ".yml"):
        if not data.is_dir():  # a folder holds trees of the model's own kind
            own = _as_manifest(own, data)
        simulation = Simulation(data=data, partition=run.partition, site_defaults=run.site_defaults)
    elif is_study(data):
        named = load_study(data)
        if named.data.kind != own.kind:
            raise BadInput(
                f"{data.name}: data.kind must be {own.kind}, which the model was trained on; "
                f"got {named.data.kind}."
            )
        simulation = named.simulation
    else:
        simulation = Simulation()
    federation = Federation()  # rules of a round mean nothing here
    study = study.model_copy(
        update={"data": own, "simulation": simulation, "federation": federation}
    )
    # What was promised in training stands in the model's card; here the unit is that of the data.
    privacy = study.privacy.model_copy(update={"unit": study.unit})
    return study.model_copy(update={"privacy": privacy})


def _simulation(path: Path) -> Simulation:
    """How a run's sites were simulated; nothing is known of a model file's."""
    return load_study(path / "study.yaml").simulation if path.is_dir() else Simulation()


def _as_manifest(own: ManifestData | IldData | MrnetData, data: Path) -> ManifestData:
    """How a manifest's images become the input of a model that was trained on another kind."""
    if own.kind == "mrnet":
        raise BadInput(
            f"{data.name}: a folder of mrnet trees was expected, since the model was trained on "
            "cropped exams of several volumes; name such a folder that exists."
        )
    return ManifestData(
        image_size_px=own.image_size_px,
        intensity=own.intensity,
        preprocessing=own.preprocessing,
        slices=own.slices,
    )


def _sites(study: Study, data: Path) -> dict[str, SiteSettings]:
    if data.suffix in (".yaml", ".yml") and not is_study(data):
        site = load_site(data)
        return {site.name: site}
    return simulated_sites(study)


def _rows(path: Path, fold: int, cohort: Cohort, *, own_keys: bool) -> NDArray[np.int64]:
    """Which of a site's images the model of `fold` scores."""
    data = cohort.dataset
    if path.is_dir():
        if _is_federations(path) and own_keys:
            return cohort.test_rows(fold)
        parts = read_split(path, cohort.site.name)
        unknown = sorted(set(data.patients.tolist()) - parts.keys())
        if unknown and fold:
            raise BadInput(
                f"{path}: {len(unknown)} patients of site {cohort.site.name} were not part of the "
                "run, so none of its fold models is theirs; name one model file instead, such as "
                f"{path}/folds/1/model.safetensors."
            )
        tested = max(fold, 1) - 1
        return np.flatnonzero([parts.get(str(key), tested) == tested for key in data.patients])
    if (data.sides != "").any():
        return np.flatnonzero(data.sides == "test")
    return np.arange(len(data.labels))


def _who(path: Path, cohorts: Mapping[str, Cohort], study: Study, *, own_keys: bool) -> str:
    unit = study.unit
    if path.is_dir() and _is_federations(path):
        if not own_keys:
            return UNKNOWN_SPLIT.format(unit=unit)
        # Only a keyed hash of each patient alone gives today's side whoever else has come or gone.
        return (OWN_TEST if study.privacy.enabled else TODAYS_SPLIT).format(unit=unit)
    if path.is_dir():
        new = [name for name in cohorts if not read_split(path, name)]
        # Patients are known by their site and name, so a renamed site's would pass for new ones.
        others = OTHER_SITES.format(unit=unit, sites=", ".join(new)) if new else ""
        return TEST_PATIENTS.format(unit=unit) + others
    sides = any((cohort.dataset.sides != "").any() for cohort in cohorts.values())
    return (TEST_SIDE if sides else ALL_PATIENTS).format(unit=unit)


def _is_federations(run: Path) -> bool:
    """Whether the sites of a run were hospitals, so that nobody else knows their patients."""
    return not any(run.glob("sites/*/split.json"))


def text(scored: Sequence[Scored]) -> str:
    """What `fedward evaluate` prints for people."""
    return "\n\n".join([*map(_text, scored), *_caution(scored)])


def _caution(scored: Sequence[Scored]) -> tuple[str, ...]:
    """Says so where models were scored on different people, as private runs are and others."""
    tested = [one.tested for one in scored]
    if len(set(tested)) == 1:
        return ()
    unit = scored[0].predictions.unit
    return (
        f"Not the same {unit}s were scored for each of these models "
        f"({len(frozenset.intersection(*tested))} {unit}s for all of them), so their figures can't "
        "be compared.",
    )


def write(out: Path, scored: Sequence[Scored]) -> None:
    """Keep an evaluation as `evaluation.json` and `report.html` in a folder.

    Raises:
        BadInput: the folder can't be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "evaluation.json", {"models": [one.as_json() for one in scored]})
        write_report(out / "report.html", _report(scored))
    except OSError as error:
        raise BadInput(
            f"--out {out}: can't be written ({error.strerror}); name a folder that can be."
        ) from None


def _report(scored: Sequence[Scored]) -> ReportInput:
    first = scored[0]
    study = first.card.study
    return ReportInput(
        title=f"Evaluation of {', '.join(one.name for one in scored)}",
        run=RunFacts(
            study=study.name,
            engine="none: evaluation of finished models",
            seed=study.seed,
            rounds=study.training.rounds,
            device=first.device,
            seconds=sum(one.seconds for one in scored),
            versions=versions(),
            hashes={one.name: one.card.weights_sha256 for one in scored},
        ),
        data_label=first.data_label,
        data_description="; ".join([_counted(first), first.who, *_caution(scored)]),
        privacy=_privacy(scored),
        partition="",
        sites=(),
        task=study.task,
        unit=first.predictions.unit,
        classes=first.predictions.classes,
        evaluation={one.name: one.evaluation for one in scored},
        resamples=RESAMPLES,
        comparisons=(),
        confusion={one.name: confusion_matrix(one.predictions) for one in scored},
        history={},
        history_caption="",
        not_run=NOT_RUN,
        limitations=limitations(first.predictions.unit, study.task),
    )


def _privacy(scored: Sequence[Scored]) -> PrivacyStatement:
    """What all models promise; where they differ, each one's own sentence."""
    privacy = scored[0].card.privacy
    alike = all(one.card.privacy == privacy for one in scored)
    enabled = alike and "epsilon" in privacy
    each = "; ".join(f"{one.name}: {one.card.privacy['sentence']}" for one in scored)
    promises = [one.card.privacy for one in scored if "epsilon" in one.card.privacy]
    units = {str(promise.get("unit", PrivacyUnit.PATIENT)) for promise in promises}
    return PrivacyStatement(
        enabled=enabled,
        guarantee=str(privacy.get("guarantee", privacy["sentence"])) if alike else each,
        unit=str(privacy.get("unit", "none")),
        delta=f"{privacy['delta']:g}" if enabled else "none",
        adjacency=str(privacy.get("adjacency", "none")),
        trust_model=str(privacy.get("trust_model", "none")),
        randomness=str(privacy.get("randomness", "none")),
        together="",  # of one model
        not_covered=_not_covered(units),
    )


def _not_covered(units: set[str]) -> tuple[str, ...]:
    """What the promises of models leave open, whatever unit each of them hides."""
    sentences = [line for unit in sorted(units) for line in not_covered(PrivacyUnit(unit))]
    return tuple(dict.fromkeys(sentences))


def _text(scored: Scored) -> str:
    counts = confusion_matrix(scored.predictions)
    classes = scored.predictions.classes
    if scored.predictions.multi_label:
        header, rows = label_counts(classes, counts)
    else:
        header = ("true class", *(f"said {name}" for name in classes))
        rows = [(name, *map(str, row)) for name, row in zip(classes, counts.tolist(), strict=True)]
    return "\n".join(
        [
            f"{scored.name}: {_counted(scored)}; {scored.who}",
            f"Privacy of its training: {scored.card.privacy['sentence']}",
            "",
            print_table(metrics_table(scored.evaluation)),
            "",
            format_table(header, rows),
            "",
            intervals(scored.predictions.unit, scored.card.study.task),
        ]
    )


def _counted(scored: Scored) -> str:
    unit, images = scored.predictions.unit, len(scored.predictions)
    return f"{scored.patients} {unit}s, {images} images"

"""One study on one machine, from its data to its report: federation, baselines, evaluation."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from client.app import app as client_app
from client.app import forget_sites
from client.budget import lasting
from client.cohort import Cohort, open_cohort
from client.predict import predict_cohort
from common.compute import find_device, keep_freed_memory, settle
from common.config import SiteSettings, Study
from common.errors import BadInput, RunFailed
from common.metrics import Predictions, concatenate
from common.models import load, read_card, save, study_model, trained_part
from common.report import write_report
from server.app import app as server_app
from server.checkpoint import last_checkpoint, read_history
from server.presence import at_work
from simulations.arms import FEDERATED, Arm, arms, train_arm
from simulations.engines import ENGINES
from simulations.events import befalling
from simulations.folder import Leg, check_folder, legs, open_folder, write_json
from simulations.report import report_input
from simulations.result import RunResult, summarise
from simulations.sites import data_label, divided, simulated_sites
from simulations.statements import arm_statement, model_statement, site_plan

logger = logging.getLogger("fedward.simulate")


def run(
    study: Study,
    *,
    out: Path | None = None,
    engine: str = "inline",
    baselines: bool = True,
    resume: bool = False,
) -> RunResult:
    """Simulate a study and evaluate what comes out of it.

    Args:
        study: see `common.config.load_study`.
        out: the run directory; `runs/NAME` below the working folder when None.
        engine: a name of `simulations.engines.ENGINES`.
        baselines: also train the models that the federated one is compared with.
        resume: go on with the run in `out`, to the same bits.

    Returns:
        The result, as it is written to `result.json` and `report.html`.

    Raises:
        BadInput: anything a person can mend, before anything is written.
        RunFailed: the study could not go on.
    """
    started = time.monotonic()
    settle()
    keep_freed_memory()
    out = out or Path("runs") / study.name
    if engine not in ENGINES:
        raise BadInput(f"--engine must be one of {', '.join(ENGINES)}; got {engine}.")
    check_folder(out, study, resume=resume)
    study_model(study)  # an unknown model is refused before the data are read
    sites = simulated_sites(study)
    cohorts = open_cohorts(study, sites)
    compared = arms(study, tuple(cohorts)) if baselines else ()
    _check(study, cohorts, compared)
    _check_budgets(study, sites)
    open_folder(out, study, cohorts)
    with at_work(out):
        parts = divided(study)
        if parts is not None:
            logger.info("the data are divided among simulated sites:\n%s", parts.table())
            write_json(out / "partition.json", parts.as_json())
        if study.privacy.enabled:
            sentence = model_statement(study, sites)["sentence"]
            logger.info("privacy after all rounds, in simulation: %s", sentence)
            _warn_of_budgets(study, sites)
        device = find_device(study.simulation.site_defaults.device)
        for leg in legs(study, out):
            _train_leg(study, leg, sites, cohorts, compared, engine=engine, device=device)
        result = summarise(
            study,
            predictions={
                name: _predictions(study, legs(study, out), path, cohorts, device)
                for name, path in _models(compared).items()
            },
            histories=[read_history(leg.out / "history.jsonl") for leg in legs(study, out)],
            cards=[read_card(leg.model) for leg in legs(study, out)],
            cohorts=cohorts,
            partition=parts,
            data_label=data_label(sites),
            engine=engine,
            device=device,
            seconds=time.monotonic() - started,
        )
        write_json(out / "result.json", result.as_json())
        write_report(out / "report.html", report_input(result))
        return result


def open_cohorts(study: Study, sites: Mapping[str, SiteSettings]) -> dict[str, Cohort]:
    """Every site's data, opened; raises BadData with what is wrong with them."""
    cohorts = {}
    for name, site in sites.items():
        cohorts[name] = open_cohort(site, study, find_device(site.device))
        count = len(set(cohorts[name].dataset.patients.tolist()))
        images = len(cohorts[name].inputs)
        logger.info("site %s: %d %ss, %d images", name, count, study.unit, images)
    return cohorts


def _check(study: Study, cohorts: Mapping[str, Cohort], compared: tuple[Arm, ...]) -> None:
    """Refuse what would only be found in the middle of a run."""
    for name, cohort in cohorts.items():
        for leg in legs(study, Path()):
            if not len(cohort.train_rows(leg.fold)):
                fold = f" in fold {leg.fold}" if leg.fold else ""
                raise BadInput(
                    f"site {name} has no training {study.unit}s{fold}; lower data.test_share, use "
                    "more data.folds, or leave the site out of the data."
                )
        if study.privacy.enabled:
            site_plan(study, cohort.site)
    for arm in compared:
        arm_statement(study, arm, {name: cohort.site for name, cohort in cohorts.items()})


def _check_budgets(study: Study, sites: Mapping[str, SiteSettings]) -> None:
    """Refuse a study in whose last round too few sites could still take part.

    Each model of a cross-validation has ledgers of its own here, so each is counted by itself.
    """
    if not study.privacy.enabled:
        return
    one_model = study.model_copy(update={"data": study.data.model_copy(update={"folds": None})})
    rounds = study.training.rounds
    short = []
    for name, site in sites.items():
        absent = {one for one in study.simulation.site(name).absent_rounds if one <= rounds}
        lasts = lasting(one_model, site, ledger=None, patients=None)
        if lasts.rounds_left < rounds - len(absent):
            short.append(name)
    if len(sites) - len(short) < study.federation.min_sites:
        raise BadInput(
            f"the privacy budget of {', '.join(short)} ends before round {rounds}, "
            f"the last one, which needs {study.federation.min_sites} of {len(sites)} sites "
            "(federation.min_sites); lower privacy.target_epsilon or raise the sites' "
            "budget.epsilon, and privacy.lifetime_epsilon where it is lower."
        )


def _warn_of_budgets(study: Study, sites: Mapping[str, SiteSettings]) -> None:
    """A simulated site gives the rounds that its budget allows; a real one wouldn't begin."""
    here = ", though here each fold has a ledger of its own" if study.data.folds else ""
    for name, site in sites.items():
        lasts = lasting(study, site, ledger=None, patients=None)
        if not lasts.whole:
            logger.warning(
                "site %s: its budget %s%s; a hospital refuses such a study at its "
                "start, unless its policy.whole_studies is optional",
                name,
                lasts,
                here,
            )


def _train_leg(
    study: Study,
    leg: Leg,
    sites: Mapping[str, SiteSettings],
    cohorts: Mapping[str, Cohort],
    compared: tuple[Arm, ...],
    *,
    engine: str,
    device: torch.device,
) -> None:
    """Train what is still missing of one leg; each model's file says that it is done."""
    (leg.out / "baselines").mkdir(parents=True, exist_ok=True)
    if not leg.model.is_file():
        config: dict[str, str | int] = {
            "study": study.canonical(),
            "fold": leg.fold,
            "out": str(leg.out),
        }
        texts = {
            name: site.model_copy(update={"state": leg.state(name)}).model_dump_json()
            for name, site in sites.items()
        }
        forget_sites()  # an earlier run's folder of this name may be gone
        answers = befalling(client_app, {name: study.simulation.site(name) for name in sites})
        ENGINES[engine](server_app, answers, run_config=config, sites=texts)
        last = last_checkpoint(leg.out / "checkpoints", study_sha256=study.sha256)
        assert last is not None  # a leg that ends well has at least one round
        privacy = model_statement(study, sites)
        save(leg.model, last.weights, study=study, fold=leg.fold, privacy=privacy)
    for arm in compared:
        path = leg.out / "baselines" / arm.file_name
        if not path.is_file():
            logger.info("training %s for comparison", arm.name)
            weights = train_arm(study, leg.fold, arm, cohorts, device)
            privacy = arm_statement(study, arm, sites)
            save(path, weights, study=study, fold=leg.fold, privacy=privacy)


def _models(compared: tuple[Arm, ...]) -> dict[str, str]:
    """Each model's file below a leg's folder, by the name that the results use."""
    return {FEDERATED: "model.safetensors"} | {
        arm.name: f"baselines/{arm.file_name}" for arm in compared
    }


def _predictions(
    study: Study,
    run_legs: tuple[Leg, ...],
    path: str,
    cohorts: Mapping[str, Cohort],
    device: torch.device,
) -> Predictions:
    """What a model says of every site's test patients; over folds, each patient once."""
    parts = []
    for leg in run_legs:
        module = trained_part(load(leg.out / path))
        for cohort in cohorts.values():
            rows = cohort.test_rows(leg.fold)
            try:
                part = predict_cohort(module, cohort, rows, study=study, device=device)
            except BadInput:
                raise RunFailed(
                    f"{leg.out / path}: diverged, its predictions are not finite. Lower the "
                    "learning rate and start a new run."
                ) from None
            parts.append(part)
    return concatenate(parts)

"""A run's result as a page and as text: what was run, what was found, what it does not show."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from common.metrics import MIN_PATIENTS, Unit, confusion_matrix
from common.privacy.epsilon import rounded_up
from common.report.content import STRATUM, PrivacyStatement, ReportInput, RunFacts, SiteRow, Task
from common.report.text import (
    data_names,
    differences_table,
    format_table,
    labels_table,
    models_table,
    print_table,
)
from simulations.result import RESAMPLES, RunResult

NOT_RUN = (
    "processes over gRPC: this is a simulation in one process, with the same two apps",
    "an attack on the model or an audit of the privacy bound",
    "an external test set: all {unit}s come from the sites that trained",
)


def limitations(unit: Unit, task: Task) -> tuple[str, ...]:
    """What every page says about its own numbers."""
    few = "of a class" if task == "multi-class" else "with or without a label"
    together = {
        "patient": "Several images of a patient are resampled together; patients are assumed "
        "independent.",
        "exam": "The data don't say which exams are of one patient: exams are resampled as if "
        "independent, and one patient's may lie on both sides of a split.",
    }
    return (
        f"A small hospital's {unit}s give wide intervals; below {MIN_PATIENTS} {unit}s {few} none "
        "is given.",
        together[unit],
        "Differences between models are not corrected for the number of comparisons.",
    )


def intervals(unit: Unit, task: Task) -> str:
    """What the terminal says below a table."""
    return f"In parentheses: 95 % intervals, by resampling {unit}s within site and {STRATUM[task]}."


def text(result: RunResult) -> str:
    """The table that `fedward simulate` ends with."""
    study, unit = result.study, result.study.unit
    lines = [
        f"Macro AUROC on the test {unit}s of each site ({result.data_label} data)",
        "",
        print_table(models_table(result.evaluation, data_names(result.evaluation))),
        intervals(unit, study.task),
    ]
    if study.task == "multi-label":
        table = print_table(labels_table(result.evaluation, study.classes))
        lines += ["", "AUROC of each label, all sites pooled", "", table]
    if result.comparisons:
        named = [(f"{c.first} - {c.second}", c.difference) for c in result.comparisons]
        lines += [
            "",
            "Paired differences, all sites pooled",
            "",
            print_table(differences_table(named)),
        ]
    return "\n".join([*lines, "", *_privacy_lines(result)])


def report_input(result: RunResult) -> ReportInput:
    """What the page says."""
    study, unit = result.study, result.study.unit
    privacy = result.privacy()
    folds = study.data.folds
    split = f"one split by {unit}" if folds is None else f"{folds} folds by {unit}"
    return ReportInput(
        title=f"{study.name}: {study.model.name}",
        run=RunFacts(
            study=study.name,
            engine=result.engine,
            seed=study.seed,
            rounds=study.training.rounds,
            device=result.device,
            seconds=result.seconds,
            versions=result.versions,
            hashes={"study": study.sha256, "weights_sha256": result.weights_sha256},
        ),
        data_label=result.data_label,
        data_description=(
            f"{study.data.kind} data, {sum(s['patients'] for s in result.sites.values())} {unit}s "
            f"at {len(result.sites)} sites, {split}; each {unit} is tested by models that were not "
            f"trained on that {unit}."
        ),
        privacy=PrivacyStatement(
            enabled=privacy["enabled"],
            guarantee=privacy["guarantee"],
            unit=privacy["unit"] or "none",
            delta=f"{study.privacy.target_delta:g}" if privacy["enabled"] else "none",
            adjacency=privacy["adjacency"] or "none",
            trust_model=privacy["trust_model"] or "none",
            randomness="the study's seed (simulation)",
            together=_together(result),
            not_covered=tuple(privacy["not_covered"]),
        ),
        partition=result.partition.table() if result.partition else "",
        sites=tuple(
            SiteRow(
                name=name,
                patients=site["patients"],
                images=site["images"],
                rounds_joined=_rounds(site["rounds_joined"]),
                epsilon="none" if site["epsilon"] is None else rounded_up(site["epsilon"]),
            )
            for name, site in result.sites.items()
        ),
        task=study.task,
        unit=unit,
        classes=study.classes,
        evaluation=result.evaluation,
        resamples=RESAMPLES,
        comparisons=result.comparisons,
        confusion={name: confusion_matrix(p) for name, p in result.predictions.items()},
        history=_curve(result),
        history_caption=(
            f"Loss of the global model on each site's test {unit}s after each round (0: untrained)"
            + ("" if folds is None else ", mean over folds")
        ),
        not_run=tuple(sentence.format(unit=unit) for sentence in NOT_RUN),
        limitations=limitations(unit, study.task),
    )


def _privacy_lines(result: RunResult) -> list[str]:
    privacy = result.privacy()
    if not privacy["enabled"]:
        return ["Privacy: none; the federated model was trained without differential privacy."]
    rows = [
        (name, rounded_up(site["epsilon"]), str(site["rounds_joined"]))
        for name, site in result.sites.items()
    ]
    lines = [
        f"Epsilon per {privacy['unit']} (delta {result.study.privacy.target_delta:g}; adjacency: "
        f"{privacy['adjacency']}; {privacy['trust_model']}; guarantee: {privacy['guarantee']})",
        "",
        format_table(("site", "epsilon", "rounds joined"), rows),
    ]
    together = _together(result)
    return [*lines, together] if together else lines


def _together(result: RunResult) -> str:
    """What a whole cross-validation costs, of which the sites' epsilons count one model alone."""
    spent = next((site["all_folds_statement"] for site in result.sites.values()), None)
    if not spent:
        return ""
    return (
        "That is for the model of one fold; a hospital that took part in the cross-validation as a "
        f"whole would have spent epsilon {rounded_up(spent['epsilon'])} (same conditions)."
    )


def _rounds(joined: int | list[int]) -> int:
    return joined if isinstance(joined, int) else max(joined)


def _curve(result: RunResult) -> Mapping[int, Mapping[str, float]]:
    """Rounds done -> site -> loss then: a round's sites score the weights they are sent."""
    losses: dict[int, dict[str, list[float]]] = {}
    for lines in result.histories:
        for line in lines:
            number = line["round"] if line.get("closing") else line["round"] - 1
            for site, metrics in line["metrics"].items():
                if "loss" in metrics:
                    losses.setdefault(number, {}).setdefault(site, []).append(metrics["loss"])
    return {
        number: {site: fmean(values) for site, values in sorted(by_site.items())}
        for number, by_site in sorted(losses.items())
    }

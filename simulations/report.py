"""A run's result as a page and as text: what was run, what was found, what it does not show."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from common.metrics import confusion_matrix
from common.privacy.epsilon import rounded_up
from common.report.content import PrivacyStatement, ReportInput, RunFacts, SiteRow
from common.report.text import (
    data_names,
    differences_table,
    format_table,
    models_table,
    print_table,
)
from simulations.result import RESAMPLES, RunResult

NOT_RUN = (
    "processes over gRPC: this is a simulation in one process, with the same two apps",
    "an attack on the model or an audit of the privacy bound",
    "an external test set: all patients come from the sites that trained",
)
LIMITATIONS = (
    "Patients of a small hospital give wide intervals; below 10 patients of a class none is given.",
    "Several images of a patient are resampled together; patients are assumed independent.",
    "Differences between models are not corrected for the number of comparisons.",
)


def text(result: RunResult) -> str:
    """The table that `fedward simulate` ends with."""
    lines = [
        f"Macro AUROC on the test patients of each site ({result.data_label} data)",
        "",
        print_table(models_table(result.evaluation, data_names(result.evaluation))),
        "In parentheses: 95 % intervals, by resampling patients within site and class.",
    ]
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
    study = result.study
    privacy = result.privacy()
    folds = study.data.folds
    split = "one split by patient" if folds is None else f"{folds} folds by patient"
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
            f"{study.data.kind} data, {sum(s['patients'] for s in result.sites.values())} patients "
            f"at {len(result.sites)} sites, {split}; each patient is tested by models that did "
            "not train on them."
        ),
        privacy=PrivacyStatement(
            enabled=privacy["enabled"],
            guarantee=privacy["guarantee"],
            unit=privacy["unit"] or "none",
            delta=f"{study.privacy.target_delta:g}" if privacy["enabled"] else "none",
            adjacency=privacy["adjacency"] or "none",
            trust_model=privacy["trust_model"] or "none",
            randomness="the study's seed (simulation)",
            not_covered=tuple(privacy["not_covered"]),
        ),
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
        classes=study.classes,
        evaluation=result.evaluation,
        resamples=RESAMPLES,
        comparisons=result.comparisons,
        confusion={name: confusion_matrix(p) for name, p in result.predictions.items()},
        history=_curve(result),
        history_caption=(
            "Loss of the global model on each site's test patients before each round"
            + ("" if folds is None else ", mean over folds")
        ),
        not_run=NOT_RUN,
        limitations=LIMITATIONS,
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
    together = next(iter(result.sites.values()))["all_folds_statement"]
    if together:
        lines.append(
            f"That is for the model of one fold; a hospital that took part in the cross-validation "
            f"as a whole would have spent epsilon {rounded_up(together['epsilon'])} (same "
            "conditions)."
        )
    return lines


def _rounds(joined: int | list[int]) -> int:
    return joined if isinstance(joined, int) else max(joined)


def _curve(result: RunResult) -> Mapping[int, Mapping[str, float]]:
    """Round -> site -> loss before that round; the closing evaluation is one round later."""
    losses: dict[int, dict[str, list[float]]] = {}
    for lines in result.histories:
        for line in lines:
            number = line["round"] + 1 if line.get("closing") else line["round"]
            for site, metrics in line["metrics"].items():
                if "loss" in metrics:
                    losses.setdefault(number, {}).setdefault(site, []).append(metrics["loss"])
    return {
        number: {site: fmean(values) for site, values in sorted(by_site.items())}
        for number, by_site in sorted(losses.items())
    }

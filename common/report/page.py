"""The report: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import BadInput
from common.metrics import MIN_PATIENTS, POOLED, Estimate
from common.report.content import HEADLINE, STRATUM, Comparison, DataLabel, ReportInput, Task
from common.report.figures import forest, learning_curve
from common.report.html import (
    bullets,
    definitions,
    document,
    paragraphs,
    preformatted,
    section,
    table,
)
from common.report.text import (
    Cell,
    Table,
    data_label,
    data_names,
    differences_table,
    format_difference,
    format_estimate,
    format_number,
    labels_table,
    metric_label,
    metrics_table,
    models_table,
    subgroup_names,
)

DATA_SENTENCES: dict[DataLabel, str] = {
    "phantom": "The images are phantoms, made by a program: these numbers show how the method "
    "behaves and say nothing about patients.",
    "scaled phantom": "The images are phantoms, made by a program, in a larger number than "
    "hospitals have: these numbers show how the method behaves and say nothing about patients.",
    "real": "The images are of real patients.",
}

# What each model of DESIGN.md's comparison is; others are shown without a gloss.
MODEL_SENTENCES = {
    "federated": "trained by all sites together; only weights left them",
    "central": "trained on all sites' images in one place, without privacy: what sharing the "
    "images would give",
    "central-private": "trained on all sites' images in one place, with differential privacy",
    "local": "trained by one site alone on its own images; it never leaves, so it needs no noise",
    "local-private": "trained by one site alone, with differential privacy",
}

# The coverage given here was measured on 600 simulated cohorts of AUROC .90 in two equal classes.
METHOD = (
    "Intervals are 95 % percentile intervals over {resamples} resamples of {unit}s. They are drawn "
    "within each site and {stratum} (of n {unit}s n - 1 are drawn, since drawing n understates "
    "the spread of small groups), and all images of a drawn {unit} come along.",
    "An interval is given only from {minimum} {unit}s {involved}. So small, it is still too "
    "narrow: an AUROC of .90 was covered about 90 % of the time with 15 patients in each of two "
    "classes, and 93 % with 30.",
    "Intervals describe which test {unit}s were met, given each site's mix of classes. They do not "
    "hold the chance in training (another seed gives another model) and are not corrected for "
    "looking at many of them.",
    "{auroc}",
    "The mean of sites counts each site once, however many {unit}s it has.",
)
INVOLVED: dict[Task, str] = {
    "multi-class": "of each class involved",
    "multi-label": "with and as many without each label involved",
}
AUROC: dict[Task, str] = {
    "multi-class": "AUROC is the chance that an image of the class is ranked above an image of "
    "another class; 0.5 is guessing. The macro AUROC is its mean over the classes, for two classes "
    "that of the second. Recall is also called sensitivity.",
    "multi-label": "AUROC is the chance that an image with the label is ranked above one without "
    "it; 0.5 is guessing. The macro AUROC is its mean over the labels. A label is said to be there "
    "from a probability of 0.5 on; the accuracy is the share of right decisions over all labels, "
    "the balanced accuracy the mean over the labels of (recall + specificity) / 2. Recall is also "
    "called sensitivity.",
}


def write_report(path: Path, result: ReportInput) -> None:
    """Writes the page to `path` in one step; raises BadInput where that is not possible."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(render_report(result), encoding="utf-8", newline="\n")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise BadInput(
            f"A folder that can be written was expected for {path}; got: {error.strerror}. "
            "Choose another with --out."
        ) from error


def render_report(result: ReportInput) -> str:
    """The page as text: the same bytes for the same input."""
    sections = [
        section("In short", _summary(result)),
        section("Results", _results(result)),
        section("Differences", _differences(result)),
        section("Subgroups", _subgroups(result)),
        section("Every metric", _every_metric(result)),
        section("Confusion", _confusions(result)),
        section("Learning curve", _history(result)),
        section("Sites", _sites(result)),
        section("How the data were divided among the sites", preformatted(result.partition)),
        section("Privacy", _privacy(result)),
        section("What was not run", bullets(result.not_run)),
        section("Limits of these numbers", bullets(result.limitations)),
        section("How to read the intervals", _method(result)),
        section("How this was made", _facts(result)),
    ]
    label = f'<p class="label {"real" if result.data_label == "real" else "phantom"}">'
    header = (
        '<header>\n<p class="kind">fedward evaluation report</p>\n'
        f"<h1>{escape(result.title)}</h1>\n"
        f"{label}{escape(result.data_label)} data</p>\n"
        f"<p>{escape(result.data_description)}</p>\n</header>\n"
    )
    return document(result.title, header, sections)


def _summary(result: ReportInput) -> str:
    sentences = [DATA_SENTENCES[result.data_label]]
    if result.evaluation:
        model, by_data = next(iter(result.evaluation.items()))
        pooled = by_data.get(POOLED, {}).get(HEADLINE, Estimate(None, reason="not evaluated"))
        sentences.append(
            f"The model {model} reaches a {metric_label(HEADLINE)} of {format_estimate(pooled)} on "
            f"the test {result.unit}s of all sites."
        )
        known = sorted(
            (found[HEADLINE].value or 0.0, name)
            for name, found in by_data.items()
            if name.startswith("site:") and HEADLINE in found and found[HEADLINE].value is not None
        )
        if len(known) > 1:
            ends = [
                f"{data_label(name)} {format_estimate(by_data[name][HEADLINE])}"
                for _, name in (known[0], known[-1])
            ]
            sentences.append(f"Lowest and highest by site: {ends[0]}; {ends[1]}.")
    sentences += [_comparison_sentence(each) for each in result.comparisons[:2]]
    trained = "trained with differential privacy; guarantee: " if result.privacy.enabled else ""
    sentences.append(f"Privacy: {trained}{result.privacy.guarantee}")
    return f'<div class="summary">{paragraphs(sentences)}</div>'


def _comparison_sentence(each: Comparison) -> str:
    found, what = each.difference, f"{metric_label(each.metric)}, {data_label(each.data)}"
    if found.value is None or found.low is None or found.high is None:
        numbers = format_estimate(found)
    else:
        value, low, high = map(format_difference, (found.value, found.low, found.high))
        numbers = f"{value} (95 % interval {low} to {high}): {_reading(found)}"
    return f"{each.first} minus {each.second} ({what}): {numbers}."


def _reading(difference: Estimate) -> str:
    """What an interval of a difference says, and no more."""
    if difference.low is None or difference.high is None:
        return "no interval: nothing can be said"
    if difference.low > 0:
        return "above zero"
    if difference.high < 0:
        return "below zero"
    return "holds zero: no difference shown"


def _results(result: ReportInput) -> str:
    names = data_names(result.evaluation)
    if not names:
        return ""
    kinds = dict.fromkeys(model.partition(":")[0] for model in result.evaluation)
    glosses = [(kind, MODEL_SENTENCES[kind]) for kind in kinds if kind in MODEL_SENTENCES]
    caption = (
        f"{metric_label(HEADLINE)} with 95 % intervals: a row per model, a column per test set"
    )
    figure = forest(result.evaluation, names)
    by_label = ""
    if result.task == "multi-label":
        by_label = table(
            labels_table(result.evaluation, result.classes),
            f"AUROC of each label, {data_label(POOLED)}, with 95 % intervals",
        )
    return (
        table(models_table(result.evaluation, names), caption)
        + by_label
        + definitions(glosses)
        + _figure(
            figure,
            f"{caption}. The numbers are those of the first table above.",
            f"The same {metric_label(HEADLINE)}s. A filled dot has an interval, a hollow one has "
            "none; the dashed line is guessing.",
        )
    )


def _differences(result: ReportInput) -> str:
    if not result.comparisons:
        return ""
    found = differences_table(
        (f"{each.first} − {each.second}", each.difference) for each in result.comparisons
    )
    rows = tuple(
        (
            name,
            (
                *cells,
                Cell(metric_label(each.metric)),
                Cell(data_label(each.data)),
                Cell(_reading(each.difference)),
            ),
        )
        for (name, cells), each in zip(found.rows, result.comparisons, strict=True)
    )
    header = (*found.header, "metric", "test set", "what the interval says")
    caption = f"Paired differences: both models on the same resamples of {result.unit}s"
    return table(Table(header, rows, found.notes), caption)


def _subgroups(result: ReportInput) -> str:
    names = subgroup_names(result.evaluation)
    if not names:
        return ""
    caption = f"{metric_label(HEADLINE)} by subgroup, with 95 % intervals"
    return table(models_table(result.evaluation, names), caption)


def _every_metric(result: ReportInput) -> str:
    parts = []
    for number, (model, by_data) in enumerate(result.evaluation.items()):
        titles: dict[str | None, str] = {None: f"Every metric of {model}"}
        if result.task == "multi-label":
            titles = {"": f"{model}, over all labels"}
            titles |= {name: f"{model}, label {name}" for name in result.classes}
        tables = "".join(
            table(metrics_table(by_data, of=of), f"{title}, with 95 % intervals")
            for of, title in titles.items()
        )
        opened = " open" if number == 0 else ""
        parts.append(f"<details{opened}><summary>{escape(model)}</summary>\n{tables}</details>\n")
    return "".join(parts)


def _confusions(result: ReportInput) -> str:
    if not result.confusion:
        return ""
    note = (
        "<p>Images, all sites pooled. Rows are the truth, columns what the model said; the shade "
        "is the share of the row.</p>\n"
    )
    if result.task == "multi-class":
        return note + _grid(
            _confusion(model, result.classes, counts) for model, counts in result.confusion.items()
        )
    return note + "".join(
        _grid(
            _confusion(f"{model}: {name}", ("without", "with"), of_label)
            for name, of_label in zip(result.classes, counts, strict=True)
        )
        for model, counts in result.confusion.items()
    )


def _grid(tables: Iterable[str]) -> str:
    return f'<div class="grid">{"".join(tables)}</div>\n'


def _confusion(model: str, classes: Sequence[str], counts: NDArray[np.integer[Any]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in classes)
    rows = []
    for name, row in zip(classes, counts.tolist(), strict=True):
        shares = [count / sum(row) if sum(row) else 0.0 for count in row]
        cells = "".join(
            f'<td style="background:rgba(60,130,180,{share * 0.6:.3f})">{count}</td>'
            for count, share in zip(row, shares, strict=True)
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>\n')
    return (
        f'<div class="wide"><table class="confusion"><caption>{escape(model)}</caption>\n'
        f"<thead><tr><td>true \\ said</td>{head}</tr></thead>\n"
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _history(result: ReportInput) -> str:
    if not result.history:
        return ""
    rounds = sorted(result.history)
    ends = [(round_, result.history[round_]) for round_ in dict.fromkeys((rounds[0], rounds[-1]))]
    said = "; ".join(
        f"round {round_}: "
        + ", ".join(f"{site} {format_number(value)}" for site, value in values.items())
        for round_, values in ends
    )
    return _figure(
        learning_curve(result.history),
        f"{result.history_caption} Line chart, first and last round. {said}.",
        result.history_caption,
    )


def _sites(result: ReportInput) -> str:
    if not result.sites:
        return ""
    rows = tuple(
        (
            site.name,
            (
                *map(_count, (site.patients, site.images, site.rounds_joined)),
                Cell(site.epsilon),
            ),
        )
        for site in result.sites
    )
    header = ("", f"{result.unit}s", "images", "rounds joined", "epsilon")
    # No epsilon without what it means, even where only this table is read.
    terms = "; ".join(f"{name} {text}" for name, text in _privacy_terms(result))
    return table(Table(header, rows, ()), "What each site brought and spent") + paragraphs(
        [f"These epsilons hold with: {terms}.", result.privacy.together]
        if result.privacy.enabled
        else []
    )


def _count(number: int | None) -> Cell:
    return Cell("not released" if number is None else str(number))


def _privacy(result: ReportInput) -> str:
    given = [("guarantee", result.privacy.guarantee)]
    if result.privacy.enabled:
        given += _privacy_terms(result)
    missing = "<h3>Not covered</h3>\n" + bullets(result.privacy.not_covered)
    return definitions(given) + (missing if result.privacy.not_covered else "")


def _privacy_terms(result: ReportInput) -> list[tuple[str, str]]:
    privacy = result.privacy
    return [
        ("unit", privacy.unit),
        ("delta", privacy.delta),
        ("adjacency", privacy.adjacency),
        ("trust model", privacy.trust_model),
        ("randomness", privacy.randomness),
    ]


def _method(result: ReportInput) -> str:
    words = {
        "resamples": result.resamples,
        "minimum": MIN_PATIENTS,
        "unit": result.unit,
        "stratum": STRATUM[result.task],
        "involved": INVOLVED[result.task],
        "auroc": AUROC[result.task],
    }
    return bullets(each.format_map(words) for each in METHOD)


def _facts(result: ReportInput) -> str:
    run = result.run
    return definitions(
        [
            ("study", run.study),
            ("engine", run.engine),
            ("seed", str(run.seed)),
            ("rounds", str(run.rounds)),
            ("device", run.device),
            ("duration", f"{run.seconds:.1f} s"),
            *run.versions.items(),
            *run.hashes.items(),
        ]
    )


def _figure(svg: str, description: str, caption: str) -> str:
    """A figure: what it shows is in the caption, what it says for those who cannot see it too."""
    return (
        f'<figure><div class="wide"><div role="img" aria-label="{escape(description)}">{svg}</div>'
        f"</div><figcaption>{escape(caption)}</figcaption></figure>\n"
    )

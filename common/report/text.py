"""Numbers and tables in words: for the terminal, and the words that the page shares with it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.metrics import MEAN_OF_SITES, POOLED, Estimate, Evaluation
from common.report.content import HEADLINE, EvaluationByModel

NOT_ESTIMABLE = "not estimable"


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of a table: a value, its interval where there is one, and its footnotes."""

    value: str
    interval: str = ""
    notes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of estimates under a header; footnotes are numbered from 1."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...]


def models_table(
    evaluation: EvaluationByModel, data: Sequence[str], *, metric: str = HEADLINE
) -> Table:
    """One metric: a row per model, a column per data set of `data`."""
    return _table(
        [""] + [data_label(name) for name in data],
        [
            (model, [by_data.get(name, {}).get(metric) for name in data])
            for model, by_data in evaluation.items()
        ],
        format_number,
    )


def labels_table(evaluation: EvaluationByModel, classes: Sequence[str]) -> Table:
    """The AUROC of each label on all sites pooled: a row per model, a column per label."""
    return _table(
        ["", *classes],
        [
            (model, [by_data.get(POOLED, {}).get(f"auroc:{name}") for name in classes])
            for model, by_data in evaluation.items()
        ],
        format_number,
    )


def label_counts(
    classes: Sequence[str], counts: NDArray[np.integer[Any]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of a table of each label's counts of images (K, 2, 2).

    >>> label_counts(["acl"], np.array([[[9, 1], [2, 8]]]))[1]
    [('acl', '8', '2', '1', '9')]
    """
    kinds = ("true positives", "false negatives", "false positives", "true negatives")
    rows = [
        (name, *map(str, (tp, fn, fp, tn)))
        for name, ((tn, fp), (fn, tp)) in zip(classes, counts.tolist(), strict=True)
    ]
    return ("label", *kinds), rows


def metrics_table(by_data: Mapping[str, Evaluation], *, of: str | None = None) -> Table:
    """One model: a row per metric, a column per data set.

    Args:
        by_data: what was found on each data set.
        of: only the metrics of this class, which is not named again; of none if empty.
    """
    known = dict.fromkeys(metric for found in by_data.values() for metric in found)
    metrics = [metric for metric in known if of in (None, metric.partition(":")[2])]
    return _table(
        [""] + [data_label(name) for name in by_data],
        [
            (
                metric_label(metric if of is None else metric.partition(":")[0]),
                [found.get(metric) for found in by_data.values()],
            )
            for metric in metrics
        ],
        format_number,
    )


def differences_table(rows: Iterable[tuple[str, Estimate]]) -> Table:
    """A row per comparison: the difference, with its sign."""
    named = [(name, [estimate]) for name, estimate in rows]
    return _table(["", "difference"], named, format_difference)


def data_names(evaluation: EvaluationByModel) -> tuple[str, ...]:
    """Pooled, mean of sites and each site, as far as any model was evaluated on them."""
    found = dict.fromkeys(name for by_data in evaluation.values() for name in by_data)
    first = [name for name in (POOLED, MEAN_OF_SITES) if name in found]
    return tuple(first + [name for name in found if name.startswith("site:")])


def subgroup_names(evaluation: EvaluationByModel) -> tuple[str, ...]:
    """The data sets `COLUMN:VALUE` that are no sites."""
    found = dict.fromkeys(name for by_data in evaluation.values() for name in by_data)
    return tuple(name for name in found if name not in data_names(evaluation))


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain aligned text; control characters of a name do not reach the terminal.

    >>> print(format_table(["site", "patients"], [["north", "46"], ["s", "7"]]))
    site   patients
    -----  --------
    north  46
    s      7
    """
    clean = [[_printable(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    clean.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in clean
    )


def print_table(table: Table) -> str:
    """A table of estimates as aligned text, its footnotes below."""
    body = format_table(
        table.header,
        [[name, *(format_cell(cell) for cell in cells)] for name, cells in table.rows],
    )
    notes = [f"[{number}] {_printable(note)}" for number, note in enumerate(table.notes, 1)]
    return "\n".join([body, *notes])


def format_cell(cell: Cell) -> str:
    """A cell on one line.

    >>> format_cell(Cell("0.838", "0.772 to 0.891", (1,)))
    '0.838 (0.772 to 0.891) [1]'
    """
    interval = f" ({cell.interval})" if cell.interval else ""
    return cell.value + interval + "".join(f" [{number}]" for number in cell.notes)


def format_estimate(estimate: Estimate) -> str:
    """An estimate in running text.

    >>> format_estimate(Estimate(0.8384, 0.7721, 0.8909))
    '0.838 (95 % interval 0.772 to 0.891)'
    >>> format_estimate(Estimate(None, reason="no patient of class fibrosis"))
    'not estimable (no patient of class fibrosis)'
    """
    if estimate.value is None:
        return f"{NOT_ESTIMABLE} ({estimate.reason})"
    interval = _interval(estimate, format_number)
    bounds = f"95 % interval {interval}" if interval else f"no interval: {estimate.reason}"
    return f"{format_number(estimate.value)} ({bounds})"


def format_number(value: float) -> str:
    """Three decimals."""
    return f"{value:.3f}"


def format_difference(value: float) -> str:
    """Three decimals with a sign, none for zero."""
    return f"{value:+.3f}" if round(value, 3) else "0.000"


def data_label(name: str) -> str:
    """A data set's name for people.

    >>> data_label("all"), data_label("site:north"), data_label("sex:F")
    ('all sites pooled', 'north', 'sex: F')
    """
    if name == POOLED:
        return "all sites pooled"
    if name == MEAN_OF_SITES:
        return "mean of sites"
    return name.removeprefix("site:") if name.startswith("site:") else name.replace(":", ": ", 1)


def metric_label(name: str) -> str:
    """A metric's name for people.

    >>> metric_label("macro_auroc"), metric_label("recall:fibrosis")
    ('macro AUROC', 'recall: fibrosis')
    """
    kind, _, class_name = name.partition(":")
    words = kind.replace("_", " ").replace("auroc", "AUROC")
    return f"{words}: {class_name}" if class_name else words


def _table(
    header: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Estimate | None]]],
    show: Callable[[float], str],
) -> Table:
    notes: dict[str, int] = {}  # reason -> number

    def cell(estimate: Estimate | None) -> Cell:
        if estimate is None:
            return Cell("-")
        reasons = [estimate.reason] if estimate.reason else []
        marks = tuple(notes.setdefault(reason, len(notes) + 1) for reason in reasons)
        if estimate.value is None:
            return Cell(NOT_ESTIMABLE, notes=marks)
        return Cell(show(estimate.value), _interval(estimate, show), marks)

    body = tuple((name, tuple(cell(estimate) for estimate in cells)) for name, cells in rows)
    return Table(tuple(header), body, tuple(notes))


def _interval(estimate: Estimate, show: Callable[[float], str]) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{show(estimate.low)} to {show(estimate.high)}"


def _printable(text: str) -> str:
    return "".join("?" if unicodedata.category(c).startswith("C") else c for c in text)

"""The report's figures as inline SVG: equal numbers give equal bytes; colours are the page's."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from common.metrics import Evaluation
from common.report.content import HEADLINE, EvaluationByModel
from common.report.text import data_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Drawn in these, then replaced by what the page defines: so figures follow light and dark.
INK, ACCENT, FAINT = "#010203", "#010204", "#010205"
_PAGE_COLOURS = {INK: "currentColor", ACCENT: "var(--accent)", FAINT: "var(--faint)"}

# Okabe & Ito's palette without its yellow: told apart by the colour-blind, on white and on black.
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ("-", "--", "-.", ":")
_PANELS_A_ROW = 3


def forest(evaluation: EvaluationByModel, data: Sequence[str], *, metric: str = HEADLINE) -> str:
    """SVG: a panel per data set, a row per model, a dot with its interval (hollow without)."""
    models = list(evaluation)
    columns = min(len(data), _PANELS_A_ROW)
    rows = -(-len(data) // columns)
    found = [
        estimate
        for by_data in evaluation.values()
        for name in data
        if (estimate := by_data.get(name, {}).get(metric)) is not None
    ]
    lowest = min([0.45, *(x for e in found for x in (e.value, e.low) if x is not None)])
    with _style("forest"):
        figure = _figure(9.0, rows * (0.7 + 0.27 * len(models)))
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for panel, name in zip(axes.flat, data, strict=False):
            _forest_panel(panel, [evaluation[model].get(name, {}) for model in models], metric)
            panel.set_title(data_label(name), fontsize=10, loc="left")
        for panel in axes.flat[len(data) :]:
            panel.set_visible(False)
        for panel in axes.flat[:columns]:
            panel.set_xlim(lowest - 0.03, 1.03)
        axes[0, 0].set_yticks(range(len(models)), models)
        axes[0, 0].set_ylim(len(models) - 0.4, -0.6)
        return _svg(figure)


def learning_curve(history: Mapping[int, Mapping[str, float]]) -> str:
    """SVG: one line per site over the rounds."""
    sites = list(dict.fromkeys(site for values in history.values() for site in values))
    with _style("learning-curve"):
        figure = _figure(9.0, 3.4)
        panel = figure.subplots()
        for number, site in enumerate(sites):
            points = [(r, values[site]) for r, values in sorted(history.items()) if site in values]
            panel.plot(
                [r for r, _ in points],
                [value for _, value in points],
                label=site,
                color=_LINES[number % len(_LINES)],
                linestyle=_DASHES[number // len(_LINES) % len(_DASHES)],
                linewidth=1.6,
                marker="o" if len(points) <= 30 else None,
                markersize=3,
            )
        panel.set_xlabel("round")
        panel.locator_params(axis="x", integer=True)
        panel.grid(axis="y", color=FAINT, linewidth=0.6)
        panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        return _svg(figure)


def _forest_panel(panel: Any, found: Sequence[Evaluation], metric: str) -> None:
    panel.axvline(0.5, color=FAINT, linewidth=1, linestyle=(0, (3, 3)), zorder=0)
    panel.tick_params(left=False)
    for row, evaluation in enumerate(found):
        estimate = evaluation.get(metric)
        colour = ACCENT if row == 0 else INK  # the first model is the report's subject
        if estimate is None or estimate.value is None:
            panel.text(0.5, row, "  not estimable", color=INK, fontsize=8, va="center")
            continue
        if estimate.low is not None and estimate.high is not None:
            panel.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=1.6)
        filled = colour if estimate.low is not None else "none"
        panel.plot(
            [estimate.value],
            [row],
            marker="o",
            markersize=5.5,
            markerfacecolor=filled,
            markeredgecolor=colour,
        )


def _figure(width_in: float, height_in: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def _style(salt: str) -> AbstractContextManager[None]:
    """Matplotlib's defaults whatever the machine's own, with our few changes."""
    from matplotlib import style

    ours = {
        "svg.hashsalt": salt,
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 9.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
    }
    return style.context(["default", ours])


def _svg(figure: Figure) -> str:
    """The figure's bare <svg> element, free of dates, versions and names that would clash."""
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<g id=\"[^\"]*\"", "<g", text)
    text = re.sub(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1">', text, count=1)
    for drawn, shown in _PAGE_COLOURS.items():
        text = text.replace(drawn, shown)
    return text

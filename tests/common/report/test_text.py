"""Numbers and tables as a terminal shows them."""

from __future__ import annotations

import numpy as np

from common.metrics import Estimate
from common.report import (
    data_names,
    format_table,
    label_counts,
    labels_table,
    metrics_table,
    models_table,
    print_table,
)
from common.report.text import differences_table, format_difference, subgroup_names

GOOD = Estimate(0.8384, 0.7721, 0.8909)
SHORT = Estimate(0.7012, reason="fewer than 10 patients of class PA")
NONE = Estimate(None, reason="no patient of class AP")
EVALUATION = {
    "federated": {
        "site:south": {"macro_auroc": NONE},
        "sex:F": {"macro_auroc": GOOD},
        "all": {"macro_auroc": GOOD},
    },
    "central": {"all": {"macro_auroc": SHORT}, "mean-of-sites": {"macro_auroc": SHORT}},
}


def test_rows_are_aligned_and_hold_no_trailing_blanks() -> None:
    """Each column starts at one place, whatever the length of the cells."""
    lines = format_table(["a", "long name"], [["longer", "1"], ["x", ""]]).splitlines()
    assert lines == ["a       long name", "------  ---------", "longer  1", "x"]


def test_control_characters_do_not_reach_the_terminal() -> None:
    """A site cannot name itself so that the table is repainted."""
    assert "\x1b" not in format_table(["site"], [["\x1b[2Jnorth"], ["\u202eabc"]])
    evil = {"m": {"all": {"macro_auroc": Estimate(None, reason="\x1b[31m")}}}
    assert "\x1b" not in print_table(models_table(evil, ["all"]))


def test_data_sets_come_pooled_mean_sites_and_subgroups_apart() -> None:
    """The columns stand in one order whatever the order of evaluation."""
    assert data_names(EVALUATION) == ("all", "mean-of-sites", "site:south")
    assert subgroup_names(EVALUATION) == ("sex:F",)


def test_models_table_shows_values_intervals_and_reasons() -> None:
    """A row per model; each reason is one numbered note however often it occurs."""
    assert print_table(models_table(EVALUATION, data_names(EVALUATION))).splitlines() == [
        "           all sites pooled        mean of sites  south",
        "---------  ----------------------  -------------  -----------------",
        "federated  0.838 (0.772 to 0.891)  -              not estimable [1]",
        "central    0.701 [2]               0.701 [2]      -",
        "[1] no patient of class AP",
        "[2] fewer than 10 patients of class PA",
    ]


def test_metrics_table_has_a_row_per_metric() -> None:
    """One model's metrics, each data set a column, with the names people use."""
    table = metrics_table({"all": {"accuracy": GOOD, "recall:AP": NONE}, "site:n": {}})
    assert table.header == ("", "all sites pooled", "n")
    assert [name for name, _ in table.rows] == ["accuracy", "recall: AP"]


def test_metrics_table_of_one_label_or_of_none() -> None:
    """Only the metrics of one label, or only those of no label in particular."""
    found = {"all": {"accuracy": GOOD, "recall:AP": NONE, "recall:PA": GOOD, "auroc:AP": GOOD}}
    rows = {of: [name for name, _ in metrics_table(found, of=of).rows] for of in ("", "AP", "x")}
    assert rows == {"": ["accuracy"], "AP": ["recall", "AUROC"], "x": []}


def test_labels_table_has_a_column_per_label() -> None:
    """Each model's AUROC of each label on all sites; what was not found is a dash."""
    found = {
        "federated": {"all": {"auroc:acl": GOOD, "auroc:b:c": SHORT}},
        "central": {"sex:F": {}},
    }
    assert print_table(labels_table(found, ("acl", "b:c"))).splitlines() == [
        "           acl                     b:c",
        "---------  ----------------------  ---------",
        "federated  0.838 (0.772 to 0.891)  0.701 [1]",
        "central    -                       -",
        "[1] fewer than 10 patients of class PA",
    ]


def test_label_counts_name_right_and_wrong() -> None:
    """Each label's row reads true positives, false negatives, false positives, true negatives."""
    counts = np.array([[[9, 1], [2, 8]], [[5, 0], [0, 15]]])
    header, rows = label_counts(("acl", "meniscus"), counts)
    assert header[1:] == (
        "true positives",
        "false negatives",
        "false positives",
        "true negatives",
    )
    assert rows == [("acl", "8", "2", "1", "9"), ("meniscus", "15", "0", "0", "5")]


def test_differences_carry_their_sign() -> None:
    """A gain has a plus, a loss a minus, and what rounds to zero neither."""
    assert [format_difference(x) for x in (0.0104, -0.0104, -0.0001)] == [
        "+0.010",
        "-0.010",
        "0.000",
    ]
    table = differences_table([("a - b", Estimate(0.02, -0.01, 0.05))])
    assert "+0.020 (-0.010 to +0.050)" in print_table(table)

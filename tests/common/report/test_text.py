"""Numbers and tables as a terminal shows them."""

from __future__ import annotations

from common.metrics import Estimate
from common.report import data_names, format_table, metrics_table, models_table, print_table
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


def test_differences_carry_their_sign() -> None:
    """A gain has a plus, a loss a minus, and what rounds to zero neither."""
    assert [format_difference(x) for x in (0.0104, -0.0104, -0.0001)] == [
        "+0.010",
        "-0.010",
        "0.000",
    ]
    table = differences_table([("a - b", Estimate(0.02, -0.01, 0.05))])
    assert "+0.020 (-0.010 to +0.050)" in print_table(table)

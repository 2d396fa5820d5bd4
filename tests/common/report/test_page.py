"""The page: complete, honest about what is missing, self-contained, and always the same bytes."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import BadInput
from common.metrics import Estimate
from common.report import (
    Comparison,
    PrivacyStatement,
    ReportInput,
    RunFacts,
    SiteRow,
    render_report,
    write_report,
)

HOSTILE = "<script>alert('x')</script>\"&$x$"


def report_input(**changed: Any) -> ReportInput:
    """A small study with an interval, a value without one, and one that is not estimable."""
    good = Estimate(0.8384, 0.7721, 0.8909)
    bare = Estimate(0.7012, reason="fewer than 10 patients of class PA")
    none = Estimate(None, reason="no patient of class AP")
    given: dict[str, Any] = {
        "title": "Chest X-ray",
        "run": RunFacts(
            study="chest-xray",
            engine="inline",
            seed=7,
            rounds=2,
            device="cpu",
            seconds=83.21,
            versions={"torch": "2.14.1"},
            hashes={"weights_sha256": "ab12cd"},
        ),
        "data_label": "real",
        "data_description": "152 patients, 4 sites.",
        "privacy": PrivacyStatement(
            enabled=True,
            guarantee="none (seeded)",
            unit="patient",
            delta="1e-5 at every site",
            adjacency="add or remove one patient",
            trust_model="local",
            randomness="seeded for testing",
            together="All folds together cost epsilon 19.1.",
            not_covered=("validation metrics",),
        ),
        "partition": "site   patients\nnorth  46",
        "sites": (SiteRow("north", 46, 92, 2, "7.98"), SiteRow("south", None, None, 2, "7.91")),
        "task": "multi-class",
        "unit": "patient",
        "classes": ("AP", "PA"),
        "evaluation": {
            "federated": {
                "all": {"macro_auroc": good, "recall:AP": good},
                "mean-of-sites": {"macro_auroc": Estimate(0.75, reason="no interval at south")},
                "site:north": {"macro_auroc": bare},
                "site:south": {"macro_auroc": none},
                "sex:F": {"macro_auroc": good},
            },
            "central": {"all": {"macro_auroc": Estimate(0.871, 0.801, 0.911)}},
        },
        "resamples": 1000,
        "comparisons": (
            Comparison(
                "federated", "central", "all", "macro_auroc", Estimate(-0.0326, -0.0512, -0.0101)
            ),
        ),
        "confusion": {"federated": np.array([[31, 4], [5, 27]])},
        "history": {1: {"north": 0.5432, "south": 0.4}, 2: {"north": 0.7654, "south": 0.6}},
        "history_caption": "Macro AUROC of the incoming model.",
        "not_run": ("MRNet: no data here.",),
        "limitations": ("One seed.",),
    }
    return ReportInput(**(given | changed))


def exams_input(**changed: Any) -> ReportInput:
    """A small study of knee exams with two labels."""
    good = Estimate(0.9012, 0.8504, 0.9423)
    metrics = {
        "accuracy": good,
        "macro_auroc": good,
        "recall:abnormal": good,
        "recall:acl": Estimate(0.6111),
        "specificity:acl": Estimate(0.7222),
        "auroc:abnormal": Estimate(0.9555, 0.9001, 0.9777),
        "auroc:acl": Estimate(0.8333, reason="fewer than 10 exams with acl"),
    }
    given: dict[str, Any] = {
        "task": "multi-label",
        "unit": "exam",
        "classes": ("abnormal", "acl"),
        "evaluation": {"federated": {"all": metrics}, "central": {"all": metrics}},
        "confusion": {
            name: np.array([[[11, 12], [13, 14]], [[21, 22], [23, 24]]])
            for name in ("federated", "central")
        },
        "data_description": "50 exams.",
        "comparisons": (),
        "limitations": (),
    }
    return report_input(**(given | changed))


class Page(HTMLParser):
    """Collects the tags and the words of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_every_given_word_and_number_is_shown() -> None:
    """Nothing that was put in is left out: names, intervals, reasons, hashes, what was not run."""
    text = Page(render_report(report_input())).text
    for expected in (
        "Chest X-ray",
        "real data",
        "152 patients, 4 sites.",
        "0.838 0.772 to 0.891",
        "fewer than 10 patients of class PA",
        "no patient of class AP",
        "not estimable",
        "no interval at south",
        "-0.033 -0.051 to -0.010",
        "sex: F",
        "recall: AP",
        "not released",
        "7.98",
        "Macro AUROC of the incoming model.",
        "MRNet: no data here.",
        "One seed.",
        "1000 resamples",
        "83.2 s",
        "2.14.1",
        "ab12cd",
        "site patients north 46",
        "test patients of all sites",
        "10 patients of each class involved",
        "within each site and class",
    ):
        assert expected in text, expected
    assert "exam" not in text


def test_labels_have_tables_of_their_own() -> None:
    """Multi-label: the AUROC of each label beside the mean, then each label's metrics apart."""
    html = render_report(exams_input())
    results = Page(html[html.index("<h2>Results") : html.index("<h2>Every metric")]).text
    assert "AUROC of each label" in results
    assert "abnormal acl federated 0.956 0.900 to 0.978 0.833 1 central" in results
    assert "fewer than 10 exams with acl" in results
    every = html[html.index("<h2>Every metric") : html.index("<h2>Confusion")]
    overall, abnormal, acl = re.findall(r"<table.*?</table>", every, flags=re.DOTALL)[:3]
    assert re.findall(r'<th scope="row">(.*?)</th>', overall) == ["accuracy", "macro AUROC"]
    for table, name, metrics in (
        (abnormal, "abnormal", ["recall", "AUROC"]),
        (acl, "acl", ["recall", "specificity", "AUROC"]),
    ):
        assert f'aria-label="federated, label {name}, with' in table
        assert re.findall(r'<th scope="row">(.*?)</th>', table) == metrics
    assert "AUROC of each label" not in render_report(report_input())


def test_each_label_has_its_counts() -> None:
    """Multi-label: two by two for each model and label, truth in rows, instead of one matrix."""
    html = render_report(exams_input())
    confusion = html[html.index("<h2>Confusion") : html.index("<h2>Learning curve")]
    tables = re.findall(r"<table.*?</table>", confusion, flags=re.DOTALL)
    assert [Page(table).text for table in tables] == [
        f"{model}: {label} true \\ said without with without {n}1 {n}2 with {n}3 {n}4"
        for model in ("federated", "central")
        for n, label in ((1, "abnormal"), (2, "acl"))
    ]


def test_exams_are_called_exams() -> None:
    """Where the data don't say whose an exam is, nothing on the page counts or draws patients."""
    given = report_input().privacy
    exam = replace(given, unit="exam", adjacency="add or remove one exam")
    compared = report_input().comparisons
    given_exams = exams_input(privacy=exam, partition="", comparisons=compared)
    text = Page(render_report(given_exams)).text
    for expected in (
        "test exams of all sites",
        "1000 resamples of exams",
        "both models on the same resamples of exams",
        "all images of a drawn exam",
        "within each site and combination of labels",
        "10 exams with and as many without each label involved",
        "however many exams it has",
        "the mean over the labels of (recall + specificity) / 2",
    ):
        assert expected in text, expected
    # Said of people: whose images, and how the coverage was measured.
    rest = text.replace("of real patients", "").replace("15 patients in each of two classes", "")
    assert "patient" not in rest
    html = render_report(exams_input())
    sites = html[html.index("<h2>Sites") : html.index("<h2>How the data were divided")]
    assert '<th scope="col">exams</th>' in sites


def test_division_among_sites_is_shown_as_it_was_printed() -> None:
    """The table keeps its lines; a study whose sites are the data's own has no such section."""
    html = render_report(report_input(partition="site   patients\nnorth  46 <b>"))
    assert "site   patients\nnorth  46 &lt;b&gt;</pre>" in html
    assert "<pre" not in render_report(report_input(partition=""))


def test_summary_says_in_words_what_was_found() -> None:
    """The first section holds the headline with its interval, the comparison and the guarantee."""
    html = render_report(report_input())
    short = Page(html[html.index("In short") : html.index("<h2>Results")]).text
    assert "federated reaches a macro AUROC of 0.838 (95 % interval 0.772 to 0.891)" in short
    assert "-0.033 (95 % interval -0.051 to -0.010): below zero" in short
    assert "Privacy: trained with differential privacy; guarantee: none (seeded)" in short


@pytest.mark.parametrize("label", ["phantom", "scaled phantom"])
def test_phantom_results_are_called_phantom_results(label: str) -> None:
    """A phantom study says so in its label and in the first words of its summary."""
    text = Page(render_report(report_input(data_label=label))).text
    assert f"{label} data" in text
    assert "say nothing about patients" in text
    assert "real patients" not in text


def test_no_epsilon_without_what_it_means() -> None:
    """Unit, delta, adjacency, trust model and randomness stand with the epsilons."""
    html = render_report(report_input())
    sites = Page(html[html.index("<h2>Sites") : html.index("<h2>Privacy")]).text
    assert "7.98" in sites
    for term in (
        "unit patient",
        "delta 1e-5",
        "add or remove one patient",
        "local",
        "seeded for testing",
    ):
        assert term in sites, term


def test_an_interval_that_holds_zero_shows_no_difference() -> None:
    """A difference is called one only where the interval leaves zero out."""
    unsure = Comparison("federated", "central", "all", "macro_auroc", Estimate(0.01, -0.02, 0.04))
    assert "holds zero: no difference shown" in render_report(report_input(comparisons=(unsure,)))


def test_a_missing_headline_is_said() -> None:
    """Without an estimable headline the summary gives the reason instead of a number."""
    reason = Estimate(None, reason="no patient of class AP")
    html = render_report(report_input(evaluation={"federated": {"all": {"macro_auroc": reason}}}))
    assert "macro AUROC of not estimable (no patient of class AP)" in Page(html).text


def test_equal_inputs_give_equal_bytes() -> None:
    """Nothing but the input decides the page: no date, no order of a set, no counter."""
    assert render_report(report_input()) == render_report(report_input())


def test_a_machines_own_matplotlib_settings_change_nothing() -> None:
    """A user's matplotlibrc does not reach the figures."""
    import matplotlib as mpl

    plain = render_report(report_input())
    with mpl.rc_context({"font.size": 20, "lines.linewidth": 9, "svg.fonttype": "path"}):
        assert render_report(report_input()) == plain


def test_page_needs_nothing_else() -> None:
    """No script, no address, no file: only references inside the page."""
    html = render_report(report_input())
    page = Page(html)
    used = {tag for tag, _ in page.tags}
    assert not used & {"script", "link", "iframe", "img", "object", "image", "base", "form"}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"href", "src", "xlink:href", "action", "srcset"}:
                assert value is not None
                assert value.startswith("#")
    assert not re.search(r"https?:|@import|//[a-z]|url\((?!#)", html)
    (policy,) = [
        attributes["content"]
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_page_can_be_read_without_seeing_it() -> None:
    """Tables are named and have headers with a scope; figures have a text; ids are unique."""
    page = Page(render_report(report_input()))
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    tables = [attributes for tag, attributes in page.tags if tag == "table"]
    captions = [tag for tag, _ in page.tags if tag == "caption"]
    assert len([each for each in tables if each.get("aria-label")]) + len(captions) == len(tables)
    figures = [
        attributes["aria-label"]
        for _, attributes in page.tags
        if attributes.get("role") == "img" and attributes["aria-label"]
    ]
    assert len(figures) == [tag for tag, _ in page.tags].count("svg") == 2
    assert "round 2: north 0.765, south 0.600" in str(figures[1])
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identities) == len(set(identities))


def with_hostile_text(value: Any) -> Any:
    """The same value with hostile text in every string that a person or a site may choose."""
    if isinstance(value, str):
        return HOSTILE
    if is_dataclass(value) and not isinstance(value, type):
        kept = {"data_label", "task", "data", "metric", "evaluation", "comparisons"}
        return replace(
            value,
            **{
                field.name: with_hostile_text(getattr(value, field.name))
                for field in fields(value)
                if field.name not in kept
            },
        )
    if isinstance(value, tuple):
        return tuple(with_hostile_text(each) for each in value)
    if isinstance(value, dict):
        return {with_hostile_text(key): with_hostile_text(each) for key, each in value.items()}
    return value


def test_no_text_becomes_markup() -> None:
    """Names, reasons and sentences are shown as they are, never run or rendered as mathematics."""
    bad = Estimate(0.6, reason=HOSTILE)
    given = with_hostile_text(report_input())
    given = replace(
        given,
        evaluation={
            HOSTILE: {
                "all": {"macro_auroc": bad, f"recall:{HOSTILE}": bad},
                f"site:{HOSTILE}": {"macro_auroc": bad},
            }
        },
        comparisons=(Comparison(HOSTILE, HOSTILE, f"site:{HOSTILE}", f"auroc:{HOSTILE}", bad),),
    )
    html = render_report(given)
    assert "<script" not in html
    assert not [tag for tag, _ in Page(html).tags if tag == "script"]
    assert HOSTILE in Page(html).text
    assert HOSTILE in Page(html[html.index("<svg") : html.index("</svg>")]).text


def test_empty_parts_are_left_out() -> None:
    """A report without history, comparisons or matrices has no empty section."""
    html = render_report(
        report_input(
            history={},
            comparisons=(),
            confusion={},
            partition="",
            sites=(),
            not_run=(),
            limitations=(),
        )
    )
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == [
        "In short",
        "Results",
        "Subgroups",
        "Every metric",
        "Privacy",
        "How to read the intervals",
        "How this was made",
    ]


def test_writes_one_file_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """The page replaces an older one in one step; a folder that is not there is refused."""
    page = tmp_path / "report.html"
    page.write_text("old")
    write_report(page, report_input())
    assert page.read_text(encoding="utf-8") == render_report(report_input())
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(BadInput, match="can be written"):
        write_report(tmp_path / "missing" / "report.html", report_input())
    (tmp_path / "taken").mkdir()
    with pytest.raises(BadInput, match="can be written"):
        write_report(tmp_path / "taken", report_input())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "taken"]

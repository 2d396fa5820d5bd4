"""What a study found, for people: one page and the terminal's tables."""

from common.report.content import (
    HEADLINE,
    STRATUM,
    Comparison,
    DataLabel,
    EvaluationByModel,
    PrivacyStatement,
    ReportInput,
    RunFacts,
    SiteRow,
    Task,
)
from common.report.page import render_report, write_report
from common.report.text import (
    data_names,
    format_estimate,
    format_table,
    label_counts,
    labels_table,
    metrics_table,
    models_table,
    print_table,
)

__all__ = [
    "HEADLINE",
    "STRATUM",
    "Comparison",
    "DataLabel",
    "EvaluationByModel",
    "PrivacyStatement",
    "ReportInput",
    "RunFacts",
    "SiteRow",
    "Task",
    "data_names",
    "format_estimate",
    "format_table",
    "label_counts",
    "labels_table",
    "metrics_table",
    "models_table",
    "print_table",
    "render_report",
    "write_report",
]

"""How good a model is, on whose images, and how sure we can be."""

from common.metrics.bootstrap import (
    MEAN_OF_SITES,
    MIN_PATIENTS,
    POOLED,
    Estimate,
    Evaluation,
    compare,
    evaluate,
    evaluate_by_group,
    evaluate_by_site,
)
from common.metrics.predictions import Predictions, Unit, concatenate
from common.metrics.weighted import confusion_matrix, metric_names, point_metrics

__all__ = [
    "MEAN_OF_SITES",
    "MIN_PATIENTS",
    "POOLED",
    "Estimate",
    "Evaluation",
    "Predictions",
    "Unit",
    "compare",
    "concatenate",
    "confusion_matrix",
    "evaluate",
    "evaluate_by_group",
    "evaluate_by_site",
    "metric_names",
    "point_metrics",
]

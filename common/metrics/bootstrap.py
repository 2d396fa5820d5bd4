"""Intervals that know that images of a patient belong together: a stratified patient bootstrap.

Patients (exams, where the data don't say whose they are) are drawn with replacement within each
stratum, a site and a class: the patient's most frequent label, or in multi-label tasks combination
of labels, of equals the first. All images of a drawn patient come along. Of n patients n - 1 are
drawn, each with weight n / (n - 1) (Rao & Wu, JASA 1988; Rao, Wu & Yue, Survey Methodology 1992):
drawing n understates the variance by (n - 1) / n, and hospitals have few patients of a class (4 a
stratum: it covered 89 % instead of 93 %; 2: 77 % instead of 90 %). Strata of a single patient are
joined by class, and those still alone with one another, since alone they would never vary.
Intervals are 95 % percentile intervals over the resamples where the value is defined. They describe
which test patients were met, given each site's mix of classes (which counts most for precision: of
60 patients with a random mix it covered 85 %), not the chance in training.

When a number is not given
| situation | value | interval |
|---|---|---|
| nothing to count (no patient of the class, nothing predicted as the class) | none | none |
| fewer than 10 patients of a class involved | given | none |
| multi-label: fewer than 10 with, or without, a label involved | given | none |
| every resample gives the same value, as at an AUROC of 1 | given | none |
`recall:X` involves the patients with an image of X, `specificity:X` those with an image that is not
of X, `auroc:X` both; `precision:X` those with an image of X and those with an image predicted as X;
`balanced_accuracy` and `macro_auroc` every class (multi-label: with and without it); `accuracy`
what of that occurs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import BadInput
from common.metrics.predictions import Predictions
from common.metrics.weighted import Values, Weights, metric_names, weighted_metrics

MIN_PATIENTS = 10  # of a class: below, percentile intervals cover far less than they claim
LEVEL = (0.025, 0.975)
CHUNK = 50  # resamples held in memory at once; part of the random stream, so it never changes

WORDS = {  # by multi-label: having a class, not having it, being said to have it
    False: ("of class {}", "of a class other than {}", "predicted as {}"),
    True: ("with the label {}", "without the label {}", "predicted to have the label {}"),
}

POOLED = "all"
MEAN_OF_SITES = "mean-of-sites"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval, or the reason why one of them is missing."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    def as_json(self) -> dict[str, float | str | None]:
        """`{value, low, high}`, and `note` where something is missing or left out.

        >>> Estimate(None, reason="no patient of class fibrosis").as_json()
        {'value': None, 'low': None, 'high': None, 'note': 'no patient of class fibrosis'}
        """
        numbers: dict[str, float | str | None]
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return numbers | {"note": self.reason} if self.reason else numbers


Evaluation = Mapping[str, Estimate]  # metric -> estimate


def evaluate(predictions: Predictions, *, seed: int, resamples: int = 1000) -> Evaluation:
    """Every metric of `predictions` with its 95 % interval from `resamples` (>= 100) resamples."""
    (sampled,) = _resampled(predictions, [_every_image(predictions)], seed, resamples)
    return _estimates(predictions, sampled)


def evaluate_by_site(
    predictions: Predictions, *, seed: int, resamples: int = 1000
) -> dict[str, Evaluation]:
    """The evaluations `all`, `mean-of-sites` and `site:NAME`, all from the same resamples.

    `mean-of-sites` is the unweighted mean of the site values over the sites that have one; its
    reason names the sites left out. It has an interval where every site that enters has one.
    """
    names = predictions.site_names
    masks = [predictions.sites == name for name in names]
    views = [_every_image(predictions), *masks]
    pooled, *by_site = _resampled(predictions, views, seed, resamples)
    sites = {
        name: _estimates(predictions.where(mask), sampled)
        for name, mask, sampled in zip(names, masks, by_site, strict=True)
    }
    mean = {
        metric: _mean_of_sites(
            {name: sites[name][metric] for name in names},
            {name: sampled[:, column] for name, sampled in zip(names, by_site, strict=True)},
        )
        for column, metric in enumerate(metric_names(predictions.classes))
    }
    return {
        POOLED: _estimates(predictions, pooled),
        MEAN_OF_SITES: mean,
        **{f"site:{name}": sites[name] for name in names},
    }


def evaluate_by_group(
    predictions: Predictions, column: str, *, seed: int, resamples: int = 1000
) -> dict[str, Evaluation]:
    """An evaluation `COLUMN:VALUE` for each value of a subgroup column; BadInput if unknown."""
    return {
        f"{column}:{value}": evaluate(
            predictions.in_group(column, value), seed=seed, resamples=resamples
        )
        for value in np.unique(predictions.group(column)).tolist()
    }


def compare(
    a: Predictions,
    b: Predictions,
    *,
    metric: str = "macro_auroc",
    seed: int,
    resamples: int = 1000,
) -> Estimate:
    """How much higher `metric` is for `a` than for `b`, two models on the same images.

    Paired: each resample of patients scores both. Raises BadInput where the images, their order
    or the classes differ, or the metric is unknown.
    """
    if not _same_images(a, b):
        raise BadInput(
            "Two models' predictions of the same images in the same order were expected; labels, "
            "patients, sites or classes differ. Compare models on one and the same test set."
        )
    names = metric_names(a.classes)
    if metric not in names:
        raise BadInput(f"A metric was expected (one of {', '.join(names)}); got {metric!r}.")
    column = names.index(metric)
    scores = [weighted_metrics(model) for model in (a, b)]
    once = np.ones((1, len(a)))
    value = scores[0](once)[0, column] - scores[1](once)[0, column]
    differences = [
        scores[0](weights)[:, column] - scores[1](weights)[:, column]
        for weights in _patient_resamples(a, seed, resamples)
    ]
    reason = _missing(a)[metric] or _missing(b)[metric]
    return _estimate(value, np.concatenate(differences), reason)


def _resampled(
    predictions: Predictions, views: Sequence[NDArray[np.bool_]], seed: int, resamples: int
) -> list[Values]:
    """For each view (a mask of images) the metrics (R, M), every view on the same resamples."""
    scores = [weighted_metrics(predictions.where(view)) for view in views]
    chunks: list[list[Values]] = [[] for _ in views]
    for weights in _patient_resamples(predictions, seed, resamples):
        for view, score, values in zip(views, scores, chunks, strict=True):
            values.append(score(weights[:, view]))
    return [np.concatenate(values) for values in chunks]


def _patient_resamples(predictions: Predictions, seed: int, resamples: int) -> Iterator[Weights]:
    """Chunks (r, N) of the weight of each image, `resamples` rows in all."""
    if resamples < 100:
        raise BadInput(
            f"At least 100 resamples were expected for a 95 % interval; got {resamples}. "
            "Use the default of 1000."
        )
    generator = np.random.default_rng(seed)
    patient = predictions.patient_index
    strata = _strata(predictions)
    for done in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - done)
        weights = np.ones((rows, patient.max(initial=-1) + 1))  # (r, patients)
        for members in strata:
            n = len(members)
            if n > 1:
                drawn = generator.integers(n, size=(rows, n - 1)) + np.arange(rows)[:, None] * n
                times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
                weights[:, members] = times * (n / (n - 1))
        yield weights[:, patient]


def _strata(predictions: Predictions) -> list[NDArray[np.intp]]:
    """The patients of each site and class in a fixed order, lone ones joined."""
    patient = predictions.patient_index
    kinds, kind = np.unique(predictions.labels, axis=0, return_inverse=True)  # classes, or rows
    patients, classes = patient.max(initial=-1) + 1, len(kinds)
    pairs, times = np.unique(patient * classes + kind.ravel(), return_counts=True)
    ranked = pairs[np.lexsort((-times, pairs // classes))]  # each patient's kinds, frequent first
    majority = ranked[np.unique(ranked // classes, return_index=True)[1]] % classes  # (patients,)
    names, site_of_image = np.unique(predictions.sites, return_inverse=True)
    site = np.zeros(patients, dtype=np.intp)
    site[patient] = site_of_image
    stratum = site * classes + majority
    for joined in (len(names) * classes + majority, np.full(patients, (len(names) + 1) * classes)):
        stratum = np.where(np.bincount(stratum)[stratum] == 1, joined, stratum)
    return [np.flatnonzero(stratum == each) for each in np.unique(stratum)]


def _estimates(predictions: Predictions, sampled: Values) -> Evaluation:
    """Each metric's value, and its interval unless a reason forbids one."""
    (values,) = weighted_metrics(predictions)(np.ones((1, len(predictions))))
    missing = _missing(predictions)
    return {
        name: _estimate(values[column], sampled[:, column], missing[name])
        for column, name in enumerate(metric_names(predictions.classes))
    }


def _estimate(value: float, sampled: NDArray[np.float64], missing: str) -> Estimate:
    if np.isnan(value):
        return Estimate(None, reason=missing)
    if missing:
        return Estimate(float(value), reason=missing)
    low, high = _percentiles(sampled)
    if low == high:
        return Estimate(float(value), reason="every resample gives the same value")
    return Estimate(float(value), low, high)


def _percentiles(sampled: NDArray[np.float64]) -> tuple[float, float]:
    """The interval's ends, without the last digits that depend on the order of summation."""
    low, high = np.nanquantile(sampled, LEVEL).round(12)
    return float(low), float(high)


def _mean_of_sites(
    estimates: Mapping[str, Estimate], sampled: Mapping[str, NDArray[np.float64]]
) -> Estimate:
    """The unweighted mean over the sites that have a value."""
    values = {name: e.value for name, e in estimates.items() if e.value is not None}
    if not values:
        return Estimate(None, reason="no site has a value")
    left_out = [name for name in estimates if name not in values]
    without = [name for name in values if estimates[name].low is None]
    notes = [f"without a value at {', '.join(left_out)}"] if left_out else []
    value = float(np.mean(list(values.values())))
    if without:
        notes.append(f"no interval at {', '.join(without)}")
        return Estimate(value, reason="; ".join(notes))
    low, high = _percentiles(np.mean([sampled[name] for name in values], axis=0))
    return Estimate(value, low, high, "; ".join(notes))


def _missing(predictions: Predictions) -> dict[str, str]:
    """For each metric why it has no value or no interval; empty where nothing is missing."""
    patient, unit = predictions.patient_index, predictions.unit
    said_of, said_of_others, said_as = WORDS[predictions.multi_label]

    def patients(images: NDArray[np.bool_], words: str) -> list[tuple[int, str]]:
        """For each class (a column) how many patients have such an image, and what that is."""
        return [
            (len(np.unique(patient[images[:, k]])), words.format(name))
            for k, name in enumerate(predictions.classes)
        ]

    def shortage(*needs: tuple[int, str]) -> str:
        """What is short of patients, the scarcest first; empty where all are enough."""
        number, what = min(needs, key=lambda need: need[0], default=(0, "at all"))
        if number == 0:
            return f"no {unit} {what}"
        return f"fewer than {MIN_PATIENTS} {unit}s {what}" if number < MIN_PATIENTS else ""

    labelled = patients(predictions.labelled, said_of)
    others = patients(~predictions.labelled, said_of_others)
    as_class = patients(predictions.predicted, said_as)
    # Multi-class: where every class has its patients, so have the others of each.
    reasons = {
        "accuracy": shortage(*[need for need in labelled + others if need[0] > 0]),
        "balanced_accuracy": shortage(*labelled, *others),
        "macro_auroc": shortage(*labelled, *others),
    }
    for k, name in enumerate(predictions.classes):
        reasons[f"precision:{name}"] = shortage(as_class[k], labelled[k])
        reasons[f"recall:{name}"] = shortage(labelled[k])
        reasons[f"specificity:{name}"] = shortage(others[k])
        reasons[f"auroc:{name}"] = shortage(labelled[k], others[k])
    return reasons


def _every_image(predictions: Predictions) -> NDArray[np.bool_]:
    return np.ones(len(predictions), dtype=np.bool_)


def _same_images(a: Predictions, b: Predictions) -> bool:
    return a.classes == b.classes and all(
        np.array_equal(ours, theirs)
        for ours, theirs in (
            (a.labels, b.labels),
            (a.patients, b.patients),
            (a.sites, b.sites),
        )
    )

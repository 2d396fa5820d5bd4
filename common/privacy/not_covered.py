"""What could leave a site or move a result, and what is done about each: decided here, once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from common.privacy.epsilon import Unit


class NotCovered(StrEnum):
    """What differential privacy of the training leaves open, by name."""

    RELEASED_METRICS = "released-metrics"
    RELEASED_COUNTS = "released-counts"
    DECLARED_NUMBER = "declared-number"
    PARTICIPATION = "participation"
    CHOICES = "choices"
    ROUNDING = "rounding"
    SEVERAL_SITES = "several-sites"
    SEVERAL_EXAMS = "several-exams"
    SEVERAL_IMAGES = "several-images"


NOT_COVERED = MappingProxyType(
    {
        NotCovered.RELEASED_METRICS: "metrics of the incoming model that a site's policy releases "
        "(exact values of test patients)",
        NotCovered.RELEASED_COUNTS: "numbers of patients and images that a site's policy releases",
        NotCovered.DECLARED_NUMBER: "the declared number of patients of each site (public by "
        "agreement)",
        NotCovered.PARTICIPATION: "which sites took part in which round, and why a site refuses: "
        "a refusal for its budget can tell whether a patient was in an earlier study",
        NotCovered.CHOICES: "choices made after looking at results: learning rates, number of "
        "rounds, which model to keep",
        NotCovered.ROUNDING: "weights made absurd on purpose, with which rounding can move a "
        "patient's gradient by who shares its batch; privacy.engine plain has no such batches",
        NotCovered.SEVERAL_SITES: "a patient with images at two sites: their epsilons add up",
        NotCovered.SEVERAL_EXAMS: "a patient with several exams, where exams are what is hidden",
        NotCovered.SEVERAL_IMAGES: "a patient with several images, where images are what is hidden",
    }
)
"""In every report, in these words."""


def names_not_covered(unit: Unit) -> tuple[NotCovered, ...]:
    """What a promise to each `unit` leaves open, whatever a site releases besides."""
    only = {NotCovered.SEVERAL_EXAMS: Unit.EXAM, NotCovered.SEVERAL_IMAGES: Unit.IMAGE}
    return tuple(name for name in NotCovered if only.get(name, unit) is unit)


def not_covered(unit: Unit) -> tuple[str, ...]:
    """The same in sentences, as reports print them."""
    return tuple(NOT_COVERED[name] for name in names_not_covered(unit))


class Decision(StrEnum):
    """What is done about a quantity that depends on patients, or could."""

    OFF = "off"  # it is neither computed from patients nor sent
    PUBLIC = "public"  # it is agreed upon beforehand, or follows from what is
    CHARGED = "charged"  # it is noised, and the ledger counts it
    NOT_COVERED = "not covered"  # it may leave as it is, and every report says so


@dataclass(frozen=True, slots=True)
class Decided:
    """One quantity. `carries` names the fields of messages and statements that hold it."""

    name: str
    decision: Decision
    why: str
    carries: tuple[str, ...] = ()


DECIDED: tuple[Decided, ...] = (
    Decided(
        "trained weights",
        Decision.CHARGED,
        "the noise of each step goes into them; the ledger charges every patient on the training "
        "side before it is drawn",
        ("Reply.weights",),
    ),
    Decided(
        "epsilon and delta",
        Decision.PUBLIC,
        "computed from the study and the declared number alone",
        ("Statement.privacy", "Statement.not_covered"),
    ),
    Decided(
        "example counts",
        Decision.OFF,
        "the average takes weights agreed at provisioning, the divisor of a private step the "
        "declared number; counts leave only where `release.counts` says so (released-counts)",
    ),
    Decided("training loss", Decision.OFF, "never sent; the loop doesn't even keep it"),
    Decided(
        "batch sizes",
        Decision.OFF,
        "a private step divides by a public constant, never by who was there",
    ),
    Decided("class weights", Decision.OFF, "the loss weighs all classes alike"),
    Decided(
        "normalisation statistics",
        Decision.PUBLIC,
        "intensity ranges are constants of the study; GroupNorm and LayerNorm look at one image; "
        "BatchNorm is frozen at public statistics, or not there",
    ),
    Decided(
        "training and test side",
        Decision.OFF,
        "a keyed hash of each patient alone decides it, so nobody's side depends on another's",
    ),
    Decided(
        "early stopping",
        Decision.OFF,
        "rounds and steps are fixed and hashed before round 1; unused ones stay spent",
    ),
    Decided("best round", Decision.OFF, "the model is the last round's, whatever the metrics say"),
    Decided(
        "who speaks, on what",
        Decision.PUBLIC,
        "the site's name and key, the study's hash and the software's version",
        (
            "Statement.format",
            "Statement.site",
            "Statement.key",
            "Statement.study",
            "Statement.fold",
            "Statement.fedward",
        ),
    ),
    Decided(
        NotCovered.RELEASED_METRICS.value,
        Decision.NOT_COVERED,
        "losses included; off unless the site's `release.metrics` names them",
        (
            "Reply.metrics",
            "Metric.loss",
            "Metric.accuracy",
            "Metric.balanced_accuracy",
            "Metric.macro_auroc",
        ),
    ),
    Decided(
        NotCovered.RELEASED_COUNTS.value,
        Decision.NOT_COVERED,
        "off unless the site's `release.counts` says so",
        ("Statement.patients", "Statement.images"),
    ),
    Decided(
        NotCovered.DECLARED_NUMBER.value,
        Decision.NOT_COVERED,
        "rounded and fixed by the site before the study; delta and divisor follow from it",
    ),
    Decided(
        NotCovered.PARTICIPATION.value,
        Decision.NOT_COVERED,
        "a refusal is one code of a closed list: `over-budget` at a study's start tells exactly, "
        "unnoised and uncharged, whether its worst-off patient has lost more than a threshold "
        "that the study picks, and so can tell whether any of its patients was in an earlier "
        "one; `data-unreadable` says that some file is; the head of the receipts counts "
        "messages, never patients",
        ("Reply.head", "Statement.rounds_joined", "Statement.receipts"),
    ),
    Decided(
        NotCovered.CHOICES.value,
        Decision.NOT_COVERED,
        "each try on real data is a study of its own, charged in full; which one is kept isn't",
    ),
    Decided(
        NotCovered.ROUNDING.value,
        Decision.NOT_COVERED,
        "a site refuses weights beyond 10,000 and checks its engine; below that a server that "
        "picks weights can still amplify rounding, except with `privacy.engine: plain`",
    ),
    Decided(
        NotCovered.SEVERAL_SITES.value,
        Decision.NOT_COVERED,
        "no site knows another's patients",
    ),
    Decided(
        NotCovered.SEVERAL_EXAMS.value,
        Decision.NOT_COVERED,
        "only where the data don't say whose an exam is",
    ),
    Decided(
        NotCovered.SEVERAL_IMAGES.value,
        Decision.NOT_COVERED,
        "only with `privacy.unit: image`; the ledger charges patients all the same, and "
        "`fedward privacy plan` prints their epsilon beside",
    ),
)

"""What a model said about images whose labels are known: the one input of every metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import BadInput

SUM_TOLERANCE = 1e-4  # a float32 softmax over a few hundred classes stays well inside
THRESHOLD = 0.5  # multi-label: from this probability on the model says that the label is there

Unit = Literal["patient", "exam"]


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Labels and predicted probabilities of N images over K ordered classes.

    Multi-class (K >= 2): an image has one of the classes; `labels` (N,) are indices. Multi-label
    (K >= 1): an image has any of them; `labels` (N, K) are 0 or 1. A patient is a pair
    (site, patient): equal keys at two sites are two patients. Where the data don't say whose an
    exam is, `patients` are exams and `unit` says so.
    Raises BadInput with every problem at once where lengths, labels or probabilities are wrong.

    >>> one = Predictions(
    ...     labels=np.array([1]),
    ...     probabilities=np.array([[0.2, 0.8]]),
    ...     patients=np.array(["p"]),
    ...     sites=np.array(["north"]),
    ...     classes=("healthy", "fibrosis"),
    ... )
    >>> len(one), one.site_names
    (1, ('north',))
    """

    labels: NDArray[np.integer[Any]]  # (N,), index into classes, or (N, K), 0 or 1
    probabilities: NDArray[np.floating[Any]]  # (N, K) in [0, 1]; multi-class: rows sum to 1
    patients: NDArray[Any]  # (N,), int or str
    sites: NDArray[np.str_]  # (N,)
    classes: tuple[str, ...]  # K names, in the study's order
    groups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)  # column -> (N,)
    unit: Unit = "patient"  # what one of `patients` is

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise BadInput("These predictions cannot be evaluated: " + "; ".join(problems) + ".")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def site_names(self) -> tuple[str, ...]:
        """The sites that have images here, in order of name."""
        return tuple(str(name) for name in np.unique(self.sites))

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several of the classes, or none."""
        return self.labels.ndim == 2

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(N, K) which classes an image has."""
        return self.labels == 1 if self.multi_label else self._one_hot(self.labels)

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """(N, K) which classes the model says: multi-class the most probable, of equals the first;
        multi-label each whose probability is at least 0.5.
        """
        if self.multi_label:
            return self.probabilities >= THRESHOLD
        return self._one_hot(self.probabilities.argmax(axis=1))

    @property
    def patient_index(self) -> NDArray[np.intp]:
        """(N,) number of each image's patient: 0 .. patients - 1, by site and key."""
        _, site = np.unique(self.sites, return_inverse=True)
        _, key = np.unique(self.patients, return_inverse=True)
        pair = site * (key.max(initial=0) + 1) + key
        return np.unique(pair, return_inverse=True)[1].astype(np.intp)

    def where(self, mask: NDArray[np.bool_]) -> Predictions:
        """The images for which `mask` (N,) is true, in their order."""
        return replace(
            self,
            labels=self.labels[mask],
            probabilities=self.probabilities[mask],
            patients=self.patients[mask],
            sites=self.sites[mask],
            groups={column: values[mask] for column, values in self.groups.items()},
        )

    def at_site(self, name: str) -> Predictions:
        """The images of one site."""
        return self.where(self.sites == name)

    def in_group(self, column: str, value: str) -> Predictions:
        """The images whose subgroup `column` is `value`; raises BadInput for an unknown column."""
        return self.where(self.group(column) == value)

    def group(self, column: str) -> NDArray[np.str_]:
        """(N,) a subgroup column; raises BadInput for an unknown one."""
        if column not in self.groups:
            known = ", ".join(sorted(self.groups)) or "none"
            raise BadInput(
                f"A subgroup column of the data was expected (known: {known}); got {column!r}. "
                "Name it in the manifest or choose a known one."
            )
        return self.groups[column]

    def _one_hot(self, index: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        matrix: NDArray[np.bool_] = index[:, None] == np.arange(len(self.classes))
        return matrix


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """All images of `parts` in order; raises BadInput where classes, task or columns differ."""
    if not parts:
        raise BadInput("At least one set of predictions was expected; got none.")
    first = parts[0]
    for part in parts[1:]:
        if part.classes != first.classes:
            raise BadInput(
                f"Predictions over the same ordered classes were expected; got {first.classes} "
                f"and {part.classes}. Evaluate models of different classes separately."
            )
        if (part.multi_label, part.unit) != (first.multi_label, first.unit):
            raise BadInput(
                "Predictions of one task and one unit were expected; got multi-class and "
                "multi-label ones, or patients and exams. Evaluate them separately."
            )
        if set(part.groups) != set(first.groups):
            raise BadInput(
                f"Predictions with the same subgroup columns were expected; got "
                f"{sorted(first.groups)} and {sorted(part.groups)}. "
                "Give every site's data the same columns."
            )
    return replace(
        first,
        labels=np.concatenate([part.labels for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        patients=np.concatenate([part.patients for part in parts]),
        sites=np.concatenate([part.sites for part in parts]),
        groups={
            column: np.concatenate([part.groups[column] for part in parts])
            for column in first.groups
        },
    )


def _problems(given: Predictions) -> list[str]:
    """All that is wrong, each with what was expected."""
    images, classes = len(given.labels), len(given.classes)
    largest = 1 if given.multi_label else classes - 1
    names = "one class name, none twice" if given.multi_label else "two different class names"
    problems = []
    if classes < (1 if given.multi_label else 2) or len(set(given.classes)) != classes:
        problems.append(f"at least {names} were expected, got {given.classes}")
    if given.labels.shape not in {(images,), (images, classes)}:
        problems.append(
            f"labels must have shape ({images},) or, multi-label, ({images}, {classes}), got "
            f"{given.labels.shape}"
        )
    columns = {"patients": given.patients, "sites": given.sites}
    columns |= {f"group {name}": values for name, values in given.groups.items()}
    for name, values in columns.items():
        if values.shape != (images,):
            problems.append(f"{name} must have shape ({images},), got {values.shape}")
    if not np.issubdtype(given.labels.dtype, np.integer):
        problems.append(f"labels must be integers, got {given.labels.dtype}")
    elif given.labels.size and (given.labels.min() < 0 or given.labels.max() > largest):
        problems.append(f"labels must lie in 0..{largest}")
    if given.probabilities.shape != (images, classes):
        problems.append(
            f"probabilities must have shape ({images}, {classes}), got {given.probabilities.shape}"
        )
    elif not np.isfinite(given.probabilities).all():
        problems.append("probabilities must be finite (the model may have diverged)")
    elif given.multi_label:
        if ((given.probabilities < 0) | (given.probabilities > 1)).any():
            problems.append("probabilities must lie in [0, 1] (apply a sigmoid first)")
    elif images and (
        given.probabilities.min() < 0
        or np.abs(given.probabilities.sum(axis=1, dtype=np.float64) - 1).max() > SUM_TOLERANCE
    ):
        problems.append(
            f"each row of probabilities must be non-negative and sum to 1 within {SUM_TOLERANCE:g} "
            "(apply a softmax first)"
        )
    return problems

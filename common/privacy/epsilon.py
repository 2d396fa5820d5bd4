"""An epsilon that cannot be shown without what it means (Dwork & Roth 2014, definition 2.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from enum import StrEnum


class Unit(StrEnum):
    """Whose presence in the data set is hidden."""

    PATIENT = "patient"
    EXAM = "exam"
    IMAGE = "image"


class Randomness(StrEnum):
    """Where sampling and noise come from; only a secret source gives a guarantee."""

    SECRET = "secret"
    SEEDED = "seeded"


class TrustModel(StrEnum):
    """Who has to be trusted for the guarantee to hold."""

    LOCAL = "local: the site adds its noise itself; server and other sites need no trust"
    CENTRAL = "central: whoever holds all sites' data adds the noise and must be trusted"
    SENT = "local, by code that the coordinator sent to the site: whoever sends it must be trusted"


def rounded_up(epsilon: float) -> str:
    """An epsilon's value for people, to three significant digits; up, since it is a bound.

    Only for a table whose conditions stand beside it; anywhere else, print the `Epsilon`.

    >>> rounded_up(7.994), rounded_up(0.0512345)
    ('8.00', '0.0513')
    """
    return f"{Context(prec=3, rounding=ROUND_CEILING).create_decimal(str(epsilon)):f}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Epsilon:
    """How much one unit's presence can show, and everything needed to understand the number.

    It has no `float()` and ignores format specifications, so that no report shows it bare.

    Args:
        value: epsilon, finite and >= 0; shown rounded up to three significant digits.
        delta: probability in (0, 1) with which the bound may fail.
        unit: whose presence is hidden.
        randomness: `seeded` means that whoever knows the seed can undo the noise.
        trust_model: who has to be trusted.

    Raises:
        ValueError: value or delta out of range.

    >>> print(Epsilon(value=7.98, delta=1e-5, unit=Unit.PATIENT, randomness=Randomness.SEEDED))
    epsilon 7.98 per patient (delta 1e-05, add/remove one patient, local: the site adds its noise \
itself; server and other sites need no trust; guarantee: none (seeded))
    """

    value: float
    delta: float
    unit: Unit
    randomness: Randomness
    trust_model: TrustModel = TrustModel.LOCAL

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value >= 0):
            raise ValueError(f"epsilon must be finite and >= 0; got {self.value}.")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must be in (0, 1); got {self.delta}.")

    @property
    def adjacency(self) -> str:
        """Which two data sets the bound compares: they differ by one unit's presence."""
        if self.unit is Unit.IMAGE:
            return (
                "add/remove one of the images taken (replacing one may cost about double); a "
                "patient with several is hidden far less"
            )
        return f"add/remove one {self.unit}"

    @property
    def guarantee(self) -> str:
        """What may be promised: nothing where the randomness came from a seed."""
        if self.randomness is Randomness.SEEDED:
            return "none (seeded)"
        return f"differential privacy per {self.unit}"

    def as_json(self) -> dict[str, str | float]:
        """The same statement as one flat JSON object."""
        return {
            "epsilon": self.value,
            "delta": self.delta,
            "unit": self.unit.value,
            "adjacency": self.adjacency,
            "trust_model": self.trust_model.value,
            "randomness": self.randomness.value,
            "guarantee": self.guarantee,
        }

    def __str__(self) -> str:
        return (
            f"epsilon {rounded_up(self.value)} per {self.unit} (delta {self.delta:g}, "
            f"{self.adjacency}, {self.trust_model}; guarantee: {self.guarantee})"
        )

    __repr__ = __str__

    def __format__(self, format_spec: str) -> str:
        return str(self)

"""What every reader gives: files to decode with whose they are, and the images inside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Source:
    """One file of one patient, found but not yet decoded.

    `detail` is all that decoding needs besides the file (its label, its polygons, ...); its `repr`
    is part of the cache key, so it must be a plain frozen value.
    """

    path: Path
    patient: str  # as the site writes it; replaced by a pseudonymous key before anything is kept
    site: str | None  # only where the data set itself says so (a manifest's column)
    detail: object
    groups: Mapping[str, str] = field(default_factory=dict)  # subgroup columns for evaluation
    side: str = ""  # "train" or "test" where the data set itself says so


@dataclass(frozen=True, slots=True)
class Image:
    """One decoded image with its label."""

    pixels: NDArray[
        np.float32
    ]  # (channels, height, width), in the file's own unit (HU, 0..255, ...)
    label: int  # index into the study's ordered classes


class Reader(Protocol):
    """A data format: finding is cheap and reads tables only; decoding reads one file."""

    def find(self, root: Path, classes: Sequence[str]) -> tuple[Source, ...]:
        """All sources under `root`; raises BadData with every problem found."""
        ...

    def decode(self, source: Source) -> Sequence[Image]:
        """The images of one source, in a fixed order; raises BadData naming file and tag."""
        ...

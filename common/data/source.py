"""What every reader gives: files to decode with whose they are, and the images inside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Label = int | tuple[int, ...]
"""The index into the study's ordered classes, or 0 or 1 for each of them (multi-label)."""


@dataclass(frozen=True, slots=True)
class Source:
    """Files of one patient that are decoded together, found but not yet decoded.

    `detail` is all that decoding needs besides the files (its label, its polygons, ...); its `repr`
    is part of the cache key, so it must be a plain frozen value.
    """

    path: Path
    patient: str  # as the site writes it; replaced by a pseudonymous key before anything is kept
    site: str | None  # only where the data set itself says so (a manifest's column)
    detail: object
    groups: Mapping[str, str] = field(default_factory=dict)  # subgroup columns for evaluation
    side: str = ""  # "train" or "test" where the data set itself says so
    others: tuple[Path, ...] = ()  # further files: a mask, other planes, a series' other slices

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file that decoding reads."""
        return (self.path, *self.others)


@dataclass(frozen=True, slots=True)
class Image:
    """One decoded image, a picture or an exam's volumes, with its label."""

    # Each (slices, height, width), in the file's own unit (HU, 0..255, ...); a picture is one plane
    # of one slice, and planes may differ in all three.
    planes: tuple[NDArray[np.float32], ...]
    label: Label


class Reader(Protocol):
    """A data format: finding is cheap and reads tables only; decoding reads one source's files."""

    def find(self, root: Path, classes: Sequence[str]) -> tuple[Source, ...]:
        """All sources under `root`; raises BadData with every problem found."""
        ...

    def decode(self, source: Source) -> Sequence[Image]:
        """The images of one source, in a fixed order; raises BadData naming file and tag."""
        ...

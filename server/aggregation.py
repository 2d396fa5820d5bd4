"""Federated averaging (McMahan et al., AISTATS 2017, arXiv:1602.05629), folded from disk.

Replies are spooled as they come and folded in the order of the sites' names, in float64, when the
round closes: the same bits in any order of arrival, and the memory of a model or two whatever the
number of sites.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.config import LARGEST_WEIGHT
from common.files import write_atomically

_CHUNK = 1 << 20  # values folded at a time


class Spool:
    """The accepted replies of one round, one file a site."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # what a killed round left
        folder.mkdir(parents=True)
        self._folder = folder
        self._sites: set[str] = set()

    def accept(self, site: str, weights: NDArray[np.float32]) -> None:
        """Keep a site's checked weights (size,)."""
        write_atomically(self._folder / f"{site}.f32", weights.astype("<f4", copy=False).data)
        self._sites.add(site)

    @property
    def sites(self) -> tuple[str, ...]:
        """Whose replies are in, by name."""
        return tuple(sorted(self._sites))

    def average(self, shares: Mapping[str, float]) -> NDArray[np.float32]:
        """The weighted mean of the accepted replies (size,); the spool is removed.

        Args:
            shares: a site's weight in the average, > 0; 1 for a site that isn't named.
        """
        files = [(shares.get(site, 1.0), self._folder / f"{site}.f32") for site in self.sites]
        total = sum(share for share, _ in files)
        mean = np.empty(files[0][1].stat().st_size // 4, dtype=np.float32)
        for start in range(0, len(mean), _CHUNK):
            folded = np.zeros(len(mean[start : start + _CHUNK]), dtype=np.float64)
            for share, path in files:  # read, not mapped: mapped pages count as the process's own
                values = np.fromfile(path, "<f4", count=len(folded), offset=4 * start)
                folded += share * values.astype(np.float64)
            mean[start : start + _CHUNK] = folded / total
        shutil.rmtree(self._folder)
        return mean


def problem(weights: NDArray[np.float32] | None, size: int) -> str | None:
    """Why a reply's weights can't be averaged, or None when they can."""
    if weights is None:
        return "the reply holds no weights"
    if weights.shape != (size,):
        return f"the weights have {weights.size} values; the model has {size}"
    chunks = [weights[at : at + _CHUNK] for at in range(0, size, _CHUNK)]
    if not all(np.isfinite(chunk).all() for chunk in chunks):
        return "the weights are not finite"
    # Averaged, they would be refused by every site, in this round and after each resume.
    if not all(
        chunk.min() >= -LARGEST_WEIGHT and chunk.max() <= LARGEST_WEIGHT for chunk in chunks
    ):
        return f"the weights are beyond {LARGEST_WEIGHT:g}, which no site accepts"
    return None

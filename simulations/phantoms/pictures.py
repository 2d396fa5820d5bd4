"""Pictures of the phantoms: `python -m simulations.phantoms.pictures ild|mrnet OUT.png`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import numpy as np
import typer
from numpy.typing import NDArray

from common.config import MRNET_LABELS
from common.data.ild import IldReader
from common.data.mrnet import MrnetReader
from simulations.phantoms.ild import PATTERNS, IldPhantom, write_ild_phantom
from simulations.phantoms.mrnet import MrnetPhantom, write_mrnet_phantom

Grid = Mapping[str, Sequence[NDArray[np.float32]]]  # by the row's name, images from left to right
_WINDOW_HU = (-1400.0, 200.0)
_SEED = 0


class Kind(StrEnum):
    """Which phantom."""

    ILD = "ild"
    MRNET = "mrnet"


def main(
    kind: Annotated[Kind, typer.Argument()], out: Annotated[Path, typer.Argument(metavar="OUT.png")]
) -> None:
    """Generate a small phantom and show some of it."""
    with tempfile.TemporaryDirectory() as folder:
        if kind is Kind.ILD:
            _save(out, _patches(Path(folder) / "phantom"), _hospitals(5), window=_WINDOW_HU)
        else:
            columns = ["axial", "", "coronal", "", "sagittal", ""]
            _save(out, _knees(Path(folder) / "phantom"), columns, window=(0, 255))


def _patches(folder: Path) -> Grid:
    """A patch of each pattern (rows) at each hospital (columns)."""
    write_ild_phantom(folder, IldPhantom(patients=50, seed=_SEED))
    reader = IldReader(patch_size=64, stride=8, min_share=0.75)
    rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in PATTERNS}
    for hospital in sorted(folder.glob("hospital-*")):
        first: dict[str, NDArray[np.float32]] = {}
        for source in reader.find(hospital, tuple(PATTERNS)):
            for image in reader.decode(source):
                assert isinstance(image.label, int)
                first.setdefault(list(PATTERNS)[image.label], image.planes[0][0])
        for name in PATTERNS:
            rows[name].append(first.get(name, np.full((64, 64), _WINDOW_HU[0], np.float32)))
    return {name.replace("_", " "): images for name, images in rows.items()}


def _knees(folder: Path) -> Grid:
    """Exams of several labels (rows): two slices of each plane, at hospitals in turn."""
    write_mrnet_phantom(folder, MrnetPhantom(exams=100, seed=_SEED))
    wanted = {
        "nothing": (0, 0, 0),
        "abnormal": (1, 0, 0),
        "acl": (1, 1, 0),
        "meniscus": (1, 0, 1),
        "both": (1, 1, 1),
    }
    rows: dict[str, Sequence[NDArray[np.float32]]] = {}
    for (name, labels), hospital in zip(
        wanted.items(), sorted(folder.glob("hospital-*")), strict=True
    ):
        reader = MrnetReader()
        for source in reader.find(hospital, MRNET_LABELS):
            (image,) = reader.decode(source)
            if image.label == labels:
                rows[name] = [
                    plane[int(len(plane) * at)] for plane in image.planes for at in (0.42, 0.55)
                ]
                break
    return rows


def _hospitals(count: int) -> list[str]:
    return [f"hospital {number}" for number in range(1, count + 1)]


def _save(out: Path, grid: Grid, columns: Sequence[str], *, window: tuple[float, float]) -> None:
    """One picture: a row a name, a column an image."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(grid), len(columns), figsize=(1.1 * len(columns) + 0.9, 1.1 * len(grid) + 0.2)
    )
    for row, (name, images) in zip(axes, grid.items(), strict=True):
        for place, pixels in zip(row, images, strict=True):
            place.imshow(pixels, cmap="gray", vmin=window[0], vmax=window[1])
            place.set_xticks([])
            place.set_yticks([])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for place, name in zip(axes[0], columns, strict=True):
        place.set_title(name, fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(out, dpi=72)
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)

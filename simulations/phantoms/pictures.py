"""Pictures of the phantoms for people: `python -m simulations.phantoms.pictures ild|mrnet OUT.png`.

Rows are findings, columns are hospitals with their scanners (and, for a knee, its three planes).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from common.config import IldData
from common.data.ild import IldReader
from common.data.mrnet import PLANES
from simulations.phantoms.ild import PATTERNS, IldPhantom, write_ild_phantom
from simulations.phantoms.mrnet import KINDS, Exam, Findings, MrnetPhantom, volumes

Grey = NDArray[np.uint8]  # (height, width)

_GREYS: Final = 24  # few enough for a small file, enough for the eye
_GAP_PX: Final = 3
_CAPTION_PX: Final = (86, 18)  # beside the rows, above the columns

_HEALTHY: Final = Findings(fluid=1.5)
_KNEES: Final = {
    "normal": _HEALTHY,
    "ACL tear": Findings(fluid=1.5, acl=0.9),
    "meniscal tear": Findings(fluid=1.5, meniscus=0.9),
    "effusion": Findings(fluid=7.0),
    "marrow oedema": Findings(fluid=1.5, marrow=0.9),
}


def ild_picture() -> Image.Image:
    """The five patterns at each hospital of the ILD phantom, as patches in the lung window."""
    size_px, window = 64, IldData().intensity
    columns: dict[str, dict[str, Grey]] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "phantom"
        phantom = IldPhantom(patients=25, equal_sizes=True)
        write_ild_phantom(folder, phantom)
        reader = IldReader(patch_size=size_px // 2, stride=8, min_share=1.0)
        for hospital in range(1, phantom.hospitals + 1):
            patches: dict[str, Grey] = {}
            for source in reader.find(folder / f"hospital-{hospital}", tuple(PATTERNS)):
                for image in reader.decode(source):
                    name = list(PATTERNS)[int(np.asarray(image.label))]
                    share = (image.planes[0][0] - window.low) / (window.high - window.low)
                    patches.setdefault(name, _resized(share, size_px))
            columns[f"hospital {hospital}"] = patches
    return _grid(
        {name: [patches[name] for patches in columns.values()] for name in PATTERNS}, list(columns)
    )


def mrnet_picture() -> Image.Image:
    """One knee with and without each finding, in three planes, at three hospitals.

    Of each plane the slice is shown that the finding changes most; without one, the slice in which
    a torn ACL would be seen.
    """
    phantom = MrnetPhantom()
    rows: dict[str, list[Grey]] = {name: [] for name in _KNEES}
    columns = []
    for hospital in (0, 1, 4):
        exam = Exam(hospital, part=0, kind=list(KINDS).index("acl"), place=0, number=0)
        knees = {name: volumes(phantom, exam, findings) for name, findings in _KNEES.items()}
        for plane in PLANES:
            columns.append(f"{hospital + 1}: {plane}")
            healthy = knees["normal"][plane].astype(np.int16)
            for name, knee in knees.items():
                other = knees["ACL tear"][plane] if name == "normal" else knee[plane]
                changed = (abs(other - healthy) > 20).sum(axis=(1, 2))
                shown = knee[plane][int(changed.argmax()), 16:-16, 16:-16]
                rows[name].append(_resized(shown / 255, 72))
    return _grid(rows, columns)


def _resized(share: NDArray[np.floating], size_px: int) -> Grey:
    """A square of values 0..1 at another size, in few greys."""
    greys = (np.clip(share, 0, 1) * 255).astype(np.uint8)
    resized = Image.fromarray(greys).resize((size_px, size_px), Image.Resampling.LANCZOS)
    step = 255 / (_GREYS - 1)
    return (np.rint(np.asarray(resized) / step) * step).astype(np.uint8)


def _grid(rows: Mapping[str, Sequence[Grey]], columns: Sequence[str]) -> Image.Image:
    """Tiles of one size under and beside their captions."""
    (side, above), (tile, _) = _CAPTION_PX, next(iter(rows.values()))[0].shape
    step = tile + _GAP_PX
    picture = Image.new("L", (side + step * len(columns), above + step * len(rows)), 255)
    write = ImageDraw.Draw(picture)
    for at, name in enumerate(columns):
        write.text((side + step * at + tile // 2, above // 2), name, fill=0, anchor="mm")
    for row, (name, tiles) in enumerate(rows.items()):
        write.text(
            (side - 6, above + step * row + tile // 2), name.replace("_", " "), fill=0, anchor="rm"
        )
        for at, grey in enumerate(tiles):
            picture.paste(Image.fromarray(grey), (side + step * at, above + step * row))
    return picture.quantize(_GREYS + 8)


_PICTURES: Final = {"ild": ild_picture, "mrnet": mrnet_picture}


def main(arguments: Sequence[str]) -> int:
    """Write one picture; 2 and a sentence where the arguments are others."""
    match arguments:
        case [name, out] if name in _PICTURES:
            _PICTURES[name]().save(out, optimize=True)
            return 0
    print(f"expected {'|'.join(_PICTURES)} and the name of a .png", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

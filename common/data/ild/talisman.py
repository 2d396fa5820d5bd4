"""The ready-made patches of ILD_DB_talismanTestSuite: 16-bit TIFF in HU, named by what they show.

<class>_patch<k>_patient<pid>_<m>.tif
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from common.data.dicom import AIR_HU
from common.data.ild.tree import refuse_folder
from common.data.source import Source
from common.errors import BadData

_NAME = re.compile(r"^(.+?)_patch\d+_patient(-?\d+)")
_NOBODY = "-1"  # how the suite marks patches whose patient is unknown

# What Pillow raises on files cut, flipped or made up.
_FAULTS = (
    ArithmeticError,
    LookupError,
    MemoryError,
    OSError,
    Pillow.DecompressionBombError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)


def find_patches(
    suite: Path, class_of: Mapping[str, int], problems: list[str]
) -> tuple[Source, ...]:
    """Each patch of a studied class, in the order of patient and path.

    Args:
        class_of: the class of a label in lower case and the singular.
        problems: gets names that don't follow the pattern, and patches of nobody.
    """
    sources = []
    for path in (
        Path(at, name) for at, _, names in os.walk(suite, onerror=refuse_folder) for name in names
    ):
        if path.suffix.lower() not in (".tif", ".tiff") or path.name.startswith("."):
            continue
        name = _NAME.match(path.name)
        if name is None:
            problems.append(
                f"{path.name}: expected a name such as fibrosis_patch1_patient8_1.tif; move "
                "what is no patch out of the folder."
            )
            continue
        label = class_of.get(name[1].lower().removesuffix("s"))
        if label is not None and name[2] == _NOBODY:
            problems.append(
                f"{path.name}: is of no known patient (-1), so it can't be kept on one side of a "
                "split by patient, nor be protected with its patient; move it out of the folder."
            )
        elif label is not None:
            sources.append(Source(path, name[2], None, label))
    problems.sort()
    return tuple(sorted(sources, key=lambda source: (source.patient, source.path)))


def read_patch(path: Path, size: int) -> NDArray[np.float32]:
    """The (size, size) patch in HU; raises BadData where the file is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they can quote a file's metadata
            with Pillow.open(path, formats=("TIFF",)) as picture:
                if not picture.mode.startswith("I"):
                    raise ValueError
                if picture.size != (size, size):
                    raise BadData(
                        f"{path.name}: has {picture.height} x {picture.width} pixels; expected "
                        f"{size} x {size}. Set data.patch_size_px or move it away."
                    )
                stored = np.asarray(picture)
    except _FAULTS:
        raise BadData(
            f"{path.name}: expected a TIFF of one channel of 16 bits; it can't be read as one. "
            "Replace the file or move it away."
        ) from None
    return np.maximum(stored.astype(np.int16), AIR_HU).astype(np.float32)  # unsigned: HU below 0

"""The manifest data set: one CSV beside the images, `path,patient,site,label[,split][,columns]`.

Any column that is not one of these is a subgroup column for evaluation. Images are DICOM, PNG,
JPEG, TIFF or .npy; each becomes one grey channel.
"""

from __future__ import annotations

import csv
import os
import re
import struct
import tokenize
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from common.config import SITE_NAME, SITE_NAME_RULE
from common.data.dicom import read_grey
from common.data.source import Image, Source
from common.errors import BadData

REQUIRED = ("path", "patient", "site", "label")
SIDES = ("train", "test")
MAX_PIXELS = 8192 * 8192
MAX_PROBLEMS = 10  # shown at once; more would hide the first
_PHOTOMETRIC = 262  # TIFF 6.0, PhotometricInterpretation; 0: white is zero

# What Pillow and numpy raise on files cut, flipped or made up.
_FAULTS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    Pillow.DecompressionBombError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class ManifestReader:
    """Reads a manifest; `find` takes the CSV's path (or a folder that holds `manifest.csv`)."""

    def find(self, root: Path, classes: Sequence[str]) -> tuple[Source, ...]:
        """One source a line; raises BadData with every problem of the table."""
        table = root / "manifest.csv" if root.is_dir() else root
        lines = _read_lines(table)
        problems: list[str] = []
        sources: list[Source] = []
        sites_of: dict[str, tuple[str, int]] = {}
        sides_of: dict[str, tuple[str, int]] = {}
        seen: dict[str, int] = {}
        for number, line in lines:
            problem = _problem(line, classes, table.parent)
            if problem:
                problems.append(f"line {number}: {problem}")
                continue
            patient, site = line["patient"], line["site"]
            path = str(PurePosixPath(line["path"]))  # ./a.png is a.png
            side = line.get("split", "")
            first = seen.setdefault(path, number)
            if first != number:
                problems.append(f"line {number}: the same path as line {first}; keep one")
            other, at = sites_of.setdefault(patient, (site, number))
            if other != site:
                problems.append(
                    f"line {number}: its patient is listed at another site in line {at}; "
                    "a patient belongs to one site of a manifest"
                )
            other, at = sides_of.setdefault(patient, (side, number))
            if other != side:
                problems.append(
                    f"line {number}: its patient is on another side of `split` in line {at}; "
                    "all images of a patient belong to one side"
                )
            groups = {k: v for k, v in line.items() if k not in (*REQUIRED, "split", "")}
            label = list(classes).index(line["label"])
            sources.append(Source(table.parent / path, patient, site, label, groups, side))
        if problems:
            shown = problems[:MAX_PROBLEMS]
            if len(problems) > MAX_PROBLEMS:
                shown.append(f"{len(problems) - MAX_PROBLEMS} more problems like these")
            raise BadData("\n".join(f"{table.name}: {problem}." for problem in shown))
        if not sources:
            raise BadData(f"{table.name}: expected at least one image below the header; got none.")
        return tuple(sources)

    def decode(self, source: Source) -> tuple[Image, ...]:
        """The one image of a line; raises BadData when the file is no image."""
        pixels = _read_image(source.path)
        return (Image(pixels[None], cast("int", source.detail)),)  # (1, H, W)


def _read_lines(table: Path) -> list[tuple[int, Mapping[str, str]]]:
    """Line numbers and cells by column; under "" what stands below no column's name."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in REQUIRED if name not in header]
            if missing:
                raise BadData(
                    f"{table.name}: the column {', '.join(missing)} is missing; "
                    f"the first line must name {', '.join(REQUIRED)}, with commas between."
                )
            twice = sorted({name for name in header if name and header.count(name) > 1})
            if twice:
                raise BadData(f"{table.name}: the column {', '.join(twice)} is there twice.")
            lines: list[tuple[int, Mapping[str, str]]] = []
            for cells in reader:
                named = dict(zip(header, (cell.strip() for cell in cells), strict=False))
                if any(cells):
                    lines.append((reader.line_num, named | {"": "".join(cells[len(header) :])}))
            return lines
    except OSError as error:
        raise BadData(
            f"{table}: can't be read ({error.strerror}); name a manifest.csv that exists."
        ) from None
    except (UnicodeDecodeError, csv.Error):
        raise BadData(f"{table.name}: is no CSV in UTF-8; export it again as CSV.") from None


def _problem(line: Mapping[str, str], classes: Sequence[str], folder: Path) -> str | None:
    empty = [name for name in REQUIRED if not line.get(name)]
    if empty:
        return f"{', '.join(empty)} is empty; fill it in or remove the line"
    if line[""]:
        return "has a cell that no column names; put quotes around cells that hold commas"
    if not re.fullmatch(SITE_NAME, line["site"]):
        return f"site must be {SITE_NAME_RULE}; got {line['site']!r:.80}"
    if line["label"] not in classes:
        return (
            f"the label {line['label']!r:.80} is none of the study's classes "
            f"({', '.join(classes)}); mend the line or the study's `classes`"
        )
    if line.get("split") and line["split"] not in SIDES:
        return f"split must be train, test or empty; got {line['split']!r:.80}"
    path = PurePosixPath(line["path"])
    if path.is_absolute() or ".." in path.parts:
        return "path must stay inside the manifest's folder; move the image there"
    if not os.path.isfile(folder / path):  # Path.is_file raises on a name that is too long
        return f"the file {str(path)!r:.200} does not exist; mend the path"
    return None


def _read_image(path: Path) -> NDArray[np.float32]:
    """One image as grey float32 (H, W), in the file's own unit."""
    match path.suffix.lower():
        case ".png" | ".jpg" | ".jpeg" | ".tif" | ".tiff":
            pixels = _read_picture(path)
        case ".npy":
            pixels = _read_npy(path)
        case _:
            pixels = read_grey(path)
    if not np.isfinite(pixels).all():
        raise BadData(f"{path.name}: has pixels that are not finite; export it again.")
    return pixels


def _read_picture(path: Path) -> NDArray[np.float32]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they can quote a file's metadata
            with Pillow.open(path, formats=("PNG", "JPEG", "TIFF")) as picture:
                return _grey(picture, path)
    except _FAULTS:
        raise BadData(
            f"{path.name}: expected a PNG, JPEG or TIFF image; it can't be read as one. "
            "Replace the file or remove its line."
        ) from None


def _grey(picture: Pillow.Image, path: Path) -> NDArray[np.float32]:
    """The one grey channel (H, W): colour becomes luminance, deep greys keep their values."""
    if picture.width * picture.height > MAX_PIXELS:
        raise BadData(f"{path.name}: has more than {MAX_PIXELS} pixels; export it smaller.")
    if picture.format == "TIFF" and getattr(picture, "n_frames", 1) != 1:
        raise BadData(f"{path.name}: is a stack of images; save one image a file.")
    if not picture.mode.startswith(("I", "F")):  # more than 8 bits
        return np.asarray(picture.convert("L"), dtype=np.float32)
    if getattr(picture, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # Pillow inverts only 8 bits
        raise BadData(f"{path.name}: stores white as zero; export it with black as zero.")
    return np.asarray(picture, dtype=np.float32)


def _read_npy(path: Path) -> NDArray[np.float32]:
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # unlike np.load, never a zip or pickle
    except _FAULTS:
        raise BadData(
            f"{path.name}: expected a numpy array (.npy); it can't be read as one. "
            "Replace the file or remove its line."
        ) from None
    if array.ndim != 2 or not 0 < array.size <= MAX_PIXELS or array.dtype.kind not in "uif":
        raise BadData(
            f"{path.name}: expected a numeric array (height, width); got shape {array.shape} "
            f"of {array.dtype}. Save one grey image a file."
        )
    with np.errstate(over="ignore"):  # refused by the caller as not finite
        return np.array(array, dtype=np.float32)

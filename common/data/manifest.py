"""The manifest data set: one CSV beside the images, `path,patient,label[,site][,split][,columns]`.

Any column that is not one of these is a subgroup column for evaluation. Images are DICOM, PNG,
JPEG, TIFF or .npy; each becomes one grey channel.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from common.config import SITE_NAME, SITE_NAME_RULE
from common.data.dicom import read_grey, read_volume
from common.data.pictures import PICTURES, STACKS, read_picture, read_stack
from common.data.source import Image, Label, Source
from common.errors import BadData

SIDES = ("train", "test")
MAX_PROBLEMS = 10  # shown at once; more would hide the first


@dataclass(frozen=True, slots=True)
class ManifestReader:
    """Reads a manifest; `find` takes the CSV's path (or a folder that holds `manifest.csv`).

    Without a column `site`, all images are those of the one site that reads them.

    Attributes:
        task: multi-class takes a column `label`; multi-label, in its place, a column of 0 and 1
            for each class.
        volumes: whether a path is a volume (a folder of DICOM slices of one series, a multi-frame
            DICOM file, an .npy of (slices, height, width) or a TIFF of several pages) instead of
            one picture.
        columns: (our, the site's) names of columns; a column of ours by its own name is then
            ignored.
        labels: (the site's, the study's) names of classes; in a multi-label task these are names
            of columns.
    """

    task: Literal["multi-class", "multi-label"] = "multi-class"
    volumes: bool = False
    columns: tuple[tuple[str, str], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def find(self, root: Path, classes: Sequence[str]) -> tuple[Source, ...]:
        """One source a line; raises BadData with every problem of the table."""
        table = root / "manifest.csv" if os.path.isdir(root) else root
        multi_label = self.task == "multi-label"
        required = ("path", "patient", *(classes if multi_label else ("label",)))
        own_classes = [(ours, theirs) for theirs, ours in self.labels if ours in classes]
        names = (*self.columns, *(own_classes if multi_label else ()))
        problems: list[str] = []
        sources: list[Source] = []
        sites_of: dict[str, tuple[str | None, int]] = {}
        sides_of: dict[str, tuple[str, int]] = {}
        seen: dict[Path, int] = {}
        for number, line in _read_lines(table, names, required):
            try:
                source = self._source(line, classes, table.parent, required=required)
            except BadData as problem:
                problems.append(f"line {number}: {problem}")
                continue
            first = min(seen.setdefault(path, number) for path in source.paths)
            if first != number:
                problems.append(f"line {number}: reads the same file as line {first}; keep one")
            site, at = sites_of.setdefault(source.patient, (source.site, number))
            if site != source.site:
                problems.append(
                    f"line {number}: its patient is listed at another site in line {at}; "
                    "a patient belongs to one site of a manifest"
                )
            side, at = sides_of.setdefault(source.patient, (source.side, number))
            if side != source.side:
                problems.append(
                    f"line {number}: its patient is on another side of `split` in line {at}; "
                    "all images of a patient belong to one side"
                )
            sources.append(source)
        if problems:
            shown = problems[:MAX_PROBLEMS]
            if len(problems) > MAX_PROBLEMS:
                shown.append(f"{len(problems) - MAX_PROBLEMS} more problems like these")
            raise BadData("\n".join(f"{table.name}: {problem}." for problem in shown))
        if not sources:
            raise BadData(f"{table.name}: expected at least one image below the header; got none.")
        return tuple(sources)

    def decode(self, source: Source) -> tuple[Image, ...]:
        """The one image of a line; raises BadData when its files are none."""
        if self.volumes:
            plane = _read_volume(source.paths)  # (S, H, W)
        elif source.path.suffix.lower() in PICTURES:
            plane = read_picture(source.path)[None]  # (1, H, W)
        else:
            plane = read_grey(source.path)[None]  # (1, H, W)
        return (Image((plane,), cast("Label", source.detail)),)

    def _source(
        self,
        line: Mapping[str, str],
        classes: Sequence[str],
        folder: Path,
        *,
        required: Sequence[str],
    ) -> Source:
        """What one line says; raises BadData with its first problem, without its number."""
        empty = [name for name in (*required, "site") if line.get(name) == ""]
        if empty:
            raise BadData(f"{', '.join(empty)} is empty; fill it in or remove the line")
        if line[""]:
            raise BadData(
                "has a cell that no column names; put quotes around cells that hold commas"
            )
        site, side = line.get("site"), line.get("split", "")
        if site is not None and not re.fullmatch(SITE_NAME, site):
            raise BadData(f"site must be {SITE_NAME_RULE}; got {site!r:.80}")
        if side and side not in SIDES:
            raise BadData(f"split must be train, test or empty; got {side!r:.80}")
        label = self._label(line, classes)
        path, *others = self._files(folder, line["path"])
        groups = {k: v for k, v in line.items() if k not in (*required, "site", "split", "")}
        return Source(path, line["patient"], site, label, groups, side, tuple(others))

    def _label(self, line: Mapping[str, str], classes: Sequence[str]) -> Label:
        if self.task == "multi-label":
            odd = [name for name in classes if line[name] not in ("0", "1")]
            if odd:
                raise BadData(
                    f"{odd[0]} must be 0 or 1, as each class of a multi-label task; "
                    f"got {line[odd[0]]!r:.80}"
                )
            return tuple(int(line[name]) for name in classes)
        said = line["label"]
        name = dict(self.labels).get(said, said)
        if name not in classes:
            mapped = "" if name == said else f", {name!r:.80} by the site's `labels`,"
            raise BadData(
                f"the label {said!r:.80}{mapped} is none of the study's classes "
                f"({', '.join(classes)}); mend the line, the site's `labels` or the study's "
                "`classes`"
            )
        return list(classes).index(name)

    def _files(self, folder: Path, cell: str) -> tuple[Path, ...]:
        """The files that a path stands for; links inside the folder may lead elsewhere."""
        relative = PurePosixPath(cell)  # ./a.png is a.png
        if relative.is_absolute() or ".." in relative.parts:
            raise BadData("path must stay inside the manifest's folder; move the image there")
        shown = f"{str(relative)!r:.200}"
        path = folder / relative
        if os.path.isfile(path):  # Path.is_file raises on a name that is too long
            return (path,)
        if not os.path.isdir(path):
            raise BadData(f"the file {shown} does not exist; mend the path")
        if not self.volumes:
            raise BadData(
                f"{shown} is a folder, but the study reads pictures; name a file, or set "
                "data.slices to read folders as volumes"
            )
        try:
            names = sorted(name for name in os.listdir(path) if not name.startswith("."))
        except OSError as error:
            raise BadData(
                f"the folder {shown} can't be read ({error.strerror}); make it readable"
            ) from None
        if not names or not all(os.path.isfile(path / name) for name in names):
            raise BadData(
                f"the folder {shown} must hold the slices of one volume and no folder; "
                "move other things out and name the innermost folder"
            )
        return tuple(path / name for name in names)


def _read_lines(
    table: Path, names: Sequence[tuple[str, str]], required: Sequence[str]
) -> list[tuple[int, Mapping[str, str]]]:
    """Line numbers and cells by our names of the columns; under "" what no column's name covers."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            place_of = _places(table.name, header, names, required)
            lines: list[tuple[int, Mapping[str, str]]] = []
            for raw in reader:
                cells = [cell.strip() for cell in raw]
                if any(cells):
                    rest = "".join(cells[len(header) :])
                    cells += [""] * (len(header) - len(cells))
                    line = {name: cells[at] for name, at in place_of.items()}
                    lines.append((reader.line_num, line | {"": rest}))
            return lines
    except OSError as error:
        raise BadData(
            f"{table}: can't be read ({error.strerror}); name a manifest.csv that exists."
        ) from None
    except (UnicodeDecodeError, csv.Error):
        raise BadData(f"{table.name}: is no CSV in UTF-8; export it again as one.") from None


def _places(
    table: str, header: list[str], names: Sequence[tuple[str, str]], required: Sequence[str]
) -> dict[str, int]:
    """Where in a line each column is, by our name; raises BadData where that isn't clear."""
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise BadData(f"{table}: the column {', '.join(twice)} is there twice.")
    unknown = [f"{theirs!r:.80} (for {ours})" for ours, theirs in names if theirs not in header]
    if unknown:
        raise BadData(
            f"{table}: there is no column {', '.join(unknown)}; mend the site's `columns` or "
            "`labels`, or the table's first line."
        )
    ours = [name for name, _ in names]
    if len(set(ours)) != len(ours):
        raise BadData(
            f"{table}: the site's `columns` and `labels` name two columns for one of ours; "
            "keep one of them."
        )
    renamed = {theirs for _, theirs in names}
    places = {name: at for at, name in enumerate(header) if name and name not in renamed}
    places |= {name: header.index(theirs) for name, theirs in names}
    missing = [name for name in required if name not in places]
    if missing:
        raise BadData(
            f"{table}: the column {', '.join(missing)} is missing; the first line must name "
            f"{', '.join(required)}, with commas between, or the site's `columns` must say what "
            "they are called."
        )
    return places


def _read_volume(paths: Sequence[Path]) -> NDArray[np.float32]:
    """The volume (S, H, W) of one line, in the files' own unit."""
    first = paths[0]
    suffix = first.suffix.lower()
    if len(paths) > 1:
        try:
            return read_volume(paths)
        except BadData as problem:
            raise BadData(
                f"{problem} The folder {first.parent.name} must hold the slices of one volume "
                "and nothing else."
            ) from None
    if suffix in STACKS:
        return read_stack(first)
    if suffix in PICTURES:
        raise BadData(
            f"{first.name}: is a picture, but with data.slices each path is a volume; name a "
            "folder of DICOM slices, a multi-frame file, an .npy or a TIFF of several pages."
        )
    return read_volume(paths)
